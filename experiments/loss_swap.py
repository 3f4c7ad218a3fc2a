"""Does the choice of the pair depend on the loss? The best pairs with further losses: the paper's future work.

    python run.py experiment=loss_swap size=embedded
    python -m experiments.loss_swap runs/latest

Losses with a reference have the recipe's beta. simpo, without one, has a scale of its own, and so the beta and margin
of `loss=simpo`; it is compared with dpo at the recipe's beta.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import lines, output, runs
from experiments.output import Beside, Found
from experiments.runs import Point, Settings


def study(points: Sequence[Point], settings: Settings, measure: str | None) -> Found:
    """Each loss with each pair: what its policy is worth, and the paired difference from dpo with the same pair."""
    measure = measure or runs.measure_of(points)
    rows = by_loss(points, settings, measure)
    beside = [
        Beside(
            f"{row['loss']} (beta {row['beta']:g}) with {row['strategy']}, n = {row['n']}, {measure}",
            "future work" if row["loss"] != "dpo" else output.UNKNOWN,
            lines.policy(row)
            + (
                f"; than dpo (beta {row['than_dpo_beta']:g}) {lines.difference(row, 'than_dpo_')}"
                if "than_dpo_p" in row
                else ""
            ),
        )
        for row in rows
    ]
    return Found({"loss_swap": rows}, {"loss_swap": _draw(rows, measure)}, beside)


def by_loss(points: Sequence[Point], settings: Settings, measure: str) -> list[dict[str, Any]]:
    """A row for each loss, pair and n; the difference is from dpo of the same beta, or of the only one there is."""

    def label(point: Point) -> tuple[str, float, float, str, int]:
        dpo = point.config["dpo"]
        return dpo["loss"], dpo["beta"], dpo["gamma"], point.strategy, point.n

    groups = runs.grouped(runs.having(points, "evaluation", measure), label)
    of = {setting: runs.group(own, measure) for setting, own in groups.items()}
    rows: list[dict[str, Any]] = []
    for (loss, beta, gamma, strategy, n), own in of.items():
        betas = [one[1] for one in of if one[0] == "dpo" and one[3:] == (strategy, n)] if loss != "dpo" else []
        row = {
            "loss": loss,
            "beta": beta,
            "gamma": gamma,
            "strategy": strategy,
            "n": n,
            **runs.effect(own, settings),
            **runs.at_equal_length(own.points, measure, settings),
        }
        if beta in betas or len(betas) == 1:
            same = beta if beta in betas else betas[0]
            found = runs.against(own, of["dpo", same, 0.0, strategy, n], settings, "than_dpo_")
            row |= {"than_dpo_beta": same, **found} if found else {}
        rows.append(row)
    return runs.with_holm(rows, "than_dpo_")


def _draw(rows: Sequence[dict[str, Any]], measure: str) -> Any:
    figure = output.figure(7, 4)
    axes = figure.subplots()
    losses = list(dict.fromkeys(row["loss"] for row in rows))
    strategies = list(dict.fromkeys(row["strategy"] for row in rows))
    for number, strategy in enumerate(strategies):
        own = [row for row in rows if row["strategy"] == strategy]
        at = np.array([losses.index(row["loss"]) for row in own]) + 0.15 * (number - (len(strategies) - 1) / 2)
        output.bars(axes, at, own, strategy, number, line="none")
    axes.axhline(runs.LEVEL[measure], color="black", linewidth=1, linestyle=":")
    axes.set_xticks(range(len(losses)), losses)
    axes.set(ylabel=measure)
    axes.set_title(f"policy against {rows[0]['baseline']}", loc="left", fontsize=9)
    axes.legend(frameon=False, fontsize=7).set_in_layout(False)
    return figure


if __name__ == "__main__":
    output.run(study, "loss_swap", str(__doc__))
