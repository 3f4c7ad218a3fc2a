"""Do a prompt's rewards look normal? The share of prompts that do, skew, kurtosis and tails by n, and order statistics.

    python run.py experiment=reward_normality size=embedded
    python -m experiments.reward_normality runs/latest

Nothing is trained. A test rejects more the more rewards it sees, so the share by n stands beside what a normal pool
gives: 95% by single tests.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import output, runs
from experiments.output import Beside, Found
from experiments.runs import Point, Settings
from sweetspot.distribution import ranked_z, shape_by_n
from sweetspot.distribution.shape import Shape
from sweetspot.report.effects import ladder
from sweetspot.statistics import ALPHA, Interval


def study(points: Sequence[Point], settings: Settings, measure: str | None) -> Found:  # noqa: ARG001
    """The shape of each pool's rewards."""
    shapes: list[dict[str, Any]] = []
    ranks: list[dict[str, Any]] = []
    for point in runs.pools(points):
        rewards = runs.scored(point).rewards
        names = {"reward_model": point.part("rewards")["reward_model"], "seed": point.pool_seed}
        for shape in shape_by_n(rewards, ladder(point.n), settings.resamples, settings.seed):
            shapes.append({**names, **flat(shape)})
        observed, predicted = ranked_z(rewards)
        for rank, (z, expected) in enumerate(zip(observed.T, predicted, strict=True), 1):
            ranks.append({**names, "n": point.n, "rank": rank, "predicted": expected, **runs.interval(z, settings)})
    tables = {"shape_by_n": shapes, "order_statistics": ranks}
    return Found(
        tables, {"reward_normality": _draw(shapes, ranks)}, [_beside(row) for row in shapes if _last(row, shapes)]
    )


def flat(shape: Shape) -> dict[str, float]:
    """A shape as columns: an interval is its mean under its own name, and low, high, and the prompts that it is of."""
    row: dict[str, float] = {}
    for name, value in vars(shape).items():
        ends = {"": "mean", "_low": "low", "_high": "high", "_prompts": "n"} if isinstance(value, Interval) else {}
        row |= {f"{name}{end}": getattr(value, of) for end, of in ends.items()} if ends else {name: value}
    return row


def _last(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> bool:
    same = [
        other["n"] for other in rows if (other["reward_model"], other["seed"]) == (row["reward_model"], row["seed"])
    ]
    return row["n"] == max(same)


def _beside(row: dict[str, Any]) -> Beside:
    shapiro, lilliefors = (output.shares(row, name) for name in ("shapiro", "lilliefors"))
    skew, kurtosis = (output.interval_of(row, name) for name in ("skew", "kurtosis"))
    found = (
        f"{shapiro} by Shapiro-Wilk, {lilliefors} by Lilliefors, in a normal pool {1 - ALPHA:.0%}; skew {skew}, excess "
        f"kurtosis {kurtosis}; below -2 sd {row['below']:.1%} of the rewards, above {row['above']:.1%}, in a normal "
        f"pool {row['normal_tail']:.1%} each; {row['shapiro_prompts']} prompts, seed {row['seed']}"
    )
    what = f"a prompt's {row['n']} rewards look normal ({row['reward_model']})"
    return Beside(what, "approximately normal, N(mu, sigma^2) for each prompt", found)


def _draw(shapes: Sequence[dict[str, Any]], ranks: Sequence[dict[str, Any]]) -> Any:
    figure = output.figure(10, 6)
    (looks, moments), (tails, order) = figure.subplots(2, 2)
    first = [row for row in shapes if all(row[name] == shapes[0][name] for name in ("reward_model", "seed"))]
    n = [row["n"] for row in first]
    for axes, names, level, title, unit in (
        (looks, ("shapiro", "lilliefors"), 1 - ALPHA, "prompts that look normal at 5%", "share"),
        (moments, ("skew", "kurtosis"), 0.0, "mean skew and excess kurtosis", ""),
        (tails, ("below", "above"), None, "rewards beyond 2 sd", "share"),
    ):
        for number, name in enumerate(names):
            rows = [{"mean": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]} for row in first]
            output.bars(axes, n, rows, name, number)
        if level is None:
            axes.plot(n, [row["normal_tail"] for row in first], color="black", linestyle=":", label="normal pool")
        else:
            axes.axhline(level, color="black", linestyle=":", linewidth=1, label="normal pool")
        output.over_n(axes, n, title, unit)
        axes.legend(frameon=False)
    own = [row for row in ranks if all(row[name] == ranks[0][name] for name in ("reward_model", "seed"))]
    predicted = np.array([row["predicted"] for row in own])
    order.plot(predicted, predicted, color="black", linestyle=":", linewidth=1)
    output.bars(order, predicted, own, "observed", 0)
    order.set(xlabel="z expected in a normal pool", ylabel="mean z")
    order.set_title("order statistics", loc="left", fontsize=9)
    return figure


if __name__ == "__main__":
    output.run(study, "reward_normality", str(__doc__))
