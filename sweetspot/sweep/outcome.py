"""How each job of a sweep stands: its own word in status.json, held against SLURM or the process table."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sweetspot.sweep import local, slurm
from sweetspot.sweep.folder import Attempt, Job, Status, Sweep, read_status

Standing = Literal["not submitted", "waiting", "running", "stopped", "failed", "done"]
LIVES = ("waiting", "running")
KILLED = re.compile(r"exceeded memory limit|oom[-_ ]kill|out[ -]of[ -]memory", re.IGNORECASE)
IN_WORDS = {
    "TIMEOUT": "reached its time limit",
    "OUT_OF_MEMORY": "ran out of memory",
    "NODE_FAIL": "lost its node",
    "CANCELLED": "was cancelled",
    "DEADLINE": "missed its deadline",
    "BOOT_FAIL": "its node did not start",
    "PREEMPTED": "was preempted",
}


@dataclass(frozen=True)
class Outcome:
    """How a job stands.

    Attributes:
        standing: in one word.
        reason: why it failed, stopped or waits, in one line; "" when there is nothing to say.
        node: where it runs or ran, "" before.
        left: time left, as SLURM writes it; "" where nobody knows.
    """

    standing: Standing
    reason: str
    node: str
    left: str

    @property
    def lives(self) -> bool:
        """Whether it waits or runs."""
        return self.standing in LIVES


def outcomes(sweep: Sweep) -> dict[int, Outcome]:
    """How every job stands, by number.

    Raises:
        ValueError: when jobs were given to SLURM and SLURM does not answer.
    """
    known = slurm.states([job.last.slurm_id for job in sweep.jobs if job.last and job.last.slurm_id])
    return {job.number: _outcome(sweep, job, known) for job in sweep.jobs}


def _outcome(sweep: Sweep, job: Job, known: Mapping[str, slurm.Known]) -> Outcome:
    if job.last is None:
        return Outcome("not submitted", "", "", "")
    gone = local.gone(job.last)  # before its status is read: it writes that before it ends
    status = read_status(sweep.path(job))
    if job.last.slurm_id is None:
        return _of_process(job.last, status, gone)
    now = known.get(job.last.slurm_id)
    if status is not None and status.slurm_id != job.last.slurm_id:
        status = None  # of an attempt before
    if now is not None and now.lives:
        waits = now.state not in ("RUNNING", "COMPLETING")
        return Outcome("waiting" if waits else "running", now.reason, now.node, now.left)
    if status is not None and status.state in ("done", "failed"):
        return Outcome(status.state, status.reason or "", status.host, "")
    return _of_slurm(now, status, sweep.log(job))


def _of_slurm(now: slurm.Known | None, status: Status | None, log: Path | None) -> Outcome:
    """The outcome of a job that ended without a word of its own."""
    host = status.host if status else ""
    if now is None:
        return Outcome("failed", "SLURM no longer knows it, and it left no word", host, "")
    if now.state == "CANCELLED":
        return Outcome("stopped", IN_WORDS["CANCELLED"], now.node, "")
    line = _memory_line(log)
    said = f"ran out of memory: {line}" if line else IN_WORDS.get(now.state, f"{now.state}, exit code {now.reason}")
    return Outcome("failed", said, now.node, "")


def _of_process(last: Attempt, status: Status | None, gone: bool) -> Outcome:
    if status is None or not local.begun(last, status):
        return Outcome("stopped", "ended before it began", "", "") if gone else Outcome("waiting", "", "", "")
    if status.state == "running":
        if status.host != socket.gethostname():
            return Outcome("running", f"as far as {status.host} knows", status.host, "")
        return (
            Outcome("running", "", status.host, "")
            if local.lives(status.pid)
            else Outcome("failed", "was killed", status.host, "")
        )
    standing: Standing = "stopped" if status.state == "requeued" else status.state
    return Outcome(standing, status.reason or "", status.host, "")


def _memory_line(log: Path | None) -> str | None:
    """The line of a log in which SLURM tells of memory."""
    if log is None or not log.exists():
        return None
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        lines = file.read().decode(errors="replace").splitlines()
    return next(
        (line.split("error: ")[-1] for line in reversed(lines) if KILLED.search(line) and "slurm" in line), None
    )
