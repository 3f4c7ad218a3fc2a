"""Does preference training cost knowledge? Academic benchmarks of start and policies, by lm-eval.

    python run.py experiment=academic size=embedded
    python -m experiments.academic runs/latest

The tasks come from the hub; at size=tiny one task of a dozen made-up documents takes their place. lm-eval gives a
standard error for each model and no figures of single documents, so the interval of the difference takes the two as
independent: it is wider than a paired one would be.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import output
from experiments.output import Beside, Found
from experiments.runs import Point, Settings

Z = 1.959964  # of a 95% interval


def study(points: Sequence[Point], settings: Settings, measure: str | None) -> Found:  # noqa: ARG001
    """Every policy and task beside the start."""
    rows = [row for point in points for row in by_task(point)]
    if not rows:
        raise ValueError(f"the study needs runs that reached an lm_eval evaluation, got none of {len(points)}")
    beside = [
        Beside(
            f"{row['task']} ({row['metric']}, {row['fewshot']} shots), {row['strategy']}",
            "no loss on ARC, HellaSwag, TruthfulQA, GSM8K",
            f"{row['start']:.4f} to {row['value']:.4f}, {row['difference']:+.4f} (95%: {row['low']:+.4f} to "
            f"{row['high']:+.4f}; {row['documents']} documents, n {row['n']}, seed {row['seed']})",
        )
        for row in rows
    ]
    return Found({"academic": rows}, {"academic": _draw(rows)}, beside)


def by_task(point: Point) -> list[dict[str, Any]]:
    """A row a task: the policy's figure, the start's, and the difference with its interval (NaN without errors)."""
    found = next((one for one in point.manifest["evaluations"] if one["kind"] == "lm_eval"), None)
    if found is None:
        return []
    start = {row["task"]: row for row in found["start_tasks"]}
    rows: list[dict[str, Any]] = []
    for row in found["tasks"]:
        before = start[row["task"]]
        errors = [np.nan if one["standard_error"] is None else one["standard_error"] for one in (row, before)]
        difference, reach = row["value"] - before["value"], Z * math.hypot(*errors)
        rows.append(
            {
                "strategy": point.strategy,
                "n": point.n,
                "seed": point.seed,
                "task": row["task"],
                "metric": row["metric"],
                "fewshot": row["fewshot"],
                "documents": row["n"],
                "value": row["value"],
                "start": before["value"],
                "difference": difference,
                "low": difference - reach,
                "high": difference + reach,
            }
        )
    return rows


def _draw(rows: Sequence[dict[str, Any]]) -> Any:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = output.figure(6, 1.5 + 0.8 * len(tasks))
    axes = figure.subplots()
    strategies = list(dict.fromkeys(row["strategy"] for row in rows))
    for number, strategy in enumerate(strategies):
        own = [
            row for row in rows if (row["strategy"], row["seed"], row["n"]) == (strategy, rows[0]["seed"], rows[0]["n"])
        ]
        at = np.array([tasks.index(row["task"]) for row in own]) + 0.15 * (number - (len(strategies) - 1) / 2)
        middle, low, high = (np.array([row[name] for row in own]) for name in ("difference", "low", "high"))
        colour, marker = output.COLOURS[number % 7], output.MARKERS[number % 7]
        axes.errorbar(
            middle, at, xerr=np.vstack([middle - low, high - middle]), fmt=marker, color=colour, label=strategy
        )
    axes.axvline(0, color="black", linewidth=1, linestyle=":")
    axes.set(yticks=range(len(tasks)), yticklabels=tasks, xlabel="policy less start")
    axes.legend(frameon=False, fontsize=7)
    return figure


if __name__ == "__main__":
    output.run(study, "academic", str(__doc__))
