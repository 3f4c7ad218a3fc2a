"""The rows behind a manifest: what of the store a report looks at."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sweetspot.distribution import at_picks, expected_position, mean_sd, moments, picks
from sweetspot.duplicates import later_copies
from sweetspot.schema import PAIRS, PROMPTS, REWARDS, SAMPLES
from sweetspot.stages.pool import coded, served
from sweetspot.store import read_tile
from sweetspot.strategy import POINTS

Floats = NDArray[np.float64]
SHOWN = 8  # prompts whose responses and distributions are shown


@dataclass(frozen=True)
class Response:
    """A response as it is shown.

    z: (reward - mu) / sigma within its prompt. Both are None where it was not scored. by: whose it is, where that is
    not plain. note: what else is told of it.
    """

    label: str
    text: str
    reward: float | None
    z: float | None
    by: str = ""
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """A prompt as it is shown: its turns (role, text), its responses, its rewards [n] where it was scored, and the
    judge's preference for the last response (0 to 1) where one compared them."""

    prompt_id: str
    messages: list[tuple[str, str]]
    responses: list[Response]
    rewards: Floats | None
    preference: float | None = None

    @property
    def texts(self) -> list[str]:
        """All that is shown of it."""
        return [*(text for _, text in self.messages), *(response.text for response in self.responses)]


@dataclass(frozen=True)
class Scored:
    """The reward matrix of a round.

    rewards: [prompts, n], reward-model units, NaN = not scored. z: the same rewards from their prompt's mean in its
    standard deviations (ddof 1). copies: [prompts, n], the later copies of a response that selection ignored, which are
    NaN in both as they were to it; None = it ignored none.
    """

    prompt_ids: list[str]
    rewards: Floats
    z: Floats
    copies: NDArray[np.bool_] | None = None


def read_scored(
    store: Path, samples: Mapping[str, Any], rewards: Mapping[str, Any], ignore_duplicates: bool = False
) -> Scored:
    """The rewards of a round's first n samples, rows in the order of its prompts; those that selection saw, where it
    ignored duplicates."""
    ids: list[str] = read_tile(store / samples["prompts"], PROMPTS)[0]["prompt_id"].to_pylist()
    matrix = np.full((len(ids), samples["n_samples"]), np.nan)
    row_of = {name: row for row, name in enumerate(ids)}
    for name in rewards["tiles"]:
        path = store / rewards["folder"] / f"{name}.parquet"
        table, rows = served(path, REWARDS, row_of, samples["n_samples"], ["sample_index", "reward"])
        matrix[rows, table["sample_index"].to_numpy()] = table["reward"].to_numpy()
    copies = _copies(store, samples, row_of) if ignore_duplicates else None
    if copies is not None:
        matrix[copies] = np.nan
    return Scored(ids, matrix, moments(matrix).z(matrix), copies)


def _copies(store: Path, samples: Mapping[str, Any], row_of: Mapping[str, int]) -> NDArray[np.bool_]:
    """Which responses are equal to an earlier one of their prompt, [prompts, n]."""
    codes = np.full((len(row_of), samples["n_samples"]), -1, dtype=np.int64)
    for name in samples["tiles"]:
        path = store / samples["folder"] / f"{name}.parquet"
        table, rows = served(path, SAMPLES, row_of, samples["n_samples"], ["sample_index", "response"])
        codes[rows, table["sample_index"].to_numpy()] = coded(table["response"].to_pylist())
    return later_copies(codes)


@dataclass(frozen=True)
class Place:
    """Where a point of the reward distribution lies.

    z: the mean over prompts of its response's. normal_z: the same in a normal pool of the same n; where copies are
    ignored, of as many as a prompt has different ones, in the mean.
    share_min, share_max: the share of prompts for which its response is the minimum, or the maximum.
    """

    point: str
    z: float
    normal_z: float
    share_min: float
    share_max: float


def points(scored: Scored) -> list[Place]:
    """The paper's seven points, over the prompts whose n rewards are all finite, but for ignored copies, and not all
    equal; [] without such."""
    finite = np.isfinite(scored.z)
    whole = finite if scored.copies is None else finite | scored.copies
    rows = whole.all(axis=1) & finite.any(axis=1)
    if not rows.any():
        return []
    rewards, n = scored.rewards[rows], round(float(finite[rows].sum(axis=1).mean()))
    found = picks(rewards, POINTS)
    z = at_picks(scored.z[rows], found)  # [points, prompts]
    worst, best = found[POINTS.index("min")], found[POINTS.index("max")]
    # a pick's z is independent of the sd it is divided by (Basu): its mean is that in true sigma over E[sd]
    normal = [expected_position(point, n).z / mean_sd(n) for point in POINTS]
    return [
        Place(point, float(own.mean()), expected, float((pick == worst).mean()), float((pick == best).mean()))
        for point, own, expected, pick in zip(POINTS, z, normal, found, strict=True)
    ]


def read_history(store: Path, policy: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The training curve: a row a step."""
    return [json.loads(line) for line in (store / policy["history"]).read_text().splitlines() if line.strip()]


def read_shown(store: Path, found: Mapping[str, Any], scored: Scored | None) -> list[Shown]:
    """Up to eight prompts of a round, evenly spaced and not hand-picked.

    Where pairs were selected, prompts with a pair, shown with its two responses; else prompts of the first tile, shown
    with their first two.
    """
    if "pairs" in found:
        table, _ = read_tile(store / found["pairs"]["path"], PAIRS)
        return [_shown_pair(row, scored) for row in table.take(spaced(table.num_rows)).to_pylist()]
    samples = found["samples"]
    if not samples["tiles"]:
        return []
    table, _ = read_tile(store / samples["folder"] / f"{samples['tiles'][0]}.parquet", SAMPLES)
    rows = table.select(["prompt_id", "sample_index", "response"]).to_pylist()
    prompts, _ = read_tile(store / samples["prompts"], PROMPTS)
    at = {name: row for row, name in enumerate(prompts["prompt_id"].to_pylist())}
    ids = [name for name in dict.fromkeys(row["prompt_id"] for row in rows) if name in at]
    wanted = [ids[number] for number in spaced(len(ids)).to_pylist()]
    messages = prompts["messages"].take(pa.array([at[name] for name in wanted], pa.int64())).to_pylist()
    return [_shown_samples(name, turns, rows, scored) for name, turns in zip(wanted, messages, strict=True)]


def _shown_pair(row: Mapping[str, Any], scored: Scored | None) -> Shown:
    responses = [Response(side, row[side], row[f"{side}_reward"], row[f"{side}_z"]) for side in ("chosen", "rejected")]
    return Shown(row["prompt_id"], _turns(row["messages"]), responses, _rewards_of(row["prompt_id"], scored))


def _shown_samples(name: str, messages: Any, texts: list[dict[str, Any]], scored: Scored | None) -> Shown:
    first = sorted((row for row in texts if row["prompt_id"] == name), key=lambda row: row["sample_index"])[:2]
    row = scored.prompt_ids.index(name) if scored else -1
    responses = [
        Response(
            f"sample {text['sample_index']}",
            text["response"],
            float(scored.rewards[row, text["sample_index"]]) if scored else None,
            float(scored.z[row, text["sample_index"]]) if scored else None,
        )
        for text in first
    ]
    return Shown(name, _turns(messages), responses, _rewards_of(name, scored))


def _turns(messages: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def _rewards_of(name: str, scored: Scored | None) -> Floats | None:
    if scored is None:
        return None
    row = scored.rewards[scored.prompt_ids.index(name)]
    return row[np.isfinite(row)]


def spaced(count: int, most: int = SHOWN) -> pa.Int64Array:
    """Up to `most` row numbers of `count`, evenly spaced from the first to the last."""
    return pa.array(np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).round()), pa.int64(), safe=True)
