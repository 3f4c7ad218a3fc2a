"""Does a larger n help? Rewards of chosen and rejected by n from one pool, and policies trained at each n.

    python run.py experiment=sample_scaling size=embedded
    python -m experiments.sample_scaling runs/latest

The selection half needs one pool: what n samples would give is estimated over all subsets of n of it, unbiased, with
bands from a bootstrap over prompts. The trained half compares policies on the held-out prompts: with the start, with
max-min of the same n, and with the same strategy at the smallest n. Beside the judge stands the selecting reward model,
where the evaluation scored by both: where the selecting reward rises with n and the judge's does not, the policy
over-optimises.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import lines, output, runs
from experiments.output import Beside, Found
from experiments.runs import Point, Settings
from sweetspot.distribution import Curve
from sweetspot.report.effects import by_n

STRATEGIES = {"max_min": "min", "scalable": "min_of_5", "mu_minus_2sigma": "mu-2sigma"}  # their rejected positions
SMALLEST_N = "than_smallest_n_"  # of the same strategy
PAPER_N = (5, 20, 50, 100, 200, 400)
CURVES = {  # AlpacaEval 2 LC of Llama-3-8B-Instruct by n, read off a figure of the paper: one recipe
    lines.CONVENTION: {5: 45, 50: 43, 100: 42, 200: 41},
    "(max, min_of_5)": {5: 45, 50: 47, 100: 48, 200: 49},
}
TABLE = {(lines.CONVENTION, 400): 42.0, ("(max, min_of_5)", 400): 49.1}  # the same, of its table
SIMPO = 48.2  # of its table, max-min at n = 5 by SimPO's recipe: not to be compared with the curves


def study(points: Sequence[Point], settings: Settings, measure: str | None) -> Found:
    """The selection half of each pool, and the trained half where policies were judged."""
    measure = measure or runs.measure_of(points)
    positions = ("max", *STRATEGIES.values(), "random")
    selection = [row for point in runs.pools(points) for row in by_n(point, positions, settings)]
    evaluated = any(runs.evaluation(point, measure) for point in points)
    trained = policies(points, settings, measure) if evaluated else []
    beside = [*_selected(selection), *_trained(trained, measure)]
    tables = {"selection_by_n": selection, "trained_by_n": trained}
    return Found(tables, {"sample_scaling": _draw(selection, trained, measure)}, beside)


def policies(points: Sequence[Point], settings: Settings, measure: str) -> list[dict[str, Any]]:
    """A row for each strategy and n: what its policy is worth, the paired differences from max-min of the same n and
    from its own at the smallest n, and what the selecting reward model says (`selecting`)."""
    groups = runs.grouped(runs.having(points, "evaluation", measure), lambda point: (point.n, point.strategy))
    of = {label: runs.group(own, measure) for label, own in groups.items()}
    smallest = {strategy: n for n, strategy in sorted(of, reverse=True)}
    rows: list[dict[str, Any]] = []
    for (n, strategy), own in sorted(of.items()):
        others = {"than_max_min_": (n, lines.CONVENTION), SMALLEST_N: (smallest[strategy], strategy)}
        rows.append(
            {
                "n": n,
                "strategy": strategy,
                **runs.effect(own, settings),
                **runs.at_equal_length(own.points, measure, settings),
                **selecting(own.points),
            }
        )
        for prefix, label in others.items():
            if label in of and label != (n, strategy):
                rows[-1] |= runs.against(own, of[label], settings, prefix)
    return runs.with_holm(runs.with_holm(rows, "than_max_min_"), SMALLEST_N)


def selecting(points: Sequence[Point]) -> dict[str, float]:
    """The selecting reward model's change of mean reward from start to policy, over the seeds, where all evaluations
    measured it; {} else.

    The store has the judge's rewards prompt by prompt and of this one the mean and interval alone, of each run. So the
    limits are means of those of the seeds: with one seed its own, with several wider than need be.
    """
    of = [one for point in points for one in runs.judged(point).get("judges", []) if one["role"] == "selecting"]
    if len(of) < len(points) or any(one[end] is None for one in of for end in ("low", "high")):
        return {}
    columns = {"selecting": "difference", "selecting_low": "low", "selecting_high": "high"}
    return {column: float(np.mean([one[name] for one in of])) for column, name in columns.items()}


def _selected(rows: Sequence[dict[str, Any]]) -> list[Beside]:
    at = {(row["reward_model"], row["seed"], row["position"], row["n"]): row for row in rows}
    told: list[Beside] = []
    for (model, seed, position, n), row in at.items():
        if position in ("min", "min_of_5") and n in PAPER_N:
            normal = at[model, seed, "max", n]["normal_z"] - row["normal_z"]
            band = (
                f"95%: {row['margin_z_low']:.2f} to {row['margin_z_high']:.2f}; {row['prompts']} prompts, seed {seed}"
            )
            found = f"{row['margin_z_mean']:.2f} sd ({band}), in a normal pool {normal:.2f}"
            told.append(Beside(f"max less {position} at n = {n} ({model})", output.UNKNOWN, found))
    return told


def _trained(rows: Sequence[dict[str, Any]], measure: str) -> list[Beside]:
    told: list[Beside] = []
    for row in rows:
        found = lines.policy(row)
        if "selecting" in row:
            found += f"; by the selecting reward model {output.interval_of(row, 'selecting')}"
        if "than_max_min_p" in row:
            found += f"; than max-min {lines.difference(row, 'than_max_min_')}"
        if f"{SMALLEST_N}p" in row:
            found += f"; than its own at the smallest n {lines.difference(row, SMALLEST_N)}"
        told.append(
            Beside(f"{row['strategy']} at n = {row['n']}, {measure}", reported(row["strategy"], row["n"]), found)
        )
    return told


def reported(strategy: str, n: int) -> str:
    """What the paper tells of a strategy's policy at n."""
    if (strategy, n) in TABLE:
        return f"{TABLE[strategy, n]} LC (start 26.0)"
    if n not in CURVES.get(strategy, {}):
        return output.UNKNOWN
    other = f"; by SimPO's recipe {SIMPO}" if (strategy, n) == (lines.CONVENTION, 5) else ""
    return f"{CURVES[strategy][n]} LC, read off a figure{other} (start 26.0)"


def _draw(selection: Sequence[dict[str, Any]], trained: Sequence[dict[str, Any]], measure: str) -> Any:
    figure = output.figure(12 if trained else 9, 4)
    axes = figure.subplots(1, 3 if trained else 2)
    own = [row for row in selection if all(row[name] == selection[0][name] for name in ("reward_model", "seed"))]
    for panel, prefix, title, unit in (
        (axes[0], "z_", "chosen and rejected", "z"),
        (axes[1], "margin_z_", "max less rejected", "sd"),
    ):
        for number, (position, rows) in enumerate(_by(own, "position").items()):
            if prefix == "margin_z_" and position == "max":
                continue
            output.band(panel, _curve(rows, prefix), position, number)
        output.over_n(panel, sorted({row["n"] for row in own}), title, unit)
        panel.legend(frameon=False, fontsize=7)
    if trained:
        positions, strategies = list(_by(own, "position")), _by(trained, "strategy")
        for place, (strategy, rows) in enumerate(strategies.items()):
            shift = 1.06 ** (place - (len(strategies) - 1) / 2)  # side by side: n is on a logarithmic axis
            rejected = strategy.strip("()").rpartition(", ")[2]  # has its colour in the other panels
            number = positions.index(rejected) if rejected in positions else len(positions) + place
            output.bars(axes[2], [row["n"] * shift for row in rows], rows, strategy, number)
        output.over_n(
            axes[2], sorted({row["n"] for row in trained}), f"policy against {trained[0]['baseline']}", measure
        )
        axes[2].legend(frameon=False, fontsize=7)
    return figure


def _by(rows: Sequence[dict[str, Any]], name: str) -> dict[str, list[dict[str, Any]]]:
    return {value: [row for row in rows if row[name] == value] for value in dict.fromkeys(row[name] for row in rows)}


def _curve(rows: Sequence[dict[str, Any]], prefix: str) -> Curve:
    mean, low, high = (np.array([row[f"{prefix}{name}"] for row in rows]) for name in ("mean", "low", "high"))
    return Curve(np.array([row["n"] for row in rows]), mean, low, high, np.array([row["prompts"] for row in rows]))


if __name__ == "__main__":
    output.run(study, "sample_scaling", str(__doc__))
