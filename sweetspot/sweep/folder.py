"""The folder of a sweep: jobs.json (what was asked for and submitted) and each job's status.json."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

VERSION = 1
State = Literal["running", "requeued", "stopped", "failed", "done"]


@dataclass(frozen=True)
class Attempt:
    """One submission of a job.

    Attributes:
        slurm_id: "123" or "123_4" of an array; None where the job was not given to SLURM.
        log: what the job prints, relative to the sweep's folder; None where it prints to the launcher's terminal. Its
            requeues add to the same file.
        submitted: when, before any of it could begin (`now`).
        host, pid: of the process that starts it; None in SLURM.
    """

    slurm_id: str | None
    log: str | None
    submitted: str
    host: str | None = None
    pid: int | None = None


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        number: unique within the sweep; of the points, their place in it.
        name: its folder within the sweep's.
        overrides: of run.py, without launcher and hydra keys.
        part: "pool" makes samples and rewards that the others share, "run" is a point of the sweep.
        attempts: its submissions, the last one last; () before the first.
        key: of the results that it was last submitted for (`points.result_key`); None where nobody worked it out.
    """

    number: int
    name: str
    overrides: tuple[str, ...]
    part: Literal["pool", "run"] = "run"
    attempts: tuple[Attempt, ...] = ()
    key: str | None = None

    @property
    def last(self) -> Attempt | None:
        """Its last submission."""
        return self.attempts[-1] if self.attempts else None


@dataclass(frozen=True)
class Sweep:
    """What jobs.json holds.

    Attributes:
        folder: where the sweep lies (absolute; not in the file, so that a sweep can be moved).
        command: as it was typed.
        created: when, ISO 8601 in UTC.
        program: absolute path of run.py.
        directory: where the command was typed and the jobs run (absolute): relative paths of overrides start here.
        launcher: the launcher's config, `_target_` included: `component.build` makes it again.
        plan: "pooled" or "simple".
        commit: of the code, None outside git.
        jobs: pools first, then the points by number.
        search: places with choices of one's own that the command line named (--config-dir, hydra.searchpath).
    """

    folder: Path
    command: str
    created: str
    program: str
    directory: str
    launcher: Mapping[str, Any]
    plan: str
    commit: str | None
    jobs: tuple[Job, ...]
    search: tuple[str, ...] = ()

    def path(self, job: Job) -> Path:
        """The job's folder."""
        return self.folder / job.name

    def log(self, job: Job) -> Path | None:
        """The log of the job's last attempt."""
        return self.folder / job.last.log if job.last and job.last.log else None

    def with_jobs(self, changed: Mapping[int, Job]) -> "Sweep":
        """The sweep with some jobs replaced, by number."""
        return replace(self, jobs=tuple(changed.get(job.number, job) for job in self.jobs))


@dataclass(frozen=True)
class Status:
    """What status.json holds: a job's own word.

    Attributes:
        state: running; requeued (waits for its next turn); stopped (at a signal, does not go on by
            itself); failed; done.
        reason: of failed and stopped, in one line: the run's error line or how it died.
        code: exit code of run.py, -9 when it was killed by signal 9; None while it runs.
        requeues: how often the job has requeued itself since it was submitted.
        host, pid: where it runs, the process that waits for run.py.
        slurm_id: as in `Attempt`, None outside SLURM.
        started, ended: of this turn (`now`); ended is None while it runs.
    """

    state: State
    reason: str | None
    code: int | None
    requeues: int
    host: str
    pid: int
    slurm_id: str | None
    started: str
    ended: str | None


def now() -> str:
    """The time, ISO 8601 in UTC, to the microsecond: a job's turn is told from one before its submission by it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def read(folder: Path) -> Sweep:
    """The sweep that lies in a folder.

    Raises:
        ValueError: when there is none, or it was written by another version.
    """
    try:
        plain: dict[str, Any] = json.loads((folder / "jobs.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"a sweep's folder must have a jobs.json, got {folder}") from None
    if plain.pop("version", None) != VERSION:
        raise ValueError(f"{folder}/jobs.json must be of version {VERSION}; submit the sweep again")
    jobs = tuple(_job(job) for job in plain.pop("jobs"))
    return Sweep(folder=folder.resolve(), jobs=jobs, search=tuple(plain.pop("search", ())), **plain)


def write(sweep: Sweep) -> None:
    """Replace the sweep's jobs.json."""
    plain = {"version": VERSION, **asdict(sweep)}
    del plain["folder"]
    sweep.folder.mkdir(parents=True, exist_ok=True)
    _replace(sweep.folder / "jobs.json", plain)


def read_status(folder: Path) -> Status | None:
    """The status of the job in a folder; None before its first turn."""
    try:
        return Status(**json.loads((folder / "status.json").read_text()))
    except FileNotFoundError:
        return None


def write_status(folder: Path, status: Status) -> None:
    """Replace the job's status.json."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "status.json", asdict(status))


def write_forecast(folder: Path, numbers: Sequence[int], seconds: Mapping[str, float]) -> None:
    """Replace the sweep's forecast.json: the jobs that were submitted last, and the seconds of each stage in all of
    them."""
    _replace(folder / "forecast.json", {"jobs": list(numbers), "seconds": dict(seconds)})


def read_forecast(folder: Path) -> tuple[list[int], dict[str, float]] | None:
    """What `write_forecast` wrote; None where there is nothing."""
    try:
        plain: dict[str, Any] = json.loads((folder / "forecast.json").read_text())
    except FileNotFoundError:
        return None
    return plain["jobs"], plain["seconds"]


def _job(plain: dict[str, Any]) -> Job:
    attempts = tuple(Attempt(**attempt) for attempt in plain["attempts"])
    return Job(plain["number"], plain["name"], tuple(plain["overrides"]), plain["part"], attempts, plain.get("key"))


def _replace(path: Path, plain: Mapping[str, Any]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(plain, indent=1) + "\n")
    beside.replace(path)
