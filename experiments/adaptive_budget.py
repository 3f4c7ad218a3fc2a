"""What does an adaptive budget save? Its best responses beside those of uniform n on the same pool.

    python run.py experiment=adaptive_budget size=embedded
    python -m experiments.adaptive_budget runs/latest

The adaptive run's mean chosen reward is held against the curve of the best of k over all subsets of the uniform pool:
the uniform k that reaches the same, and the share of its samples that the adaptive run drew, for the prompts that have
a pair. Where the uniform run's own n does not reach it, all that is known is "n or more". The paper has none of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from experiments import output, runs
from experiments.output import Beside, Found
from experiments.runs import Point, Settings
from sweetspot.budget import allocate
from sweetspot.component import build
from sweetspot.distribution import position_of_k
from sweetspot.sampler import Sampler
from sweetspot.strategy import Floats


def study(points: Sequence[Point], settings: Settings, measure: str | None) -> Found:  # noqa: ARG001
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
        Beside(f"samples for the best of uniform n, seed {row['seed']}", "uniform n only", _told(row)) for row in rows
    ]
    return Found({"adaptive_budget": rows, "uniform_curve": curves}, {"adaptive_budget": _draw(rows, curves)}, beside)


def _told(row: Mapping[str, Any]) -> str:
    """Uniform n and the share of it; where the uniform run's own n is all that is known, as bounds."""
    beyond = {end: row[f"equal_n{end}"] >= row["uniform_n"] for end in ("_low", "_high")} | {"": row["beyond"]}

    def n(end: str) -> str:
        return f"{'>= ' if beyond[end] else ''}{row[f'equal_n{end}']:.1f}"

    def share(end: str, of: str) -> str:  # a large n makes a small share
        return f"{'<= ' if beyond[of] else ''}{row[f'share{end}']:.0%}"

    return (
        f"{row['drawn_mean']:.1f} a prompt do as {n('')} of uniform n (95%: {n('_low')} to {n('_high')}; "
        f"{row['prompts']} prompts): {share('', '')} (95%: {share('_low', '_high')} to {share('_high', '_low')})"
    )


def chosen_rewards(point: Point) -> dict[str, float]:
    """The reward of each prompt's first chosen response, by prompt id."""
    table = pq.read_table(
        point.store / point.part("pairs")["path"], columns=["prompt_id", "pair_index", "chosen_reward"]
    )
    return {row["prompt_id"]: row["chosen_reward"] for row in table.to_pylist() if row["pair_index"] == 0}


def drawn(point: Point) -> Floats:
    """How many samples an adaptive run drew of each prompt, [prompts], in the order of the reward matrix.

    The manifest has their sum alone, and a tile may hold more than the run asked for. So they are allotted again from
    the same rewards, which gives the same counts.
    """
    sampler: Sampler = build(point.config["sampler"], "sampler")
    chosen, rewards = point.config["strategy"]["chosen"], runs.scored(point).rewards
    budget = sampler.allocation(point.n, chosen)
    if budget is None:
        raise ValueError(f"an adaptive run must have sampler.budget=adaptive, got {point.folder}")
    counts, _ = allocate(budget, lambda _: rewards, len(rewards), sampler.tile_samples, chosen)
    return counts.astype(np.float64)


def saved(adaptive: Point, uniform: Point, settings: Settings) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What an adaptive run saves, and the uniform curve; all over the prompts that have a pair.

    A bootstrap draws prompts, with their adaptive and uniform figures together. `beyond`: the run's reward is above all
    of the curve, so that `equal_n` is a lower bound and `share` an upper one; so is a limit that equals `uniform_n`.
    """
    pool, own = runs.scored(uniform), chosen_rewards(adaptive)
    kept = [row for row, name in enumerate(pool.prompt_ids) if name in own]
    chosen = np.array([own[pool.prompt_ids[row]] for row in kept])
    counts = dict(zip(runs.prompt_ids(adaptive), drawn(adaptive), strict=True))
    samples = np.array([counts[pool.prompt_ids[row]] for row in kept])
    ks = list(range(1, uniform.n + 1))
    best = position_of_k(pool.rewards[kept], "max", ks)
    curve = best.mean(axis=0)
    weights = np.random.default_rng(settings.seed).multinomial(
        len(kept), np.full(len(kept), 1 / len(kept)), settings.resamples
    ) / len(kept)
    equal = float(_equal_n(chosen.mean()[None], curve[None])[0])
    of_draws = _equal_n(weights @ chosen, weights @ best)
    limits = [np.quantile(values, [0.025, 0.975]) for values in (of_draws, weights @ samples / of_draws)]
    (low, high), (least, most) = ((float(a), float(b)) for a, b in limits)
    names = {"seed": adaptive.seed, "most": adaptive.n, "uniform_n": uniform.n, "prompts": len(kept)}
    figures = {"drawn_mean": float(samples.mean()), "chosen": float(chosen.mean())}
    beyond = bool(chosen.mean() > curve[-1] and not np.isclose(chosen.mean(), curve[-1]))
    row = {**names, **figures, "equal_n": equal, "equal_n_low": low, "equal_n_high": high, "beyond": beyond}
    row |= {"share": figures["drawn_mean"] / equal, "share_low": least, "share_high": most}
    return row, [{"seed": adaptive.seed, "n": k, "chosen": float(mean)} for k, mean in zip(ks, curve, strict=True)]


def _equal_n(chosen: Floats, curve: Floats) -> Floats:
    """The uniform n at which each curve [draws, n] reaches the chosen reward [draws]; the last n where none does."""
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
