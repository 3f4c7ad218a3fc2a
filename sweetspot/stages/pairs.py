"""Selecting: from the reward matrix to preference pairs."""

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sweetspot.component import key, to_config
from sweetspot.distribution import moments
from sweetspot.duplicates import later_copies
from sweetspot.schema import PAIRS
from sweetspot.stages.pool import Rewards, Samples, rows_at, text_codes
from sweetspot.stages.run import Run
from sweetspot.store import read_tile, write_tile
from sweetspot.strategy import Selection, Strategy


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The preference pairs that a strategy built from a reward matrix."""

    key: str
    path: Path
    samples: Samples
    table: pa.Table
    dropped: dict[str, list[str]]  # reason -> prompt ids
    ignored: int  # responses that were left out as copies of an earlier one of their prompt


def select(rewards: Rewards, strategy: Strategy, ignore_duplicates: bool, run: Run) -> Pairs:
    """The pairs that the strategy builds from the n rewards of each prompt.

    Args:
        ignore_duplicates: later copies of an equal response of a prompt count as not scored.
    """
    started = time.monotonic()
    samples = rewards.samples
    name = key(strategy, rewards.key, samples.prompt_ids, samples.size, ignore_duplicates)
    provenance = {
        "strategy": to_config(strategy),
        "rewards": rewards.key,
        "samples": samples.key,
        "prompts": key(samples.prompt_ids),
        "n_samples": samples.n_samples,
        "ignore_duplicates": ignore_duplicates,
    }
    path = run.store.artefact("pairs", name, provenance) / "pairs.parquet"
    made = bool(run.missing([path], PAIRS))
    if made:
        matrix = rewards.matrix()
        ignored = _ignore_copies(matrix, samples) if ignore_duplicates else 0
        selection = strategy(matrix)
        _check(selection, matrix, type(strategy).__name__)
        dropped = {why: [samples.prompt_ids[row] for row in rows] for why, rows in selection.dropped.items()}
        write_tile(path, _pair_rows(selection, matrix, samples), {"dropped": dropped, "ignored_duplicates": ignored})
    table, facts = read_tile(path, PAIRS)
    run.did("select", "pair sets", int(made), int(not made), started)
    return Pairs(name, path, samples, table, facts["dropped"], facts["ignored_duplicates"])


def _check(selection: Any, matrix: np.ndarray, name: str) -> None:
    """Refuse a selection that names what is not there, which only a strategy of somebody's own may make.

    Raises:
        ValueError: naming the strategy and the first such prompt.
    """
    if not isinstance(selection, Selection):
        raise ValueError(f"strategy: {name} must give a Selection, got {type(selection).__name__}")
    rows, *ends = (np.asarray(part) for part in (selection.prompt, selection.chosen, selection.rejected))
    if any(part.shape != (len(rows),) or (len(rows) and part.dtype.kind not in "iu") for part in (rows, *ends)):
        raise ValueError(f"strategy: {name} must give prompt, chosen and rejected as three lists of one length")
    if not len(rows):
        return
    if (same := np.flatnonzero(ends[0] == ends[1])).size:
        raise ValueError(f"strategy: {name} must choose two responses, got one twice for prompt {rows[same[0]]}")
    for end in ends:
        there = (rows >= 0) & (rows < len(matrix)) & (end >= 0) & (end < matrix.shape[1])
        there[there] = np.isfinite(matrix[rows[there], end[there]])
        if not there.all():
            first = int(np.flatnonzero(~there)[0])
            raise ValueError(
                f"strategy: {name} must choose scored responses, got response {end[first]} of prompt {rows[first]}"
            )


def _ignore_copies(matrix: np.ndarray, samples: Samples) -> int:
    """Set the rewards of later copies to NaN, in place; returns how many."""
    copies = later_copies(text_codes(samples)[0])
    matrix[copies] = np.nan
    return int(copies.sum())


def _pair_rows(selection: Selection, matrix: np.ndarray, samples: Samples) -> pa.Table:
    """The PAIRS rows of a selection, its responses joined by (prompt_id, sample_index)."""
    ids = samples.prompt_ids
    z = moments(matrix).z(matrix)
    wanted = {(ids[row], int(index)) for row, index in _ends(selection)}
    text = {place: row["response"] for place, row in rows_at(samples, wanted, ["response"]).items()}
    messages = samples.prompts["messages"].to_pylist()
    counts: dict[int, int] = {}
    rows: list[dict[str, Any]] = []
    for row, chosen, rejected in zip(selection.prompt, selection.chosen, selection.rejected, strict=True):
        pair_index = counts[row] = counts.get(row, -1) + 1
        rows.append(
            {
                "prompt_id": ids[row],
                "pair_index": pair_index,
                "messages": messages[row],
                "chosen": text[ids[row], chosen],
                "rejected": text[ids[row], rejected],
                "chosen_index": chosen,
                "rejected_index": rejected,
                "chosen_reward": matrix[row, chosen],
                "rejected_reward": matrix[row, rejected],
                "chosen_z": z[row, chosen],
                "rejected_z": z[row, rejected],
            }
        )
    return pa.Table.from_pylist(rows, schema=PAIRS)


def _ends(selection: Selection) -> Iterable[tuple[int, int]]:
    yield from zip(selection.prompt, selection.chosen, strict=True)
    yield from zip(selection.prompt, selection.rejected, strict=True)
