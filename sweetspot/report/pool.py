"""What a report shows of a pool: how its rewards are distributed, what fewer samples would give, and what the
strategies of a sweep took of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sweetspot.report import runs
from sweetspot.report.effects import by_n, ladder, positions
from sweetspot.report.rows import Response, Scored, Shown, points, spaced
from sweetspot.report.runs import Point, Settings
from sweetspot.report.words import pretty
from sweetspot.schema import PAIRS
from sweetspot.store import read_tile

SETTINGS = Settings(resamples=1000, seed=0)
MOST_PROMPTS = 2000  # of a run whose curves over n are estimated, evenly spaced: some seconds at 400 samples
SHOWN = 4  # prompts of a sweep whose responses are shown
SIDES = ("chosen", "rejected")


def curves(name: str, found: Mapping[str, Any], manifest: Mapping[str, Any], scored: Scored) -> dict[str, Any] | None:
    """What n samples would give, at the positions of the run's strategy, max and min: the figure and its prompts; None
    of a pool that has less than two sizes of the ladder, or whose prompts do not have the same number of samples.

    Args:
        name: of the figure.
        found: the round, as in the manifest.
        manifest: the run's.
        scored: the rewards of the round.
    """
    from sweetspot.report import sweep_figures  # matplotlib takes a second to import

    point = Point(Path(), {**manifest, "rounds": [found]})
    if len(ladder(point.n)) < 2 or point.config["sampler"]["budget"] != "uniform":
        return None
    kept = spaced(len(scored.prompt_ids), MOST_PROMPTS).to_pylist()
    some = Scored([scored.prompt_ids[row] for row in kept], scored.rewards[kept], scored.z[kept])
    rows = by_n(point, positions([point]), SETTINGS, some)
    prompts = max(row["prompts"] for row in rows)
    return {"figure": sweep_figures.by_n(name, rows), "n": point.n, "seed": point.pool_seed, "prompts": prompts}


def of_sweep(pool: Point | None, every: Sequence[Point], texts: bool) -> dict[str, Any]:
    """What the page of a sweep shows of a pool; nothing without one.

    Args:
        pool: the run that reads most of it.
        every: the runs of the sweep.
        texts: whether prompts and responses are shown.
    """
    from sweetspot.report import figures

    scored = runs.selectable(pool) if pool else None
    places = points(scored) if scored else []
    return {
        "pool": pool,
        "pooled": figures.pooled("pooled", scored, places, None, None) if scored and places else None,
        "places": places,
        "beyond": figures.beyond(scored) if scored else 0,
        "shown": read_choices(_sharing(pool, every)) if pool and texts else [],
    }


def _sharing(pool: Point, every: Sequence[Point]) -> list[Point]:
    """The runs that selected among as many samples of the pool, each strategy once."""
    own = pool.part("rewards")["key"]
    same = [point for point in every if point.part("pairs") and point.part("rewards")["key"] == own]
    return list({point.strategy: point for point in same if point.n == pool.n}.values())


def read_choices(sharing: Sequence[Point]) -> list[Shown]:
    """Up to four prompts, evenly spaced over those with a pair of the strategy that has most and not hand-picked, each
    with all responses that a strategy chose or rejected, the highest reward first.

    Args:
        sharing: runs that selected from one pool, among as many samples, each with its own strategy.
    """
    if not sharing:
        return []
    most = max(sharing, key=lambda point: point.part("pairs")["kept"])
    known = read_tile(_pairs(most), PAIRS, ["prompt_id"])[0]["prompt_id"].unique()
    ids: list[str] = known.take(spaced(len(known), SHOWN)).to_pylist()
    taken: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in ids}
    turns: dict[str, list[tuple[str, str]]] = {}
    for point in sharing:
        table = read_tile(_pairs(point), PAIRS)[0]
        wanted = pa.array([name in taken for name in table["prompt_id"].to_pylist()], pa.bool_())
        for row in table.filter(wanted).to_pylist():
            turns[row["prompt_id"]] = [(turn["role"], turn["content"]) for turn in row["messages"]]
            for side in SIDES:
                facts = {"text": row[side], "reward": row[f"{side}_reward"], "z": row[f"{side}_z"]}
                facts |= {one: list[str]() for one in SIDES}
                taken[row["prompt_id"]].setdefault(row[f"{side}_index"], facts)[side].append(pretty(point.strategy))
    ranked = {name: sorted(of.values(), key=lambda one: -one["reward"]) for name, of in taken.items()}
    return [Shown(name, turns[name], [_response(one) for one in ranked[name]], None) for name in ids]


def _pairs(point: Point) -> Path:
    return point.store / point.part("pairs")["path"]


def _response(facts: Mapping[str, Any]) -> Response:
    """A response, and by which strategies it was chosen or rejected."""
    by = {side: ", ".join(dict.fromkeys(facts[side])) for side in SIDES if facts[side]}
    told = "; ".join(f"{side} by {names}" for side, names in by.items())
    return Response(" and ".join(by), facts["text"], facts["reward"], facts["z"], note=told)
