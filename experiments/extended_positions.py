"""Does it help to go beyond mu +- 2 sigma? Positions at 3 and 4 sigma, which the paper finds to be like max and min.

    python run.py experiment=extended_positions size=embedded
    python -m experiments.extended_positions runs/latest

At the n that can be paid for, the response nearest to mu - 3 sigma mostly *is* the minimum: the share of prompts says
how much of "behaves like" is "is the same response".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import lines, output, runs
from experiments.output import Beside, Found
from experiments.runs import Point, Settings
from sweetspot.distribution import expected_position, picks, realised_z
from sweetspot.distribution.positions import NONE

SIGMAS = ("mu-4sigma", "mu-3sigma", "mu-2sigma", "mu+2sigma", "mu+3sigma", "mu+4sigma")


def study(points: Sequence[Point], settings: Settings, measure: str | None) -> Found:
    """Where the far positions lie in each pool, and what policies of them are worth beside (max, min)."""
    measure = measure or runs.measure_of(points)
    lie = [row for point in runs.pools(points) for row in far(point, settings)]
    trained = policies(points, settings, measure) if any(runs.evaluation(point, measure) for point in points) else []
    beside = [
        Beside(
            f"{row['position']} is the {row['extreme']} (n = {row['n']})",
            "mu +- 3 sigma and 4 sigma behave like max and min" if row["position"][3] in "34" else output.UNKNOWN,
            f"for {output.shares(row, 'share')} of {row['prompts']} prompts, of a normal pool "
            f"{row['normal_share']:.0%}; z "
            f"{output.told(row, 'z_', 2)}; seed {row['seed']}",
        )
        for row in lie
    ]
    beside += [
        Beside(
            f"{row['strategy']} less (max, min), {measure}",
            "no different beyond 2 sigma",
            f"{lines.difference(row, 'than_max_min_')}; the policy {lines.policy(row)}",
        )
        for row in trained
        if "than_max_min_p" in row
    ]
    return Found({"positions": lie, "trained": trained}, {"extended_positions": _draw(lie, trained, measure)}, beside)


def far(point: Point, settings: Settings) -> list[dict[str, Any]]:
    """A row a position: its realised z, and how often its response is the minimum or maximum."""
    rewards = runs.selectable(point).rewards
    found = picks(rewards, ["min", "max", *SIGMAS])
    z = realised_z(rewards, found)
    rows: list[dict[str, Any]] = []
    for at, position in enumerate(SIGMAS, 2):
        expected, low = expected_position(position, point.n), "-" in position
        extreme = found[0 if low else 1]
        share = runs.interval(np.where(extreme == NONE, np.nan, found[at] == extreme), settings)
        rows.append(
            {
                "reward_model": point.part("rewards")["reward_model"],
                "seed": point.pool_seed,
                "n": point.n,
                "prompts": share["prompts"],
                "position": position,
                "extreme": "minimum" if low else "maximum",
                "share": share["mean"],
                "share_low": share["low"],
                "share_high": share["high"],
                "normal_share": expected.share_min if low else expected.share_max,
                **runs.interval(z[at], settings, "z_"),
            }
        )
    return rows


def policies(points: Sequence[Point], settings: Settings, measure: str) -> list[dict[str, Any]]:
    """A row a strategy: what its policy is worth, and the paired difference from (max, min)."""
    groups = runs.grouped(runs.having(points, "evaluation", measure), lambda point: point.strategy)
    of = {strategy: runs.group(own, measure) for strategy, own in groups.items()}
    rows: list[dict[str, Any]] = []
    for strategy, own in of.items():
        convention = of.get(lines.CONVENTION) if strategy != lines.CONVENTION else None
        rows.append(
            {
                "strategy": strategy,
                "chosen": own.points[0].positions[0],
                "rejected": own.points[0].positions[1],
                **runs.effect(own, settings),
                **runs.at_equal_length(own.points, measure, settings),
                **({} if convention is None else runs.against(own, convention, settings, "than_max_min_")),
            }
        )
    return runs.with_holm(rows, "than_max_min_")


def _draw(lie: Sequence[dict[str, Any]], trained: Sequence[dict[str, Any]], measure: str) -> Any:
    figure = output.figure(10 if trained else 5, 4)
    axes = figure.subplots(1, 2 if trained else 1, squeeze=False)[0]
    own = [row for row in lie if all(row[name] == lie[0][name] for name in ("reward_model", "seed"))]
    at = np.arange(len(own))
    axes[0].bar(at - 0.2, [row["share"] for row in own], 0.4, color=output.COLOURS[0], label="observed")
    axes[0].bar(at + 0.2, [row["normal_share"] for row in own], 0.4, color="lightgrey", label="normal pool")
    axes[0].set_xticks(at, [row["position"] for row in own], rotation=45)
    axes[0].set_title(f"share of prompts where it is the extreme, n = {own[0]['n']}", loc="left", fontsize=9)
    axes[0].legend(frameon=False)
    if trained:
        chosen, rejected = (list(dict.fromkeys(row[side] for row in trained)) for side in ("chosen", "rejected"))
        values = np.full((len(chosen), len(rejected)), np.nan)
        for row in trained:
            values[chosen.index(row["chosen"]), rejected.index(row["rejected"])] = row["mean"]
        output.heat(axes[1], values, chosen, rejected, runs.LEVEL[measure])
        axes[1].set(xlabel="rejected", ylabel="chosen")
        axes[1].set_title(f"{measure} against {trained[0]['baseline']}", loc="left", fontsize=9)
    return figure


if __name__ == "__main__":
    output.run(study, "extended_positions", str(__doc__))
