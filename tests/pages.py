"""The pages of docs/ as tests read them: the files and the commands that they show."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FILE = re.compile(r"^`([\w./]+)`:\n\n```(?:python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def files(page: str) -> dict[str, str]:
    """The files that a page shows in full, by the name that stands above them."""
    return {match[1]: match[2] for match in FILE.finditer((DOCS / page).read_text())}


def commands(page: str) -> list[list[str]]:
    """The commands that a page shows, a list of words each, without the comments beside them."""
    shown = "".join(match[1] for match in BLOCK.finditer((DOCS / page).read_text()))
    return [shlex.split(line, comments=True) for line in shown.replace("\\\n", "").splitlines() if line]
