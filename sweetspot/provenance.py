"""Where a run comes from: commit and difference of the code, and the link to the latest run."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

LATEST = "latest"


def commit() -> str | None:
    """The commit of the working tree that this package lies in, with "+" when it has changes; None outside one."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None
    return head.strip() + ("+" if (_git("status", "--porcelain") or "").strip() else "")


def keep(folder: Path, arguments: Sequence[str]) -> None:
    """Leave in a run's folder what makes it again: command.txt, and code.diff where the code differs from its commit.

    Args:
        folder: exists.
        arguments: the command's words.
    """
    (folder / "command.txt").write_text(shlex.join(arguments) + "\n")
    difference = _git("diff", "HEAD") or ""
    (folder / "code.diff").unlink(missing_ok=True)
    if difference.strip():
        (folder / "code.diff").write_text(difference)


def link_latest(folder: Path) -> None:
    """Have `latest`, beside the folder, lead to it; a real file or folder of that name stays."""
    link = folder.parent / LATEST
    if link.exists() and not link.is_symlink():
        return
    beside = folder.parent / f".{LATEST}.{os.getpid()}"
    beside.unlink(missing_ok=True)
    beside.symlink_to(folder.name)
    beside.replace(link)


def _git(*words: str) -> str | None:
    try:
        told = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words],
            capture_output=True,
            text=True,
            check=True,
            errors="replace",
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return told.stdout
