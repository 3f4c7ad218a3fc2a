"""Does the finding hold for another reward model? Two reward models on the same samples, and policies by each.

    python run.py experiment=reward_model_swap size=paper
    python -m experiments.reward_model_swap runs/latest

Without training (until=select, as at size=embedded, whose second reward model is the judge of all other studies) it
tells how far two reward models agree within a prompt, which pairs they share, and what the best of n by one is worth to
the other: the over-optimisation that grows with n.
"""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np

from experiments import lines, output, runs
from experiments.output import Beside, Found
from experiments.runs import Point, Settings
from sweetspot.distribution import best_of_k_by, best_of_n_kl
from sweetspot.distribution.positions import NONE
from sweetspot.report.effects import ladder
from sweetspot.strategy import Floats


def study(points: Sequence[Point], settings: Settings, measure: str | None) -> Found:
    """Agreement, over-optimisation and shared pairs of reward models on one pool, and policies of each.

    Raises:
        ValueError: one line, where no samples were scored by two reward models.
    """
    measure = measure or runs.measure_of(points)
    both = [pair for group in _same_samples(points) for pair in permutations(group, 2)]
    if not both:
        names = ", ".join(dict.fromkeys(_name(point) for point in runs.having(points, "rewards")))
        raise ValueError(f"reward_model_swap needs runs of two reward models on the same samples, got {names}")
    agree = [agreement(*pair, settings) for pair in both]
    best = [row for pair in both for row in over_optimisation(*pair, settings)]
    shared = overlaps(points, settings)
    trained = policies(points, settings, measure) if any(runs.evaluation(point, measure) for point in points) else []
    beside = [
        Beside(
            f"correlation within a prompt of {row['first']} and {row['second']}",
            output.UNKNOWN,
            f"{output.told(row)}, n = {row['n']}, seed {row['seed']}",
        )
        for row in agree
        if row["first"] < row["second"]
    ]
    beside += [
        Beside(
            f"{row['strategy']} by {row['reward_model']}, n = {row['n']}, {measure}",
            "the same trend with Skywork as with ArmoRM",
            lines.policy(row),
        )
        for row in trained
    ]
    return Found(
        {"agreement": agree, "over_optimisation": best, "overlap": shared, "trained": trained},
        {"over_optimisation": _draw(best)},
        beside,
    )


def _name(point: Point) -> str:
    return point.part("rewards")["reward_model"]


def _same_samples(points: Sequence[Point]) -> list[list[Point]]:
    """The pools of rewards that are of the same samples of the same prompts."""

    def label(point: Point) -> tuple[str, str, int]:
        return point.part("samples")["key"], point.part("samples")["prompts"], point.n

    return list(runs.grouped(runs.pools(points), label).values())


def agreement(first: Point, second: Point, settings: Settings) -> dict[str, Any]:
    """The correlation of two reward models over a prompt's responses, as the mean over prompts."""
    a, b = (runs.scored(point).z for point in (first, second))
    n = a.shape[1]
    correlation = (a * b).sum(axis=1) / (n - 1)  # of z with ddof 1; NaN where one is constant or not scored
    names = {"first": _name(first), "second": _name(second), "seed": first.pool_seed, "n": n}
    return {**names, **runs.interval(correlation, settings)}


def over_optimisation(selecting: Point, gold: Point, settings: Settings) -> list[dict[str, Any]]:
    """A row an n: z of the best of n by one reward model, to itself and to the other."""
    own, other = (runs.scored(point).z for point in (selecting, gold))
    own = np.where(np.isfinite(other), own, np.nan)
    ks = ladder(own.shape[1])
    sides: dict[str, Floats] = {"selecting_": best_of_k_by(own, own, ks), "gold_": best_of_k_by(own, other, ks)}
    names = {"selecting": _name(selecting), "gold": _name(gold), "seed": selecting.pool_seed}
    return [
        {
            **names,
            "n": k,
            "kl": float(best_of_n_kl(k)),
            **runs.interval(sides["selecting_"][:, at], settings, "selecting_"),
            **runs.interval(sides["gold_"][:, at], settings, "gold_"),
        }
        for at, k in enumerate(ks)
    ]


def overlaps(points: Sequence[Point], settings: Settings) -> list[dict[str, Any]]:
    """A row for two reward models and a strategy: the share of prompts with the same pair, of those where both have
    one, with its interval over prompts. Reward models that scored other samples or prompts are not compared."""
    rows: list[dict[str, Any]] = []
    selected = [point for point in points if point.part("pairs")]
    for (strategy, n, seed, _), group in runs.grouped(selected, _of_samples).items():
        named = runs.grouped(group, _name)
        for first, second in permutations(named, 2):
            if first < second:
                pairs = [runs.pair_picks(named[name][0]) for name in (first, second)]
                both = (np.stack(pairs) != NONE).all(axis=(0, 1))
                same = np.where(both, (pairs[0] == pairs[1]).all(axis=0), np.nan)
                found = runs.interval(same, settings)
                names = {"first": first, "second": second, "strategy": strategy, "n": n, "seed": seed}
                share = {"same_pair": found["mean"], "same_pair_low": found["low"], "same_pair_high": found["high"]}
                rows.append({**names, **share, "prompts": found["prompts"]})
    return rows


def _of_samples(point: Point) -> tuple[str, int, int, tuple[str, str]]:
    """The strategy, n and seed of a run, and the samples and prompts that it selected from."""
    samples = point.part("samples")
    return point.strategy, point.n, point.seed, (samples["key"], samples["prompts"])


def policies(points: Sequence[Point], settings: Settings, measure: str) -> list[dict[str, Any]]:
    """A row for each reward model, strategy and n: what the policy is worth, and who judged it."""
    groups = runs.grouped(runs.having(points, "evaluation", measure), lambda one: (_name(one), one.strategy, one.n))
    return [
        {
            "reward_model": model,
            "strategy": strategy,
            "n": n,
            "judge": runs.evaluation(group[0], measure).get("judge_key"),
            **runs.effect(runs.group(group, measure), settings),
            **runs.at_equal_length(group, measure, settings),
        }
        for (model, strategy, n), group in groups.items()
    ]


def _draw(rows: Sequence[dict[str, Any]]) -> Any:
    figure = output.figure(6, 4)
    axes = figure.subplots()
    for number, (selecting, gold) in enumerate(dict.fromkeys((row["selecting"], row["gold"]) for row in rows)):
        own = [
            row for row in rows if (row["selecting"], row["gold"], row["seed"]) == (selecting, gold, rows[0]["seed"])
        ]
        n = [row["n"] for row in own]
        output.bars(axes, n, own, f"best by {selecting}, to itself", number, "selecting_")
        output.bars(axes, n, own, f"best by {selecting}, to {gold}", number, "gold_", "--")
    output.over_n(
        axes, sorted({row["n"] for row in rows}), "the best of n, to the one that chose it and to another", "z"
    )
    axes.legend(frameon=False, fontsize=7)
    return figure


if __name__ == "__main__":
    output.run(study, "reward_model_swap", str(__doc__))
