"""How does training go with each pair? Loss, margin, held-out loss and log-probabilities by step.

    python run.py experiment=training_dynamics size=embedded
    python -m experiments.training_dynamics runs/latest

The held-out loss is that of pairs of prompts that are not trained on, by the same strategy. Likelihood displacement:
the log-probability of the chosen response falls too, though training prefers it (Razin et al. 2024, 2410.08847). It is
measured from the reference, as the reward of a pair is: log pi - log pi_ref of its responses.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import output, runs
from experiments.output import Beside, Found
from experiments.runs import Point, Settings
from sweetspot.dpo import REFERENCE_FREE
from sweetspot.report.figures import moving_mean, smoothing_window
from sweetspot.statistics import ALPHA

CURVES = ("loss", "rewards/margin", "rewards/accuracy", "logps/chosen", "logps/rejected")
SHIFTS = {"chosen_shift": "rewards/chosen", "rejected_shift": "rewards/rejected"}
ENDS = (*CURVES, "held_out/loss", *SHIFTS)
KIND = ("model", "strategy", "n", "loss_name", "beta", "gamma")  # of runs that differ in their seed alone
REPORTED = {
    "(max, min)": "lowest loss, overfits",
    "(max, mu-2sigma)": "in between, generalises best",
    "(max, mu+2sigma)": "stalls, underfits",
}


def study(points: Sequence[Point], settings: Settings, measure: str | None) -> Found:  # noqa: ARG001
    """The curves of every run, where they end, and the mean of those ends over seeds.

    Raises:
        ValueError: one line, where runs of one KIND differ in more than their seed.
    """
    trained = runs.having(points, "policy")
    for group in runs.grouped(trained, lambda point: _kind(_names(point))).values():
        if other := runs.differing([_training(point) for point in group]):
            raise ValueError(
                f"runs that are averaged must differ in their seed alone, got {group[0].strategy}, n = {group[0].n}, "
                f"seeds {runs.seeds(group)} with {other}: read other settings apart"
            )
    histories = [(_names(point), point, runs.history(point)) for point in trained]
    curves = [{**names, **row} for names, _, history in histories for row in columns(history)]
    ends = [{**names, **summary(history, point)} for names, point, history in histories]
    means = over_seeds(ends)
    beside = [
        Beside(f"{row['strategy']}, n = {row['n']}", REPORTED.get(row["strategy"], output.UNKNOWN), _told(row))
        for row in means
    ]
    tables = {"curves": curves, "ends": ends, "ends_over_seeds": means}
    return Found(tables, {"training_dynamics": _draw(curves)}, beside)


def _names(point: Point) -> dict[str, Any]:
    model, dpo = point.config["model"]["name"], point.config["dpo"]
    loss = {"loss_name": dpo["loss"], "beta": dpo["beta"], "gamma": dpo["gamma"]}
    return {"model": model, "strategy": point.strategy, "n": point.n, **loss, "seed": point.seed}


def _training(point: Point) -> dict[str, str]:
    """What made a policy but its seed, however it is judged."""
    of = runs.settings_of(point, "reward").items()
    return {key: value for key, value in of if not key.startswith(("eval.", "judge."))}


def _kind(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in KIND)


def columns(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The curve as rows of equal columns; what was not measured at a step is null."""
    names = [*CURVES, *(f"held_out/{name}" for name in CURVES)]
    return [{"step": row["step"], "epoch": row["epoch"], **{name: row.get(name) for name in names}} for row in history]


def summary(history: Sequence[Mapping[str, Any]], point: Point) -> dict[str, Any]:
    """Where the curve ends: means over the pairs of its last epoch, the last held-out loss, and the displacement.

    A row of the history is a mean over the pairs of its step. All steps have `dpo.batch_size` pairs but the last of an
    epoch, which has what is left of the pairs, so that a mean over pairs is exact.

    chosen_shift, rejected_shift: the mean of log pi - log pi_ref over the trained pairs, nats a response, exact but for
    when it is taken: an epoch measures each pair once, before the step that trains on it, and so the mean is one of
    policies along the last epoch (the only one of an `epochs` of 1, which begins at 0), and lies nearer to 0 than that
    of the finished policy. An unchanged policy gives 0 where the reference is its start. None for a loss without a
    reference.
    """
    dpo, pairs = point.config["dpo"], point.part("policy")["pairs"]
    steps = math.ceil(pairs / dpo["batch_size"])  # of an epoch
    weights = [*[dpo["batch_size"]] * (steps - 1), pairs - dpo["batch_size"] * (steps - 1)]

    def mean(name: str) -> float:
        return float(np.average([row[name] for row in history[-steps:]], weights=weights))

    held_out = [row["held_out/loss"] for row in history if row.get("held_out/loss") is not None]
    free = dpo["loss"] in REFERENCE_FREE
    return {
        "steps": len(history),
        "pairs": pairs,
        "held_out_pairs": point.part("policy")["held_out"],
        **{name: mean(name) for name in CURVES},
        "held_out/loss": held_out[-1] if held_out else None,
        **{name: None if free else mean(reward) / dpo["beta"] for name, reward in SHIFTS.items()},
    }


def over_seeds(ends: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for the runs that differ in their seed alone: the mean of each end.

    Of several runs also the sd over them and the 95% interval of the mean over seeds, on these prompts, by Student's t:
    `_sd`, `_low` and `_high`. `steps`, `pairs` and `held_out_pairs` are those of all runs together.
    """
    from scipy import stats

    rows: list[dict[str, Any]] = []
    for kind, group in runs.grouped(ends, _kind).items():
        seeds = sorted(row["seed"] for row in group)
        told = ", ".join(map(str, seeds))
        if len({*seeds}) < len(seeds):
            raise ValueError(
                f"runs that are averaged must differ in their seed alone, got {kind[1]}, n = {kind[2]}, seeds {told}: "
                "read other settings apart"
            )
        counts = {name: sum(row[name] for row in group) for name in ("steps", "pairs", "held_out_pairs")}
        found: dict[str, Any] = {**dict(zip(KIND, kind, strict=True)), "seeds": told, "runs": len(group), **counts}
        for name in ENDS:
            values = [row[name] for row in group if row[name] is not None]
            found[name] = float(np.mean(values)) if values else None
            if len(values) > 1:
                sd = float(np.std(values, ddof=1))
                reach = float(stats.t.ppf(1 - ALPHA / 2, len(values) - 1)) * sd / math.sqrt(len(values))
                found |= {f"{name}_sd": sd, f"{name}_low": found[name] - reach, f"{name}_high": found[name] + reach}
        rows.append(found)
    return rows


def _told(row: Mapping[str, Any]) -> str:
    def shown(name: str, form: str) -> str:
        if f"{name}_low" not in row:
            return format(row[name], form)
        low, high = (format(row[f"{name}_{end}"], form) for end in ("low", "high"))
        return f"{row[name]:{form}} (95%: {low} to {high}; sd {row[f'{name}_sd']:{form.lstrip('+')}})"

    shifts = row["chosen_shift"] is not None
    parts = [f"loss {shown('loss', '.3f')}", f"margin {shown('rewards/margin', '.3f')}"]
    parts += [f"held-out loss {shown('held_out/loss', '.3f')}" if row["held_out/loss"] is not None else "none held out"]
    parts += [f"chosen log-probability {shown('chosen_shift', '+.2f')} nats from the reference"] if shifts else []
    counts = f"{row['pairs']} pairs, {row['held_out_pairs']} held out, {row['steps']} steps"
    one, many = f", seed {row['seeds']}; one run, no interval", f" in all of {row['runs']} runs, seeds {row['seeds']}"
    return f"last epoch: {', '.join(parts)}; {counts}{many if row['runs'] > 1 else one}"


def _draw(curves: Sequence[Mapping[str, Any]]) -> Any:
    figure = output.figure(12, 6)
    *panels, legend = figure.subplots(2, 3).ravel()
    of_runs = runs.grouped(curves, lambda row: (_kind(row), row["seed"]))
    kinds = list(dict.fromkeys(kind for kind, _ in of_runs))
    for axes, name in zip(
        panels, ("loss", "held_out/loss", "rewards/margin", "logps/chosen", "logps/rejected"), strict=True
    ):
        told: set[int] = set()  # runs that differ in their seed have one colour and one line in the legend
        for (kind, _), rows in of_runs.items():
            number, some = kinds.index(kind), [row for row in rows if row[name] is not None]
            label = "_" if number in told else f"{rows[0]['strategy']} n={rows[0]['n']} {rows[0]['loss_name']}"
            told.add(number)
            values = np.array([row[name] for row in some], dtype=float)
            smooth = values if name.startswith("held_out") else moving_mean(values, smoothing_window(len(values)))
            colour, style = output.COLOURS[number % 7], ("-", "--", ":", "-.")[number // 7 % 4]
            axes.plot([row["step"] for row in some], smooth, color=colour, linestyle=style, label=label)
        if all(row[name] is None for row in curves):
            axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes)
        axes.set(xlabel="step")
        axes.set_title(name, loc="left", fontsize=9)
    legend.set_axis_off()
    legend.legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False, fontsize=6).set_in_layout(False)
    return figure


if __name__ == "__main__":
    output.run(study, "training_dynamics", str(__doc__))
