"""Jobs of this machine: whether their processes live, and how they are ended."""

import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from sweetspot.sweep.folder import Attempt, Job, Status, Sweep, read_status


def lives(pid: int) -> bool:
    """Whether there is a process of this number that has not ended."""
    stat = _stat(pid)
    return stat is not None and stat[0] != "Z"


def gone(last: Attempt) -> bool:
    """Whether the process of an attempt on this machine has ended."""
    return last.pid is not None and last.host == socket.gethostname() and not lives(last.pid)


def begun(last: Attempt, status: Status | None) -> bool:
    """Whether a status is of this attempt, and not of one before."""
    return status is not None and status.started >= last.submitted


def cancel(sweep: Sweep, jobs: Sequence[Job]) -> None:
    """End jobs of this machine: SIGTERM to those that have begun, which write their end down, and the others at once.

    With launcher=local that ends the whole sweep, which one process goes through in turn.

    Raises:
        ValueError: naming jobs that run on other machines, where nothing is ended.
    """
    away = [job.name for job in jobs if job.last and job.last.host not in (None, socket.gethostname())]
    if away:
        raise ValueError(f"cancel must be called where the jobs run, got {', '.join(away)} on another machine")
    told: set[int] = set()
    for job in jobs:
        status = read_status(sweep.path(job))
        if job.last and status and begun(job.last, status):
            told.add(status.pid)
    for pid in told:
        if _ours(pid, sweep):
            os.kill(pid, signal.SIGTERM)
    for pid in {job.last.pid for job in jobs if job.last and job.last.pid} - told:
        children = _children()
        if _ours(pid, sweep) and not told & set(_below(pid, children)):
            for one in [pid, *_below(pid, children)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)


def _ours(pid: int, sweep: Sweep) -> bool:
    """Whether the process is what its number stood for when it was noted: submitit, or run.py."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(b"submitit" in word or word.endswith(Path(sweep.program).name.encode()) for word in words)


def _stat(pid: int) -> tuple[str, int] | None:
    """State and parent of a process; None when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1])


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        if stat := _stat(int(path.name)):
            found.setdefault(stat[1], []).append(int(path.name))
    return found


def _below(pid: int, children: dict[int, list[int]]) -> list[int]:
    return [one for child in children.get(pid, []) for one in (child, *_below(child, children))]
