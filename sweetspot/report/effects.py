"""What the policies of several runs are worth beside the random baseline, and what fewer samples would give: rows."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from sweetspot.distribution import Curve, curve, expected_position, mean_sd, moments, position_of_k
from sweetspot.distribution.subsets import SUBSETS
from sweetspot.report import runs
from sweetspot.report.groups import against, effect, group, with_holm
from sweetspot.report.rows import Scored
from sweetspot.report.runs import Point, Settings
from sweetspot.strategy import POINTS, Position

BASELINE = "random"
THAN_RANDOM: Mapping[str, str] = MappingProxyType({BASELINE: "than_random_"})
MOST_POSITIONS = 9  # in a figure of selection over n
DRAWS = 50_000  # of random subsets over all prompts, for a position without a closed form


def effects(
    points: Sequence[Point], measure: str, settings: Settings, references: Mapping[str, str] = THAN_RANDOM
) -> list[dict[str, Any]]:
    """A row a strategy: what its policy is worth, and its paired difference from the random pair's with a p-value, and
    that adjusted over these pairs (Holm), where there is a random pair with a seed in common.

    Of several seeds a prompt's figure is the mean over them; that of a difference is over those that both have.

    Args:
        points: evaluated runs of one setting, which differ in strategy and seed alone.
        measure, settings: as for `runs.changes` and `runs.interval`.
        references: strategies from which the others differ, and the prefix of their columns; each is a family of tests
            of its own. The random pair is compared with none.
    """
    of = {name: group(own, measure) for name, own in runs.grouped(points, lambda point: point.strategy).items()}
    rows: list[dict[str, Any]] = []
    for strategy, own in of.items():
        others = [] if strategy == BASELINE else [name for name in references if name in of and name != strategy]
        names = dict(zip(("chosen", "rejected"), own.points[0].positions, strict=True))
        row = {"strategy": strategy, **names, **effect(own, settings)}
        for name in others:
            row |= against(own, of[name], settings, references[name])
        rows.append(row)
    for prefix in references.values():
        rows = with_holm(rows, prefix)
    return rows


def ladder(n: int) -> list[int]:
    """The paper's numbers of samples up to n, and n."""
    return [*(size for size in (5, 10, 20, 50, 100, 200, 400) if size < n), n]


def by_n(
    point: Point, positions: Sequence[str], settings: Settings, scored: Scored | None = None
) -> list[dict[str, Any]]:
    """A row for each position and n: reward and z of its response, and how far the best of n lies above it.

    What n samples would give is estimated over all subsets of n of the run's pool, unbiased, with bootstrap bands over
    prompts: those that have n finite rewards which are not all equal. z is in the standard deviations of the whole
    pool. scored: the rewards, of some prompts; None = of all.
    """
    found, ks = scored or runs.scored(point), ladder(point.n)
    names = {"reward_model": point.part("rewards")["reward_model"], "seed": point.pool_seed}
    of, subsets = moments(found.rewards), max(4, min(SUBSETS, DRAWS // max(len(found.rewards), 1)))
    best = position_of_k(found.z, "max", ks)
    rows: list[dict[str, Any]] = []
    for position in positions:
        z = position_of_k(found.z, position, ks, seed=settings.seed, subsets=subsets)
        rewards = of.mean[:, None] + of.sd[:, None] * z  # a position moves with its prompt's mean and spread
        bands = {
            name: curve(values, ks, settings.seed, settings.resamples)
            for name, values in (("reward_", rewards), ("z_", z), ("margin_z_", best - z))
        }
        able = Position.parse(position).minimum_samples
        normal = [expected_position(position, k).z / mean_sd(point.n) if k >= max(able, 2) else np.nan for k in ks]
        rows += [
            {
                **names,
                "prompts": int(bands["z_"].prompts[at]),
                "position": position,
                "n": k,
                "normal_z": normal[at],
                **_columns(bands, at),
            }
            for at, k in enumerate(ks)
        ]
    return rows


def _columns(bands: dict[str, Curve], at: int) -> dict[str, float]:
    return {
        f"{prefix}{name}": float(getattr(of, name)[at])
        for prefix, of in bands.items()
        for name in ("mean", "low", "high")
    }


def positions(points: Sequence[Point]) -> list[str]:
    """The positions that the sweep's strategies take, and max and min; of many the seven points before others."""
    named = [point.config["strategy"].get(end) for point in points for end in ("chosen", "rejected")]
    used = {one for one in named if one != BASELINE and is_position(one)} | {"max", "min"}
    return [*(point for point in POINTS if point in used), *sorted(used - {*POINTS})][:MOST_POSITIONS]


def is_position(value: Any) -> bool:
    """Whether the field of a strategy, which may be of somebody's own, is a position."""
    if not isinstance(value, str):
        return False
    try:
        Position.parse(value)
    except ValueError:
        return False
    return True
