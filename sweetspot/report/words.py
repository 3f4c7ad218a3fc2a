"""Numbers and lines as a reader sees them."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sweetspot.visible import encodable

NOTHING, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Section:
    """Some lines about one part of a run: (what, value)."""

    title: str
    lines: list[tuple[str, str]]


def absent(value: float | None) -> bool:
    """Whether there is no number: None in a manifest that was read, NaN in one that was not written yet."""
    return value is None or math.isnan(value)


def count(value: float | None) -> str:
    """A whole number with thousands apart: 4,992."""
    return NOTHING if value is None or math.isnan(value) else f"{value:,.0f}"


def number(value: float | None) -> str:
    """About three significant digits; a long way from 1 as a power of ten."""
    if value is None or math.isnan(value):
        return NOTHING
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}".replace("-", MINUS)
    places = 2 if not value else min(3 if abs(value) >= 0.01 else 4, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{places}f}".replace("-", MINUS)


def signed(value: float | None) -> str:
    """`number` with its sign."""
    text = number(value)
    return text if value is None or math.isnan(value) or value <= 0 else f"+{text}"


def rate(value: float | None) -> str:
    """A rate that is in percent already: 47.9%."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.1f}%"


def as_measure(measure: str) -> Callable[[float | None], str]:
    """How a policy's figure of a measure is written: a win rate as a rate, a gain with its sign."""
    return rate if measure == "win_rate" else signed


def in_sd(value: float | None) -> str:
    """A z, a skew, or anything else in standard deviations: its sign and two decimals."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{value:+.2f}".replace("-", MINUS).replace(f"{MINUS}0.00", "+0.00")


def percent(value: float | None) -> str:
    """A share in percent, with a decimal below ten."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{100 * value:.{1 if 0 < abs(value) < 0.0995 else 0}f}%"


def interval(low: float | None, high: float | None, show: Any) -> str:
    """A 95% interval, its bounds written by `show`."""
    return f"95%: {show(low)} to {show(high)}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def hours(value: float) -> str:
    """Hours with three decimals below one, and one above."""
    return f"{value:,.3f}" if value < 1 else f"{value:,.1f}"


def pretty(positions: str) -> str:
    """A position or a pair of them as the paper prints it, in Greek; other names as they are."""
    greek = {r"\bmu-": f"mu{MINUS}", r"\bmu\b": "\N{GREEK SMALL LETTER MU}"}
    greek[r"(?<=[\d+\N{MINUS SIGN}])sigma\b"] = "\N{GREEK SMALL LETTER SIGMA}"
    for pattern, letter in greek.items():
        positions = re.sub(pattern, letter, positions)
    return positions


def shortened(name: str, most: int) -> str:
    """A name as a figure has room for it and can draw it."""
    name = encodable(name)
    return name if len(name) <= most else name[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
