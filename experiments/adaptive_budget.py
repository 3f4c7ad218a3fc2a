"""What does an adaptive budget save? Its best responses beside those of uniform n on the same pool.

    python run.py experiment=adaptive_budget size=embedded
    python run.py experiment=adaptive_budget size=embedded sampler.budget=uniform
    python -m experiments.adaptive_budget ADAPTIVE_RUN UNIFORM_RUN

The adaptive run's mean chosen reward is held against the curve of the best of k over all subsets of the uniform pool:
the uniform k that reaches the same, and the share of its samples that the adaptive run drew. The paper has none of it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from experiments import output, runs
from experiments.output import Beside, Found
from experiments.runs import Point, Settings
from sweetspot.distribution import position_of_k
from sweetspot.strategy import Floats


def study(points: Sequence[Point], settings: Settings, measure: str) -> Found:  # noqa: ARG001
    """Every adaptive run beside the largest uniform run on its pool.

    Raises:
        ValueError: one line, where an adaptive run has no uniform one beside it.
    """
    budgets = runs.grouped(runs.having(points, "pairs"), lambda point: point.config["sampler"]["budget"])
    if not {"adaptive", "uniform"} <= budgets.keys():
        raise ValueError(f"adaptive_budget needs an adaptive and a uniform run, got {', '.join(budgets)}")
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for point in budgets["adaptive"]:
        uniform = max(
            (one for one in budgets["uniform"] if one.part("rewards")["key"] == point.part("rewards")["key"]),
            key=lambda one: one.n,
            default=None,
        )
        if uniform is None:
            raise ValueError(f"adaptive_budget needs a uniform run on the pool of {point.folder}, got none")
        row, curve = saved(point, uniform, settings)
        rows.append(row)
        curves += curve
    beside = [
        Beside(
            f"samples for the best of uniform n, seed {row['seed']}",
            "uniform n only",
            f"{row['drawn_mean']:.1f} a prompt do as uniform n = {row['equal_n']:.1f} (95%: {row['equal_low']:.1f} "
            f"to {row['equal_high']:.1f}; {row['prompts']} prompts): {output.shares(row, 'share')}",
        )
        for row in rows
    ]
    return Found({"adaptive_budget": rows, "uniform_curve": curves}, {"adaptive_budget": _draw(rows, curves)}, beside)


def chosen_rewards(point: Point) -> dict[str, float]:
    """The reward of each prompt's first chosen response, by prompt id."""
    table = pq.read_table(
        point.store / point.part("pairs")["path"], columns=["prompt_id", "pair_index", "chosen_reward"]
    )
    return {row["prompt_id"]: row["chosen_reward"] for row in table.to_pylist() if row["pair_index"] == 0}


def saved(adaptive: Point, uniform: Point, settings: Settings) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What an adaptive run saves, and the uniform curve; both over the prompts that have a pair.

    A bootstrap draws prompts, with their adaptive and uniform figures together.
    """
    pool, own = runs.scored(uniform), chosen_rewards(adaptive)
    kept = [row for row, name in enumerate(pool.prompt_ids) if name in own]
    chosen = np.array([own[pool.prompt_ids[row]] for row in kept])
    ks = list(range(1, uniform.n + 1))
    best = position_of_k(pool.rewards[kept], "max", ks)
    weights = np.random.default_rng(settings.seed).multinomial(
        len(kept), np.full(len(kept), 1 / len(kept)), settings.resamples
    )
    drawn = adaptive.part("samples")["drawn"] / adaptive.part("samples")["n_prompts"]
    equal = _equal_n(chosen.mean()[None], best.mean(axis=0)[None])[0]
    low, high = np.quantile(_equal_n(weights @ chosen / len(kept), weights @ best / len(kept)), [0.025, 0.975])
    names = {"seed": adaptive.seed, "prompts": len(kept), "drawn_mean": drawn, "most": adaptive.n}
    row = {
        **names,
        "chosen": float(chosen.mean()),
        "equal_n": float(equal),
        "equal_low": float(low),
        "equal_high": float(high),
    }
    row |= {"share": drawn / equal, "share_low": drawn / high, "share_high": drawn / low}
    return row, [
        {"seed": adaptive.seed, "n": k, "chosen": float(mean)} for k, mean in zip(ks, best.mean(axis=0), strict=True)
    ]


def _equal_n(chosen: Floats, curve: Floats) -> Floats:
    """The uniform n at which each curve [draws, n] reaches the chosen reward [draws]; at most n."""
    n = np.arange(1, curve.shape[1] + 1)
    return np.array([np.interp(reward, row, n) for reward, row in zip(chosen, curve, strict=True)])


def _draw(rows: Sequence[dict[str, Any]], curves: Sequence[dict[str, Any]]) -> Any:
    figure = output.figure(5, 3.5)
    axes = figure.subplots()
    own = [row for row in curves if row["seed"] == curves[0]["seed"]]
    axes.plot([row["n"] for row in own], [row["chosen"] for row in own], color=output.COLOURS[0], label="uniform")
    for row in rows:
        axes.plot(
            [row["drawn_mean"]], [row["chosen"]], "s", color=output.COLOURS[1], label=f"adaptive, seed {row['seed']}"
        )
    axes.set(xlabel="samples per prompt, mean", ylabel="mean chosen reward")
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    output.run(study, "adaptive_budget", str(__doc__))
