"""The figures of a run's report."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sweetspot.report.rows import Place, Scored, Shown
from sweetspot.report.svg import BARS, CHOSEN, INK, LINE, MUTED, PAPER, REJECTED, Floats, apart, cuts
from sweetspot.report.words import absent, in_sd, percent, pretty, shortened, signed
from sweetspot.strategy import POINTS, FiniteRewards, Position

SIDES = {"chosen": (CHOSEN, "^"), "rejected": (REJECTED, "v")}  # colour and marker
DOTS = 600  # steps of a training curve that are drawn as dots, evenly spaced where there are more
LIMIT = 5.0  # z beyond it is counted in the outermost bars


def pooled(
    name: str, scored: Scored, places: Sequence[Place], chosen_z: float | None, rejected_z: float | None
) -> Markup:
    """All rewards as z within their prompt, the normal curve, the seven points at their mean z, and the pair's."""
    z = scored.z[np.isfinite(scored.z)]
    at = [place.z for place in places]
    width = 0.25 if len(z) < 20_000 else 0.1
    reach = min(LIMIT, max(3.0, math.ceil(float(np.abs(z).max(initial=0)) / width) * width))
    edges = np.linspace(-reach, reach, round(2 * reach / width) + 1)

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        heights = np.histogram(z.clip(-reach, reach), edges)[0] / max(len(z), 1) / width
        axes.bar(edges[:-1], heights, width, align="edge", color=BARS, edgecolor=PAPER, linewidth=0.4)
        grid = np.linspace(-reach, reach, 161)
        axes.plot(grid, _normal(grid), color=INK, linewidth=1.2)
        top = max(float(heights.max(initial=0)), 0.4) * 1.04
        for place, label_at in zip(places, apart(at, 0.85 if narrow else 0.55), strict=True):
            axes.plot([place.z, place.z, label_at], [0, top, top * 1.09], color=MUTED, linewidth=0.7)
            axes.text(
                label_at, top * 1.11, pretty(place.point), ha="center", va="bottom", fontsize=7.5 if narrow else 8.5
            )
        _mark(axes, {"chosen": chosen_z, "rejected": rejected_z}, 9)
        axes.set(xlabel="z: reward from the prompt's mean, in its standard deviations", yticks=[], ylim=(0, top * 1.22))

    lie = ", ".join(f"{place.point} {in_sd(place.z)}" for place in places)
    alt = (
        f"Histogram of {len(z):,} rewards as z within their prompt, and the normal curve. Mean z of the points: {lie}."
    )
    return cuts(draw, name, alt, 2.9, 2.7)


def beyond(scored: Scored) -> int:
    """How many rewards lie beyond the histogram's axis and are counted in its outermost bars."""
    return int(np.count_nonzero(np.abs(scored.z) > LIMIT))


def multiples(name: str, shown: Sequence[Shown]) -> Markup:
    """A panel a prompt: its rewards, the normal curve of their moments, the responses of the seven points, the pair."""

    def draw(figure: Figure, narrow: bool) -> None:
        figure.set_layout_engine("constrained", h_pad=0.08)
        columns = 2 if narrow else 4
        grid = figure.subplots(math.ceil(len(shown) / columns), columns, squeeze=False).ravel()
        for number, (axes, prompt) in enumerate(zip(grid, shown, strict=False), 1):
            assert prompt.rewards is not None
            _panel(axes, prompt.rewards, {response.label: response.reward for response in prompt.responses})
            axes.set_title(f"{number}", color=INK, fontweight="bold")
        for axes in grid[len(shown) :]:
            axes.set_axis_off()

    rows = math.ceil(len(shown) / 4), math.ceil(len(shown) / 2)
    alt = f"Histograms of the rewards of {len(shown)} prompts, numbered as below, with chosen and rejected response."
    return cuts(draw, name, alt, 1.5 * rows[0], 1.5 * rows[1])


def _panel(axes: Any, rewards: Floats, marked: dict[str, float | None]) -> None:
    """One prompt's rewards."""
    mean, sd = float(rewards.mean()), float(rewards.std(ddof=1)) if len(rewards) > 1 else 0.0
    heights = axes.hist(rewards, bins=min(24, max(6, round(2 * len(rewards) ** 0.5))), density=True, color=BARS)[0]
    if sd > 0:
        grid = np.linspace(mean - 3 * sd, mean + 3 * sd, 81)
        axes.plot(grid, _normal((grid - mean) / sd) / sd, color=MUTED, linewidth=0.8)
        picks = [float(rewards[Position.parse(point).pick(FiniteRewards(rewards[None], 1))[0]]) for point in POINTS]
        axes.plot(picks, np.zeros(len(picks)), "|", color=INK, markersize=8, clip_on=False)
    _mark(axes, marked, 7.5)
    axes.set(yticks=[], ylim=(0, max(float(heights.max()), 0.4 / sd if sd > 0 else 0) * 1.05))
    axes.xaxis.set_major_locator(MaxNLocator(4))


def _mark(axes: Any, places: dict[str, float | None], size: float) -> None:
    """The chosen and the rejected response on the axis, where there are such."""
    for side, (colour, marker) in SIDES.items():
        if not absent(place := places.get(side)):
            axes.plot(
                [place], [0], marker, color=colour, markersize=size, markeredgecolor=PAPER, clip_on=False, zorder=5
            )


def training(name: str, history: Sequence[dict[str, Any]]) -> Markup:
    """Loss, reward margin and log-probabilities by step: each step as a dot, and their moving mean as a line.

    The held-out loss is marked where it was measured. The log-probabilities show whether the chosen response became
    less likely too (likelihood displacement).
    """
    steps = _column(history, "step")
    window = smoothing_window(len(history))
    logps = {f"logps/{side}": colour for side, (colour, _) in SIDES.items()}
    panels: list[tuple[str, dict[str, str], float | None]] = [
        ("loss", {"loss": CHOSEN}, history[0]["loss"]),
        ("margin of the implicit rewards", {"rewards/margin": CHOSEN}, 0.0),
        ("log-probabilities (nats)", logps, None),
    ]
    panels = panels if logps.keys() <= history[0].keys() else panels[:2]
    shown = thinned(len(history), DOTS)

    def draw(figure: Figure, narrow: bool) -> None:
        drawn = figure.subplots(len(panels), 1, sharex=True) if narrow else figure.subplots(1, len(panels))
        for axes, (title, curves, level) in zip(drawn, panels, strict=True):
            if level is not None:
                axes.axhline(level, color=LINE, linewidth=1, zorder=0)
            for key, colour in curves.items():
                values = _column(history, key)
                axes.plot(steps[shown], values[shown], ".", color=BARS, markersize=4)
                axes.plot(steps[shown], moving_mean(values, window)[shown], color=colour, linewidth=1.6)
            axes.set_title(title, color=INK)
            axes.tick_params(axis="y", length=0)
            axes.margins(x=0.02)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if not narrow:
                axes.set_xlabel("step")
        held_out = [row for row in history if "held_out/loss" in row]
        drawn[0].plot(_column(held_out, "step"), _column(held_out, "held_out/loss"), "D", color=REJECTED, markersize=5)
        drawn[-1].set_xlabel("step")

    alt = f"Training curve over {len(history)} steps: loss, reward margin and log-probabilities."
    return cuts(draw, name, alt, 2.5, 1.9 * len(panels))


def thinned(length: int, most: int) -> NDArray[np.intp]:
    """Up to `most` places of a curve of this length, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, max(length - 1, 0), min(length, most)).round().astype(np.intp))


def smoothing_window(steps: int) -> int:
    """How many steps the moving mean of a curve covers: a tenth of them, odd; 1 (no smoothing) below 30."""
    return steps // 20 * 2 + 1 if steps >= 30 else 1


def moving_mean(values: Floats, window: int) -> Floats:
    """The centred mean over `window` steps; at the ends over those that there are; NaN steps are left out."""
    kernel, finite = np.ones(window), np.isfinite(values)
    if not finite.any():
        return values
    total, many = (np.convolve(part, kernel, "same") for part in (np.where(finite, values, 0.0), finite.astype(float)))
    return np.where(many > 0.5, total / np.maximum(many, 1), np.nan)


def held_out(name: str, judges: Sequence[dict[str, Any]]) -> Markup:
    """Difference of the mean rewards and win rate of the policy against the start, with their 95% intervals."""
    scaled = all(not absent(judge["difference_sd"]) and judge["difference"] for judge in judges)
    unit = "within-prompt sd" if scaled else "reward units"

    def draw(figure: Figure, narrow: bool) -> None:
        gains, wins = figure.subplots(2, 1) if narrow else figure.subplots(1, 2, sharey=True)
        for row, judge in enumerate(judges):
            colour = CHOSEN if judge["role"] == "judge" else MUTED
            scale = judge["difference_sd"] / judge["difference"] if scaled else 1.0
            _interval(gains, row, _column([judge], "low", "difference", "high") * scale, colour)
            _interval(wins, row, _column([judge], "win_rate_low", "win_rate", "win_rate_high") * 100, colour)
        names = [shortened(judge["name"], 16 if narrow else 32) for judge in judges]
        for axes, level, title in ((gains, 0, f"difference of mean reward ({unit})"), (wins, 50, "win rate (%)")):
            axes.axvline(level, color=MUTED, linewidth=1, zorder=0)
            axes.set_title(title, color=INK)
            axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
            axes.tick_params(axis="y", length=0, labelcolor=INK)

    alt = "Policy against start with 95% intervals. " + " ".join(
        f"{judge['name']}: difference {signed(judge['difference'])}, win rate {percent(judge['win_rate'])}."
        for judge in judges
    )
    tall = 0.9 + 0.35 * len(judges)
    return cuts(draw, name, alt, tall, 2 * tall)


def _interval(axes: Any, row: int, bounds: Floats, colour: str) -> None:
    low, middle, high = bounds
    axes.plot([low, high], [row, row], color=colour, linewidth=2.2, solid_capstyle="round")
    axes.plot([middle], [row], "o", color=colour, markersize=7, markeredgecolor=PAPER)


def _column(rows: Sequence[dict[str, Any]], *names: str) -> Floats:
    """The values under the names, row by row; NaN where there is none."""
    values = [math.nan if row.get(name) is None else row[name] for row in rows for name in names]
    return np.array(values, dtype=np.float64)


def _normal(z: Floats) -> Floats:
    return np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
