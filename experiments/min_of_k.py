"""The worst of how many? The rejected response as the worst of k = 2, 5, 10, 28 and all n, the chosen the best of n.

    python run.py experiment=min_of_k size=embedded
    python -m experiments.min_of_k runs/latest

The paper takes k = 5 and says that the rejected response should lie at mu - 2 sigma: in a normal pool the worst of 5
lies at mu - 1.16 sigma, and mu - 2 sigma takes k = 28. Rewards are exact over all subsets of k; policies are compared
on the held-out prompts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import lines, output, runs
from experiments.output import Beside, Found
from experiments.runs import Point, Settings
from sweetspot.distribution import length_slope, mean_sd, order_statistics, position_of_k
from sweetspot.distribution.subsets import best_of_k_by

LADDER = (2, 5, 10, 28)


def study(points: Sequence[Point], settings: Settings, measure: str | None) -> Found:
    """What the worst of k is worth in each pool, and what policies that were trained with it are."""
    measure = measure or runs.measure_of(points)
    worth = [row for point in runs.pools(points) for row in worst_of_k(point, settings)]
    trained = policies(points, settings, measure) if any(runs.evaluation(point, measure) for point in points) else []
    beside = [
        Beside(
            f"z of the worst of {row['k']} of {row['n']} ({row['reward_model']})",
            "the scalable strategy's rejected response" if row["k"] == 5 else output.UNKNOWN,
            f"{output.told(row, 'z_')}, normal pool {row['normal_z']:+.2f}, seed {row['seed']}",
        )
        for row in worth
    ]
    beside += [_slope(row) for row in worth if row["k"] == LADDER[0]]
    beside += [
        Beside(
            f"policy of (max, worst of {row['k']}) less that of worst of 5, {measure}",
            "k = 5 keeps improving with n",
            f"{lines.difference(row, 'than_5_')}; the policy {lines.policy(row)}",
        )
        for row in trained
        if "than_5_p" in row
    ]
    return Found({"worst_of_k": worth, "trained": trained}, {"min_of_k": _draw(worth, trained, measure)}, beside)


def _slope(row: dict[str, Any]) -> Beside:
    mean, low, high = (f"{row[f'z_per_token{end}']:+.4f}" for end in ("", "_low", "_high"))
    found = f"{mean} sd a token (95%: {low} to {high}; {row['z_per_token_prompts']} prompts), seed {row['seed']}"
    return Beside(f"reward of a longer response ({row['reward_model']})", output.UNKNOWN, found)


def worst_of_k(point: Point, settings: Settings) -> list[dict[str, Any]]:
    """A row a k: reward, z, tokens and margin to the best of n of the worst of k."""
    found, lengths = runs.scored(point), runs.tokens(point)
    n = point.n
    ks = [k for k in LADDER if k < n] + [n]
    columns = {
        "z_": position_of_k(found.z, "min", ks),
        "reward_": position_of_k(found.rewards, "min", ks),
        "margin_z_": position_of_k(found.z, "max", [n]) - position_of_k(found.z, "min", ks),
        "tokens_": best_of_k_by(found.rewards, lengths, ks, "min"),
    }
    slope = length_slope(found.z, lengths, settings.resamples, settings.seed)
    names = {"reward_model": point.part("rewards")["reward_model"], "seed": point.pool_seed, "n": n}
    return [
        {
            **names,
            "k": k,
            "normal_z": float(order_statistics(k)[0]) / mean_sd(n),
            "z_per_token": slope.mean,
            "z_per_token_low": slope.low,
            "z_per_token_high": slope.high,
            "z_per_token_prompts": slope.n,
            **{name: value for prefix, of in columns.items() for name, value in _interval(of[:, at], settings, prefix)},
        }
        for at, k in enumerate(ks)
    ]


def _interval(values: np.ndarray, settings: Settings, prefix: str) -> Any:
    return runs.interval(values, settings, prefix).items()


def worst_of(point: Point) -> int | None:
    """The k of a run that takes the best of n and the worst of k; None for any other."""
    chosen, rejected = point.positions
    if chosen != "max" or not rejected.startswith("min"):
        return None
    return point.n if rejected == "min" else int(rejected.removeprefix("min_of_"))


def policies(points: Sequence[Point], settings: Settings, measure: str) -> list[dict[str, Any]]:
    """A row a k: what its policy is worth, and the paired difference from k = 5, where both were trained."""
    trained = [point for point in runs.having(points, "evaluation", measure) if worst_of(point) is not None]
    groups = runs.grouped(trained, worst_of)
    of = {k: runs.group(own, measure) for k, own in groups.items()}
    rows = [
        {
            "k": k,
            **runs.effect(own, settings),
            **runs.at_equal_length(own.points, measure, settings),
            **(runs.against(own, of[5], settings, "than_5_") if 5 in of and k != 5 else {}),
        }
        for k, own in sorted(of.items())
    ]
    return runs.with_holm(rows, "than_5_")


def _draw(worth: Sequence[dict[str, Any]], trained: Sequence[dict[str, Any]], measure: str) -> Any:
    figure = output.figure(10 if trained else 6, 3.5)
    axes = figure.subplots(1, 2 if trained else 1, squeeze=False)[0]
    own = [row for row in worth if all(row[name] == worth[0][name] for name in ("reward_model", "seed"))]
    k = [row["k"] for row in own]
    output.bars(axes[0], k, own, "worst of k", 0, "z_")
    axes[0].plot(k, [row["normal_z"] for row in own], color="black", linestyle=":", label="normal pool")
    output.over_n(axes[0], k, "rejected response", "z")
    axes[0].set_xlabel("k")
    axes[0].legend(frameon=False)
    if trained:
        output.bars(axes[1], [row["k"] for row in trained], trained, "policy", 0)
        axes[1].axhline(runs.LEVEL[measure], color="black", linewidth=1, linestyle=":")
        output.over_n(axes[1], [row["k"] for row in trained], f"policy against {trained[0]['baseline']}", measure)
        axes[1].set_xlabel("k")
    return figure


if __name__ == "__main__":
    output.run(study, "min_of_k", str(__doc__))
