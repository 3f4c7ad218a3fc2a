"""Text that others wrote, as text: what would steer a terminal or turn a line around becomes visible."""

import re
from collections.abc import Mapping
from typing import Any

HALVES = re.compile("[\ud800-\udfff]")
UNSEEN = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"  # or turning a line
STEERS = re.compile(f"[{UNSEEN}\u061c\u200e\u200f]")

# what is a mark of Markdown or HTML; an underscore within a word and a sign before a number are none
MARKS = re.compile(r"[\\`*\[\]<>|~$&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
BEGINS = re.compile(r"#{1,6}( |$)|[+-]( |$)|-+$|=+$")  # a heading, an item of a list, a rule
NUMBERED = re.compile(r"^(\d{1,9})([.)])(?= |$)")  # an item of a list
LINKS = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)  # GitHub links what looks so, unless it is escaped


def visible(text: str) -> str:
    r"""The text with control characters, direction marks and lone surrogates as escapes (`\x1b`, `\u202e`, `\ud800`).

    Line feeds and tabs stay. The result can be encoded in UTF-8.
    """
    return STEERS.sub(lambda found: escaped(found[0]), text)


def encodable(value: Any) -> Any:
    r"""The value with each half of a surrogate pair, which UTF-8 cannot hold, as its escape (`\ud83d`, six characters),
    in every text that it is or holds; any other text is as it was."""
    if isinstance(value, str):
        return HALVES.sub(lambda found: escaped(found[0]), value)
    if isinstance(value, Mapping):
        return {encodable(name): encodable(part) for name, part in value.items()}
    return [encodable(part) for part in value] if isinstance(value, list) else value


def halves(value: Any) -> int:
    """How many texts hold half a surrogate pair, of those that the value is or holds; keys are none."""
    if isinstance(value, str):
        return int(HALVES.search(value) is not None)
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return sum(map(halves, parts))


def halves_told(at: str, changed: int) -> list[str]:
    r"""The warning about texts that `encodable` changed where they were read, in a line; none where it changed none."""
    words = r"held half of a surrogate pair, which UTF-8 cannot hold; it stands there as its escape, such as \ud83d"
    return [f"{at}: {changed} text{'s' if changed > 1 else ''} {words}"] if changed else []


def one_line(text: str) -> str:
    """The visible text in one line: each run of white space as one space."""
    return visible(" ".join(text.split()))


def in_markdown(text: str) -> str:
    """The text in one line of Markdown, or in a cell of a table: nothing of it is HTML, a link, a heading, a list, a
    row or a style. Only an e-mail address can become a link, on GitHub, where no escape keeps it from that."""
    line = one_line(text)
    marked = LINKS.sub(r"\\\g<0>", MARKS.sub(r"\\\g<0>", line))
    return "\\" + marked if BEGINS.match(line) else NUMBERED.sub(r"\1\\\2", marked)


def escaped(character: str) -> str:
    r"""The character's code, as Python writes it: `\x1b`, `\u202e`."""
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
