"""What a policy's folder tells of its training: the curve, and the model card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweetspot.component import identity
from sweetspot.dpo import DPO
from sweetspot.model import FINGERPRINT
from sweetspot.sft import SFT
from sweetspot.visible import in_markdown

HISTORY = "history.jsonl"
COUNTS = "pairs.json"  # how many pairs were trained on, and how many were left out
CONVERSATIONS = "conversations.json"  # the same of conversations


class History:
    """The training curve, one JSON row a step, without the rows that a resumed run makes again.

    Args:
        path: the file; rows of steps up to `after` are kept.
        after: the step that training goes on from.
        reads: whether it is another rank that writes.
    """

    def __init__(self, path: Path, after: int, reads: bool) -> None:
        self._path = path
        if reads:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = path.read_text().split("\n")[:after] if path.exists() else []  # a step is a line, from step 1
        path.write_text("".join(f"{line}\n" for line in kept))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add the row of a step."""
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far."""
        return [json.loads(line) for line in self._path.read_text().splitlines()]


def model_card(
    card: Mapping[str, Any],
    settings: DPO | SFT,
    counts: Mapping[str, int],
    history: Sequence[Mapping[str, Any]],
) -> str:
    """The README of a model: where it comes from, its hyper-parameters, and how its training went.

    Names and values are shown as text, whatever they hold.

    Args:
        card: title and facts of data and start model.
        settings: those that it was trained with.
        counts: of what it was trained on and what was left out, by what they are.
        history: a row a step.
    """
    kind, tag, curves = (
        ("DPO", "dpo", ("loss", "rewards/margin", "rewards/accuracy"))
        if isinstance(settings, DPO)
        else ("SFT", "sft", ("loss",))
    )
    ends = {
        f"{name}, {when} step": f"{row[name]:.4f}"
        for name in curves
        for when, row in (("first", history[0]), ("last", history[-1]))
    }
    title = in_markdown(str(card.get("title", "A policy trained by sweetspot")))
    facts = {name: value for name, value in card.items() if name != "title"}
    sections = (
        ("Data and start model", {**facts, **counts}),
        (kind, identity(settings)),
        (f"Training, {len(history)} steps", ends),
    )
    tables = [f"## {name}\n\n| | |\n|---|---|\n" + _rows(table) for name, table in sections]
    return f"---\nlibrary_name: transformers\ntags: [{tag}, sweetspot]\n---\n# {title}\n\n" + "\n".join(tables)


def finished(output: Path) -> bool:
    """Whether the model in the folder is whole, so that only tidying is left; a half-written mark is deleted."""
    recorded = output / FINGERPRINT
    if recorded.exists() and recorded.read_text().endswith("\n"):
        return True
    recorded.unlink(missing_ok=True)
    return False


def _rows(table: Mapping[str, Any]) -> str:
    return "".join(f"| {in_markdown(str(name))} | {in_markdown(str(value))} |\n" for name, value in table.items())
