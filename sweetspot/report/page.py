"""A page of the report: its template, what it shows of texts that anybody wrote, and its file.

Texts are prompts, responses and messages of other programs. They are escaped, and a character that has no picture of
its own (NUL, ESC, a turn of direction, half a surrogate pair, ...) is shown as its code, so that a page is valid HTML
in UTF-8 and a text stands there in its own order.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from sweetspot.report.words import count, duration, hours, in_sd, number, percent, pretty, signed
from sweetspot.visible import UNSEEN, escaped

LONGEST = 20_000  # characters of a text that are shown, fewer where all texts together would pass
BRIEF = 1_000  # characters of all others, names and messages
TEXTS = 2_500_000  # bytes of a page's texts
CODED = re.compile(f"[{UNSEEN}\ufdd0-\ufdef\ufffe\uffff]")  # LRM, RLM and ALM stay: they place a mark beside a word


def render(template: str, **facts: Any) -> str:
    """The page that a template makes of these facts."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_brief,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shows = (count, duration, hours, in_sd, number, percent, pretty, signed)
    environment.filters |= {show.__name__: show for show in shows}
    return environment.get_template(template).render(**facts)


def _brief(value: Any) -> Any:
    """Names, commands and messages that no reader needs whole; what the template has escaped itself stays whole."""
    if not isinstance(value, str) or isinstance(value, Markup) or len(value) <= BRIEF:
        return value
    return value[:BRIEF] + "\N{HORIZONTAL ELLIPSIS}"


def replace(path: Path, page: str) -> Path:
    """Write the page whole; an earlier one is replaced."""
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text(with_codes(page), encoding="utf-8")
    return scratch.replace(path)


def with_codes(text: str) -> str:
    """The text with its code for each character that HTML cannot hold or nobody would see: ESC becomes \\x1b, a
    turn of direction \\u202e, half a surrogate pair \\ud83d."""
    return CODED.sub(lambda found: escaped(found[0]), text.replace("\r\n", "\n"))


def fitting(texts: Iterable[str]) -> int:
    """How many characters of each text a page shows, so that all together keep within `TEXTS`."""
    limit, listed = LONGEST, list(texts)
    while limit > 1 and sum(len(str(escape(with_codes(text[:limit]))).encode()) for text in listed) > TEXTS:
        limit //= 2
    return limit
