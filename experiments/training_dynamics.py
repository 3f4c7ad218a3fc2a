"""How does training go with each pair? Loss, margin, held-out loss and log-probabilities by step.

    python run.py experiment=training_dynamics size=embedded
    python -m experiments.training_dynamics runs/latest

The held-out loss is that of pairs of prompts that are not trained on, by the same strategy. Likelihood displacement:
the log-probability of the chosen response falls too, though training prefers it (Razin et al. 2024, 2410.08847).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import output, runs
from experiments.output import Beside, Found
from experiments.runs import Point, Settings
from sweetspot.report.figures import moving_mean, smoothing_window

CURVES = ("loss", "rewards/margin", "rewards/accuracy", "logps/chosen", "logps/rejected")
REPORTED = {
    "(max, min)": "lowest loss, overfits",
    "(max, mu-2sigma)": "in between, generalises best",
    "(max, mu+2sigma)": "stalls, underfits",
}


def study(points: Sequence[Point], settings: Settings, measure: str) -> Found:  # noqa: ARG001
    """The curves of every run, and where they begin and end."""
    trained = runs.having(points, "policy")
    curves = [{**_names(point), **row} for point in trained for row in columns(runs.history(point))]
    ends = [{**_names(point), **summary(runs.history(point), point)} for point in trained]
    beside = [
        Beside(f"{row['strategy']}, n = {row['n']}", REPORTED.get(row["strategy"], output.UNKNOWN), _told(row))
        for row in ends
    ]
    return Found({"curves": curves, "ends": ends}, {"training_dynamics": _draw(curves)}, beside)


def _names(point: Point) -> dict[str, Any]:
    return {"strategy": point.strategy, "n": point.n, "loss_name": point.config["dpo"]["loss"], "seed": point.seed}


def columns(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The curve as rows of equal columns; what was not measured at a step is null."""
    names = [*CURVES, *(f"held_out/{name}" for name in CURVES)]
    return [{"step": row["step"], "epoch": row["epoch"], **{name: row.get(name) for name in names}} for row in history]


def summary(history: Sequence[Mapping[str, Any]], point: Point) -> dict[str, Any]:
    """Where the curve ends: means over its last epoch, the held-out loss, and the displacement over the epochs.

    chosen_shift, rejected_shift: the change of the mean log-probability of the trained pairs from the first epoch to
    the last, nats; None with one epoch. Both epochs see the same pairs.
    """
    last = [row for row in history if row["epoch"] > point.config["dpo"]["epochs"] - 1]
    first = [row for row in history if row["epoch"] <= 1]
    several = point.config["dpo"]["epochs"] > 1

    def shift(side: str) -> float | None:
        return _mean(last, f"logps/{side}") - _mean(first, f"logps/{side}") if several else None

    held_out = [row["held_out/loss"] for row in history if row.get("held_out/loss") is not None]
    return {
        "steps": len(history),
        "pairs": point.part("policy")["pairs"],
        "held_out_pairs": point.part("policy")["held_out"],
        **{name: _mean(last, name) for name in CURVES},
        "held_out/loss": held_out[-1] if held_out else None,
        "chosen_shift": shift("chosen"),
        "rejected_shift": shift("rejected"),
    }


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _told(row: Mapping[str, Any]) -> str:
    held_out = "none" if row["held_out/loss"] is None else f"{row['held_out/loss']:.3f} ({row['held_out_pairs']} pairs)"
    shift = "" if row["chosen_shift"] is None else f", chosen log-probability {row['chosen_shift']:+.2f} nats"
    return (
        f"last epoch: loss {row['loss']:.3f}, margin {row['rewards/margin']:.3f}, held-out loss {held_out}{shift}; "
        f"{row['pairs']} pairs, {row['steps']} steps, seed {row['seed']}; one run, no interval"
    )


def _draw(curves: Sequence[Mapping[str, Any]]) -> Any:
    figure = output.figure(12, 6)
    *panels, legend = figure.subplots(2, 3).ravel()
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in curves:
        if row["seed"] == curves[0]["seed"]:
            groups.setdefault(f"{row['strategy']} n={row['n']} {row['loss_name']}", []).append(row)
    for axes, name in zip(
        panels, ("loss", "held_out/loss", "rewards/margin", "logps/chosen", "logps/rejected"), strict=True
    ):
        for number, (label, rows) in enumerate(groups.items()):
            some = [row for row in rows if row[name] is not None]
            values = np.array([row[name] for row in some], dtype=float)
            smooth = values if name.startswith("held_out") else moving_mean(values, smoothing_window(len(values)))
            colour, style = output.COLOURS[number % 7], ("-", "--", ":", "-.")[number // 7 % 4]
            axes.plot([row["step"] for row in some], smooth, color=colour, linestyle=style, label=label)
        axes.set(xlabel="step")
        axes.set_title(name, loc="left", fontsize=9)
    legend.set_axis_off()
    legend.legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False, fontsize=6).set_in_layout(False)
    return figure


if __name__ == "__main__":
    output.run(study, "training_dynamics", str(__doc__))
