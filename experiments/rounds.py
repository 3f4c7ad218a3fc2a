"""Does sampling again from the trained policy help? Rewards of each round's samples, and the policy of the last round.

    python run.py experiment=rounds size=embedded
    python -m experiments.rounds runs/latest

Rounds are no part of the paper. A round's samples are those of the policy before it, on the same training prompts, by
the selecting reward model; the last policy is judged on held-out prompts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import lines, output, runs
from experiments.output import Beside, Found
from experiments.runs import Point, Settings


def study(points: Sequence[Point], settings: Settings, measure: str | None) -> Found:
    """A row for each run and round, and the last policies by their number of rounds."""
    measure = measure or runs.measure_of(points)
    turns = [row for point in runs.having(points, "rewards") for row in by_round(point, settings)]
    trained = policies(points, settings, measure) if any(runs.evaluation(point, measure) for point in points) else []
    beside = [
        Beside(
            f"{row['strategy']}, {row['rounds']} rounds, {measure}",
            "one round only",
            lines.policy(row)
            + (f"; than one round {lines.difference(row, 'than_one_')}" if "than_one_p" in row else ""),
        )
        for row in trained
    ]
    return Found({"rounds": turns, "trained": trained}, {"rounds": _draw(turns, trained, measure)}, beside)


def by_round(point: Point, settings: Settings) -> list[dict[str, Any]]:
    """A row a round: the mean reward of its samples, its change since the first round, lengths and pairs."""
    count = len(point.manifest["rounds"])
    means = [runs.scored(point, turn).rewards.mean(axis=1) for turn in range(count) if point.part("rewards", turn)]
    return [
        {
            "strategy": point.strategy,
            "rounds": point.config["rounds"],
            "seed": point.seed,
            "round": turn + 1,
            "sd": point.part("rewards", turn)["mean_sd"],
            "tokens": point.part("samples", turn)["mean_tokens"],
            "effective_samples": point.part("samples", turn)["effective_samples"],
            "kept": point.part("pairs", turn).get("kept"),
            **runs.interval(means[turn], settings),
            **runs.interval(means[turn] - means[0], settings, "since_first_"),
        }
        for turn in range(len(means))
    ]


def policies(points: Sequence[Point], settings: Settings, measure: str) -> list[dict[str, Any]]:
    """A row for each strategy and number of rounds: what the last policy is worth, and how far from one round."""
    groups = runs.grouped(runs.having(points, "evaluation", measure), lambda one: (one.strategy, one.config["rounds"]))
    of = {label: runs.group(own, measure) for label, own in groups.items()}
    rows: list[dict[str, Any]] = []
    for (strategy, rounds), own in sorted(of.items()):
        one = of.get((strategy, 1)) if rounds > 1 else None
        rows.append(
            {
                "strategy": strategy,
                "rounds": rounds,
                **runs.effect(own, settings),
                **runs.at_equal_length(own.points, measure, settings),
                **({} if one is None else runs.against(own, one, settings, "than_one_")),
            }
        )
    return runs.with_holm(rows, "than_one_")


def _draw(turns: Sequence[dict[str, Any]], trained: Sequence[dict[str, Any]], measure: str) -> Any:
    figure = output.figure(10 if trained else 5, 3.5)
    axes = figure.subplots(1, 2 if trained else 1, squeeze=False)[0]
    longest = max(row["rounds"] for row in turns)
    for number, strategy in enumerate(dict.fromkeys(row["strategy"] for row in turns)):
        own = [
            row
            for row in turns
            if (row["strategy"], row["rounds"], row["seed"]) == (strategy, longest, turns[0]["seed"])
        ]
        output.bars(axes[0], [row["round"] for row in own], own, strategy, number)
        if trained:
            judged = [row for row in trained if row["strategy"] == strategy]
            output.bars(axes[1], [row["rounds"] for row in judged], judged, strategy, number)
    for panel, title, unit, label in (
        (axes[0], "samples of each round", "selecting reward", "round"),
        (axes[-1], f"policy against {trained[0]['baseline'] if trained else ''}", measure, "rounds"),
    )[: len(axes)]:
        panel.set(xlabel=label, ylabel=unit, xticks=np.arange(1, longest + 1))
        panel.set_title(title, loc="left", fontsize=9)
        panel.legend(frameon=False)
    return figure


if __name__ == "__main__":
    output.run(study, "rounds", str(__doc__))
