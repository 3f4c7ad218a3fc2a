"""Figures as SVG that takes its colours and letters from the page, each in a wide and a narrow cut."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from sweetspot.visible import encodable

Floats = NDArray[np.float64]
Draw = Callable[[Figure, bool], None]  # the second: whether the figure is the narrow cut

# Stand-ins, replaced by the page's CSS variables, so that one figure fits light and dark.
NAMES = ("ink", "muted", "line", "bars", "chosen", "rejected", "paper")
HEAT = ("low3", "low2", "low1", "even", "high1", "high2", "high3")  # around a level; ink is legible on each
RAMP = ("ramp1", "ramp2", "ramp3", "ramp4", "ramp5")  # lines, from small to large
STAND_IN = {name: f"#{number:02x}{number:02x}{number:02x}" for number, name in enumerate((*NAMES, *HEAT, *RAMP), 1)}
INK, MUTED, LINE, BARS, CHOSEN, REJECTED, PAPER = (STAND_IN[name] for name in NAMES)
STYLE: Any = {
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "sweetspot",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.facecolor": "none",
}
WIDE, NARROW = 8.6, 3.9  # inches


def cuts(draw: Draw, name: str, alt: str, wide_height: float, narrow_height: float) -> Markup:
    """The figure drawn twice; the page shows the cut that fits its width."""
    wide = _svg(draw, False, f"{name}-wide", alt, WIDE, wide_height)
    narrow = _svg(draw, True, f"{name}-narrow", alt, NARROW, narrow_height)
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(wide, narrow)


def _svg(draw: Draw, narrow: bool, name: str, alt: str, width: float, height: float) -> Markup:
    """One cut as an SVG element, its ids made its own, its colours variables, its size that of the page."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # letters stay letters: the page has the font
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure, narrow)
        drawable(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for variable, colour in STAND_IN.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img" LABEL>', text, count=1)
    return Markup(text.replace("LABEL", str(Markup('aria-label="{}"').format(alt)), 1))


def drawable(figure: Figure) -> None:
    """Put escapes in the place of halves of surrogate pairs in all words of a figure: no font has them."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        labels = axis.get_major_formatter()
        if isinstance(labels, FuncFormatter):  # of words that were given; numbers have formatters of their own
            axis.set_major_formatter(FuncFormatter(lambda at, place, of=labels: encodable(of(at, place))))
    for text in figure.findobj(Text):
        text.set_text(encodable(text.get_text()))


def apart(places: Sequence[float], gap: float) -> list[float]:
    """The places moved apart, in their order, until neighbours are `gap` from one another; the middle one stays."""
    middle = len(places) // 2
    moved = list(places)
    for number in range(middle + 1, len(moved)):
        moved[number] = max(moved[number], moved[number - 1] + gap)
    for number in range(middle - 1, -1, -1):
        moved[number] = min(moved[number], moved[number + 1] - gap)
    return moved
