"""Which pair is best? The paper's 21 pairs of seven points as a 7 x 7 heat map, beside the random baseline.

    python run.py experiment=pair_grid size=embedded
    python -m experiments.pair_grid runs/latest

Each cell is the policy's change from the start on the held-out prompts; marked cells differ from the random pair by a
paired test (5%, Holm over the pairs). Beside it: where the chosen and rejected responses really lie, which positions
are one and the same response, and how many pairs two strategies share.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import output, runs
from experiments.output import Beside, Found
from experiments.runs import Point, Settings
from sweetspot.distribution import at_picks, collisions, expected_position, mean_sd, pair_overlap, picks, realised_z
from sweetspot.report.effects import BASELINE, effects
from sweetspot.statistics import ALPHA
from sweetspot.strategy import POINTS, Floats

REPORTED = {"(mu+2sigma, mu-2sigma)": "48.18 LC at n = 200", "(mu+2sigma, mu+sigma)": "34.63 LC at n = 200"}


def study(points: Sequence[Point], settings: Settings, measure: str) -> Found:
    """The grid of each model and n, over all seeds."""
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    overlaps: list[dict[str, Any]] = []
    beside: list[Beside] = []
    for (model, n), group in runs.grouped(runs.having(points, "evaluation"), _model_and_n).items():
        found = grid(group, settings, measure)
        names = {"model": model, "n": n}
        rows += [{**names, **row} for row in found]
        overlaps += [{**names, **row} for row in overlap(group)]
        figures[f"pair_grid_{model}_{n}"] = _draw(found, f"{model}, n = {n}", measure)
        beside += compared(found, n)
    tables = {"pair_grid": rows, "pair_overlap": overlaps, "collisions": collided(points)}
    return Found(tables, figures, beside)


def _model_and_n(point: Point) -> tuple[str, int]:
    return point.config["model"]["name"], point.n


def grid(points: Sequence[Point], settings: Settings, measure: str) -> list[dict[str, Any]]:
    """A row a strategy: what its policy is worth beside the random pair's (`effects`), and where the pair lies."""
    groups = runs.grouped(points, lambda point: point.strategy)
    return [{**row, **realised(groups[row["strategy"]], settings)} for row in effects(points, measure, settings)]


def realised(points: Sequence[Point], settings: Settings) -> dict[str, Any]:
    """Where the chosen and the rejected responses lie in their prompt, what a normal pool expects, and how much longer
    the chosen one is; a prompt's figures are means over the seeds for which it has a pair."""
    parts = [(runs.scored(point), runs.tokens(point), runs.pair_picks(point)) for point in points]
    z = _over_seeds([realised_z(found.rewards, chosen) for found, _, chosen in parts])
    tokens = _over_seeds([at_picks(lengths, chosen) for _, lengths, chosen in parts])
    row: dict[str, Any] = {"kept": sum(point.part("pairs")["kept"] for point in points)}
    for side, position, own in zip(("chosen", "rejected"), points[0].positions, z, strict=True):
        known = "chosen" in points[0].config["strategy"] and points[0].strategy != BASELINE
        row |= runs.interval(own, settings, f"{side}_z_")
        row[f"{side}_normal_z"] = expected_position(position, points[0].n).z / mean_sd(points[0].n) if known else None
    return row | runs.interval(tokens[0] - tokens[1], settings, "longer_")


def _over_seeds(parts: Sequence[Floats]) -> Floats:
    stacked = np.stack(parts)
    many = np.isfinite(stacked).sum(axis=0)
    return np.where(many > 0, np.nansum(stacked, axis=0) / np.maximum(many, 1), np.nan)


def overlap(points: Sequence[Point]) -> list[dict[str, Any]]:
    """A row for two strategies: the share of prompts with the same pair, chosen or rejected response, of all seeds."""
    groups = runs.grouped(points, lambda point: point.strategy)
    common = set.intersection(*({point.seed for point in group} for group in groups.values()))
    per_strategy = [[point for point in group if point.seed in common] for group in groups.values()]
    if not common:
        return []
    pairs = np.stack([np.hstack([runs.pair_picks(point) for point in _by_seed(group)]) for group in per_strategy])
    shares = {"pair": pair_overlap(pairs), "chosen": collisions(pairs[:, 0]), "rejected": collisions(pairs[:, 1])}
    names = list(groups)
    return [
        {"first": names[a], "second": names[b], **{f"same_{what}": float(of[a, b]) for what, of in shares.items()}}
        for a in range(len(names))
        for b in range(a)
    ]


def _by_seed(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: point.seed)


def collided(points: Sequence[Point]) -> list[dict[str, Any]]:
    """A row for two of the seven points of a pool: the share of prompts where they are one response."""
    rows: list[dict[str, Any]] = []
    for point in runs.pools(points):
        shares = collisions(picks(runs.scored(point).rewards, POINTS))
        rows += [
            {"seed": point.seed, "n": point.n, "first": POINTS[a], "second": POINTS[b], "share": float(shares[a, b])}
            for a in range(len(POINTS))
            for b in range(a)
        ]
    return rows


def compared(rows: Sequence[Mapping[str, Any]], n: int) -> list[Beside]:
    """What the paper says of single pairs and of all, beside what was found."""
    lines: list[Beside] = []
    for row in sorted(rows, key=lambda row: -row["mean"]):
        found = f"{output.told(row)}, seeds {row['seeds']}"
        if "than_random_p" in row:
            found += f"; than random {output.told(row, 'than_random_')}, Holm p {row['than_random_p_holm']:.3f}"
        lines.append(Beside(f"{row['strategy']}, n = {n}, {row['measure']}", REPORTED.get(row["strategy"], "-"), found))
    pairs = [row for row in rows if row["strategy"] != BASELINE]
    if not pairs:
        return lines
    below = [row["strategy"] for row in pairs if row["high"] < runs.LEVEL[row["measure"]]]
    told = f"{len(below)} of {len(pairs)} by their intervals" + (f": {', '.join(below)}" if below else "")
    highest = max(pairs, key=lambda row: row["mean"])
    told_apart = sum(row.get("than_random_p_holm", 1.0) < ALPHA for row in pairs)
    best = (
        f"highest mean of {len(pairs)}: {highest['strategy']} {output.told(highest)}; {told_apart} differ from random"
    )
    return [
        Beside("the best pair", "rejected at mu-2sigma, chosen as high as possible (LC)", best),
        Beside(f"pairs below {pairs[0]['baseline']}", "none of the 21 below the start (LC)", told),
        *lines,
    ]


def _draw(rows: Sequence[Mapping[str, Any]], title: str, measure: str) -> Any:
    values = np.full((len(POINTS), len(POINTS)), np.nan)
    marked: set[tuple[int, int]] = set()
    for row in rows:
        if row["chosen"] in POINTS and row["rejected"] in POINTS:
            place = len(POINTS) - 1 - POINTS.index(row["chosen"]), POINTS.index(row["rejected"])
            values[place] = row["mean"]
            marked |= {place} if row.get("than_random_p_holm", 1.0) < ALPHA else set()
    figure = output.figure(6.5, 5.5)
    axes = figure.subplots()
    output.heat(axes, values, POINTS[::-1], POINTS, runs.LEVEL[measure])
    for row, column in marked:
        axes.text(column, row - 0.35, "*", ha="center", va="center")
    axes.set(xlabel="rejected", ylabel="chosen")
    random = next((row for row in rows if row["strategy"] == BASELINE), None)
    told = f"; random {output.told(random)}" if random else ""
    axes.set_title(
        f"{title}: {measure} against {rows[0]['baseline']}{told}\n* differs from random (5%, Holm)",
        loc="left",
        fontsize=8,
    )
    return figure


if __name__ == "__main__":
    output.run(study, "pair_grid", str(__doc__))
