"""The figures of a sweep's report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from sweetspot.report.figures import moving_mean, smoothing_window, thinned
from sweetspot.report.runs import LEVEL
from sweetspot.report.svg import (
    CHOSEN,
    HEAT,
    INK,
    LINE,
    MUTED,
    PAPER,
    RAMP,
    REJECTED,
    STAND_IN,
    Floats,
    apart,
    cuts,
)
from sweetspot.report.words import as_measure, in_sd, number, pretty, shortened
from sweetspot.statistics import ALPHA
from sweetspot.strategy import POINTS

Row = Mapping[str, Any]
MOST_ROWS = 60  # policies in one figure
MIDDLE = 0.25  # z, within which a position lies in the middle
MOST_VERTICES = 6_000  # of all training curves in a panel
UNITS = {
    "reward": "gain of the judge's reward",
    "win_rate": "win rate (%)",
    "instructions": "gain of followed instructions (points)",
}
PANELS = {
    "loss": "loss",
    "rewards/margin": "margin of the implicit rewards",
    "logps/chosen": "log-probability of chosen, change (nats)",
    "logps/rejected": "log-probability of rejected, change (nats)",
}


def told_apart(row: Row) -> bool:
    """Whether the policy differs from the random pair's by the corrected test."""
    return row.get("than_random_p_holm", 1.0) < ALPHA


def forest(name: str, rows: Sequence[Row], measure: str) -> Markup:
    """A line a policy, the best first: its mean with the 95% interval; filled where it differs from the random pair's,
    whose interval is the band."""
    ranked = sorted(rows, key=lambda row: -row["mean"])[:MOST_ROWS]
    settings = len({row["setting"] for row in ranked})

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        axes.axvline(LEVEL[measure], color=MUTED, linewidth=1, zorder=0)
        for row in ranked:
            if row["strategy"] == "random" and settings == 1:
                axes.axvspan(row["low"], row["high"], color=LINE, alpha=0.55, linewidth=0, zorder=-1)
        for place, row in enumerate(ranked):
            colour = INK if row["strategy"] == "random" else CHOSEN
            axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.4)
            face = colour if told_apart(row) or row["strategy"] == "random" else PAPER
            shape = "s" if row["strategy"] == "random" else "o"
            axes.plot(row["mean"], place, shape, color=colour, markerfacecolor=face, markersize=5.5)
        labels = [label(row, narrow) for row in ranked]
        axes.set(yticks=range(len(ranked)), yticklabels=labels, ylim=(len(ranked) - 0.4, -0.6), xlabel=UNITS[measure])
        axes.tick_params(axis="y", length=0, labelcolor=INK)

    show = as_measure(measure)
    told = "; ".join(f"{row['strategy']} {row['setting']} {show(row['mean'])}" for row in ranked)
    alt = f"{UNITS[measure]} of {len(ranked)} policies, the highest first: {told}."
    lines = 0.32 if any(row["setting"] for row in ranked) else 0.2  # inches a policy, whose name may take two lines
    return cuts(draw, name, alt, 0.75 + 0.2 * len(ranked), 0.75 + lines * len(ranked))


def label(row: Row, narrow: bool) -> str:
    """A policy's name in a figure."""
    name = pretty(row["strategy"])
    setting = shortened(row["setting"], 20 if narrow else 40)
    return f"{name}{chr(10) if narrow else '  '}{setting}" if setting else name


def heat(name: str, rows: Sequence[Row], level: float) -> Markup:
    """The pairs of the seven points, 7 x 7, chosen down and rejected across: blue above the level, orange below; a
    frame and a star where the policy differs from the random pair's."""
    cells = {
        (len(POINTS) - 1 - POINTS.index(row["chosen"]), POINTS.index(row["rejected"])): row
        for row in rows
        if row["chosen"] in POINTS and row["rejected"] in POINTS
    }
    reach = max((abs(row["mean"] - level) for row in cells.values()), default=0.0) or 1.0

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        for (down, across), row in cells.items():
            step = round((row["mean"] - level) / reach * (len(HEAT) // 2)) + len(HEAT) // 2
            _cell(axes, across, down, STAND_IN[HEAT[step]], told_apart(row))
            text = f"{row['mean']:+.2f}".replace("-", "\N{MINUS SIGN}") if not level else f"{row['mean']:.1f}"
            star = "*" if told_apart(row) else ""
            weight = "bold" if star else "normal"
            size = 7.5 if narrow else 9.5
            axes.text(across, down, text + star, ha="center", va="center", fontsize=size, fontweight=weight)
        _legend(axes, level, reach, narrow)
        size = len(POINTS)
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xlabel="rejected", ylabel="chosen")
        axes.set_xticks(range(size), [pretty(point) for point in POINTS])
        axes.set_yticks(range(size), [pretty(point) for point in POINTS[::-1]])
        axes.tick_params(length=0, labelcolor=INK, labelsize=8 if narrow else 9)
        axes.spines[["bottom"]].set_visible(False)

    means = {cell: as_measure(row["measure"])(row["mean"]) for cell, row in cells.items()}
    listed = "; ".join(f"{row['strategy']} {means[cell]}{'*' * told_apart(row)}" for cell, row in cells.items())
    alt = f"Heat map of {len(cells)} pairs, * where it differs from the random pair: {listed}."
    return cuts(draw, name, alt, 4.4, 3.7)


def _cell(axes: Any, across: float, down: float, colour: str, framed: bool) -> None:
    axes.add_patch(Rectangle((across - 0.48, down - 0.47), 0.96, 0.94, facecolor=colour, edgecolor="none"))
    if framed:
        inner = Rectangle((across - 0.45, down - 0.43), 0.9, 0.86, facecolor="none", edgecolor=INK, linewidth=1.3)
        axes.add_patch(inner)


def _legend(axes: Any, level: float, reach: float, narrow: bool) -> None:
    """The classes of the heat map, in the corner that has no pairs."""
    size, middle = 0.34, len(HEAT) // 2
    for step, kind in enumerate(HEAT):
        left = len(POINTS) - 0.5 - (len(HEAT) - step) * size
        axes.add_patch(Rectangle((left, 5.85), size * 0.94, 0.24, facecolor=STAND_IN[kind], edgecolor="none"))
        if step in (0, middle, len(HEAT) - 1):
            value = number(level + (step - middle) / middle * reach)
            axes.text(left + size / 2, 6.2, value, ha="center", va="top", fontsize=6.5 if narrow else 7.5, color=MUTED)


def by_n(name: str, rows: Sequence[Row]) -> Markup:
    """What n responses of a pool would give: z of the response at each position, and how far the best lies above it,
    with 95% bands over prompts; dotted: a normal pool's."""
    sizes = sorted({row["n"] for row in rows})
    own = {position: [row for row in rows if row["position"] == position] for position in _in_order(rows)}

    def draw(figure: Figure, narrow: bool) -> None:
        drawn = figure.subplots(2, 1) if narrow else figure.subplots(1, 2)
        margins = {position: part for position, part in own.items() if position != "max"}
        for axes, prefix, shown, title in (
            (drawn[0], "z_", own, "z of the response at each position"),
            (drawn[1], "margin_z_", margins, "z of max less that position's"),
        ):
            for position, part in shown.items():
                _band(axes, part, prefix, _colour(own[position][-1]["z_mean"]))
                if prefix == "z_":
                    axes.plot(sizes, [row["normal_z"] for row in part], ":", color=MUTED, linewidth=1)
            _name_ends(axes, [(part[-1][f"{prefix}mean"], pretty(one)) for one, part in shown.items()], narrow)
            axes.set_xscale("log")
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
            axes.set_title(title, color=INK)
            axes.set_xlabel("n, samples per prompt")
            axes.tick_params(axis="y", length=0)

    last = {position: part[-1] for position, part in own.items()}
    told = ", ".join(f"{position} {in_sd(row['z_mean'])}" for position, row in last.items())
    return cuts(
        draw, name, f"z of positions over n from {sizes[0]} to {sizes[-1]}; at the largest n: {told}.", 3.0, 5.2
    )


def _in_order(rows: Sequence[Row]) -> list[str]:
    """The positions, the one that lies highest at the largest n first."""
    last = {row["position"]: row["z_mean"] for row in rows}
    return sorted(last, key=lambda position: -last[position])


def _colour(z: float) -> str:
    """Of a position: that of chosen above the middle, of rejected below."""
    return INK if abs(z) < MIDDLE else CHOSEN if z > 0 else REJECTED


def _name_ends(axes: Any, ends: Sequence[tuple[float, str]], narrow: bool) -> None:
    """The names of curves that are drawn, beside their ends, or moved apart by what a line of letters takes."""
    low, high = axes.get_ylim()
    ranked = sorted(ends, key=lambda one: one[0])
    moved = apart([end for end, _ in ranked], (0.08 if narrow else 0.062) * (high - low))
    for (_, name), place in zip(ranked, moved, strict=True):
        axes.annotate(name, (1.02, place), xycoords=axes.get_yaxis_transform(), va="center", fontsize=8)


def _band(axes: Any, rows: Sequence[Row], prefix: str, colour: str) -> None:
    n, mean, low, high = (_column(rows, key) for key in ("n", f"{prefix}mean", f"{prefix}low", f"{prefix}high"))
    axes.fill_between(n, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(n, mean, color=colour, linewidth=1.5, marker="o", markersize=3)


def trained(name: str, rows: Sequence[Row], measure: str) -> Markup:
    """What the policies of each strategy are worth over n, with 95% intervals."""
    sizes = sorted({row["n"] for row in rows})
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["n"]):
        other = " ".join(part for part in row["setting"].split() if not part.startswith("n_samples="))
        groups.setdefault(f"{pretty(row['strategy'])} {other}".strip(), []).append(row)

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        axes.axhline(LEVEL[measure], color=MUTED, linewidth=1, zorder=0)
        for place, part in enumerate(groups.values()):
            colour = STAND_IN[RAMP[place % len(RAMP)]]
            shift = 1.03 ** (place - (len(groups) - 1) / 2)  # beside one another, so that intervals do not hide
            n, mean, low, high = (_column(part, key) for key in ("n", "mean", "low", "high"))
            axes.errorbar(n * shift, mean, [mean - low, high - mean], color=colour, marker="o", markersize=4, capsize=2)
        axes.set_xscale("log")
        _name_ends(axes, [(part[-1]["mean"], shortened(named, 24)) for named, part in groups.items()], narrow)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set(xlabel="n, samples per prompt", ylabel=UNITS[measure])

    show = as_measure(measure)
    told = "; ".join(f"{row['strategy']} n = {row['n']} {show(row['mean'])}" for row in rows)
    return cuts(draw, name, f"{UNITS[measure]} over n: {told}.", 3.2, 3.2)


def shades(lines: Sequence[Row]) -> list[str]:
    """The colour variables of training curves: by the rank of their pairs' distance in z; ink for the random pair."""
    known = [place for place, line in enumerate(lines) if line["apart"] is not None and not line["random"]]
    ranked = sorted(known, key=lambda place: lines[place]["apart"])
    rank = {place: number * len(RAMP) // len(ranked) for number, place in enumerate(ranked)}
    return [RAMP[rank[place]] if place in rank else "ink" for place in range(len(lines))]


def dynamics(name: str, lines: Sequence[Row]) -> Markup:
    """Training of every policy: smoothed curves, coloured by how far chosen and rejected lie apart; dashed: random."""
    shown = [key for key in PANELS if all(key in line["history"][0] for line in lines)]
    most = max(24, min(160, MOST_VERTICES // len(lines)))

    def draw(figure: Figure, narrow: bool) -> None:
        across = 1 if narrow else 2
        drawn = figure.subplots(math.ceil(len(shown) / across), across, squeeze=False).ravel()
        for axes, key in zip(drawn, shown, strict=False):
            for line in sorted(lines, key=lambda line: bool(line["random"])):
                step, values = (_column(line["history"], column) for column in ("step", key))
                smooth = moving_mean(values, smoothing_window(len(values)))
                if key.startswith("logps"):
                    smooth = smooth - smooth[0]
                kept = thinned(len(step), most)
                style = "--" if line["random"] else "-"
                width = 1.8 if line["random"] else 1.1
                axes.plot(step[kept], smooth[kept], style, color=STAND_IN[line["shade"]], linewidth=width)
            axes.set_title(PANELS[key], color=INK)
            axes.tick_params(axis="y", length=0)
            axes.margins(x=0.02)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.set_xlabel("step")
        for axes in drawn[len(shown) :]:
            axes.set_axis_off()

    alt = f"Training of {len(lines)} policies by step: {', '.join(PANELS[key] for key in shown)}."
    return cuts(draw, name, alt, 2.3 * math.ceil(len(shown) / 2), 2.0 * len(shown))


def _column(rows: Sequence[Row], key: str) -> Floats:
    return np.array([math.nan if row.get(key) is None else row[key] for row in rows], dtype=np.float64)
