"""One job of a sweep: run.py in a process of its own, and status.json about it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from sweetspot.component import build
from sweetspot.stopping import REQUEUE
from sweetspot.sweep import folder as folders
from sweetspot.sweep.folder import Job, Status, Sweep
from sweetspot.sweep.launcher import Local
from sweetspot.visible import visible

TAIL_LINES = 60
FAULT, LEFT = "fault-of-node-", "left-by-node-"  # files of a job with several nodes
END = "end-of-node-0"
LOOK_SECONDS = 0.5
LEAVE_SECONDS = 60.0  # that the other nodes have once the first has ended


class JobError(RuntimeError):
    """A job that failed; the text is why, in one line."""


def run(folder: str, number: int, slurm: bool) -> None:
    """Run a job of the sweep in a folder, to its end.

    Args:
        folder: the sweep's.
        number: the job's.
        slurm: whether it is a job of SLURM, and not a part of one.

    Raises:
        JobError: when it fails.
        SystemExit: with code 75 when it ended at a signal; the batch script then requeues it (`submit`). What it had
            made until then is whole, and its next turn goes on from there.
    """
    sweep = folders.read(Path(folder))
    job = next(one for one in sweep.jobs if one.number == number)
    if slurm and (node := int(os.environ["SLURM_NODEID"])):
        _help(sweep, job, node)
        return
    begun = _begin(sweep, job, slurm)
    for left in (sweep.path(job) / "error.txt", *_faults(sweep, job)):
        left.unlink(missing_ok=True)
    code, told, got = _run(command(sweep, job), sweep.directory)
    if code and (faults := _faults(sweep, job)):  # SLURM has ended this node for another's fault
        _fail(sweep, job, begun, code, faults[0].read_text())
    if slurm and (nodes := int(os.environ["SLURM_NNODES"])) > 1:
        _leave_together(sweep.path(job), nodes)
    if code and got:  # SLURM signals the workers too: a run may end at their deaths
        _stop(sweep, job, begun, got)
    if code:
        _show_trace(sweep, job)
        _fail(sweep, job, begun, code, _reason(sweep.path(job), code, told))
    _end(sweep, job, replace(begun, state="done", code=0))


def command(sweep: Sweep, job: Job) -> list[str]:
    """What a job is: a run of run.py in the job's folder."""
    place = str(sweep.path(job)).replace("'", "\\'")
    alone = ["launch.nodes=1"] if job.part == "pool" else []
    own = ["launcher=local", "hydra.mode=RUN", f"hydra.run.dir='{place}'"]
    search = [f"hydra.searchpath={list(sweep.search)}"] if sweep.search else []
    return [sys.executable, sweep.program, *job.overrides, *alone, *search, *own]


def _help(sweep: Sweep, job: Job, node: int) -> None:
    """On another node than the first: run the job as well, and stay as long as the first does, which tells how it
    stands, and of a fault here.

    Raises:
        JobError: when the run fails, for which SLURM ends the job on all nodes.
    """
    place = sweep.path(job)
    code, told, got = _run(command(sweep, job), sweep.directory, lambda: _turn_in(place / END))
    if code and not got and not _turn_in(place / END):
        reason = f"node {node}: {_reason(place, code, told)}"
        (place / f"{FAULT}{node}").write_text(reason)
        raise JobError(f"{job.name}: {reason}")
    (place / f"{LEFT}{node}").write_text(_turn())


def _leave_together(place: Path, nodes: int) -> None:
    """On the first node, whose run has ended: have the others end, and wait for them: SLURM would kill them for this
    node's exit code, and tell of their deaths and not of the code."""
    (place / END).write_text(_turn())
    deadline = time.monotonic() + LEAVE_SECONDS
    while not all(_turn_in(place / f"{LEFT}{node}") for node in range(1, nodes)) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)


def _turn() -> str:
    """Which turn of which job of SLURM this is."""
    return f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_RESTART_COUNT', 0)}"


def _turn_in(path: Path) -> bool:
    return path.exists() and path.read_text() == _turn()


def _faults(sweep: Sweep, job: Job) -> list[Path]:
    """What other nodes than the first have failed of, a file each."""
    return sorted(sweep.path(job).glob(f"{FAULT}*"))


def _begin(sweep: Sweep, job: Job, slurm: bool) -> Status:
    before = folders.read_status(sweep.path(job))
    slurm_id = _slurm_id() if slurm else None
    again = before is not None and slurm_id is not None and before.slurm_id == slurm_id
    requeues = before.requeues + (before.state == "requeued") if before and again else 0
    host = os.environ["SLURMD_NODENAME"] if slurm else socket.gethostname()
    status = Status("running", None, None, requeues, host, os.getpid(), slurm_id, folders.now(), None)
    folders.write_status(sweep.path(job), status)
    return status


def _slurm_id() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _run(
    arguments: list[str], directory: str, ended: Callable[[], bool] | None = None
) -> tuple[int, list[str], list[int]]:
    """Exit code, the last lines of the standard error, and the signals that came meanwhile.

    Args:
        arguments: the command.
        directory: to run it in.
        ended: where the run helps another: whether that has ended. It is then ended as well, and waited for before.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.pop("HYDRA_FULL_ERROR", None)  # the run that launches has set it for itself
    process = subprocess.Popen(
        arguments, cwd=directory, stderr=subprocess.PIPE, text=True, errors="backslashreplace", env=environment
    )
    tail: list[str] = []
    reader = threading.Thread(target=_copy, args=(process.stderr, tail), daemon=True)
    reader.start()
    with _passing_on(process) as got:
        while ended is not None and not ended() and not got and not process.poll():
            time.sleep(LOOK_SECONDS)
        if ended is not None and ended():
            process.terminate()
        code = process.wait()
        if code and not got:  # SLURM signals one process after the other, and this one may be the last
            time.sleep(LOOK_SECONDS)
    reader.join(timeout=10)  # a grandchild may hold the pipe open
    return code, tail, got


@contextlib.contextmanager
def _passing_on(process: "subprocess.Popen[str]") -> Generator[list[int]]:
    """Pass SIGTERM and SIGUSR2 on to the run; the signals that came are in the list."""
    got: list[int] = []

    def pass_on(number: int, _frame: Any) -> None:
        got.append(number)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        yield got
    except KeyboardInterrupt:  # the terminal has sent it to the run as well
        process.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _copy(source: IO[str], tail: list[str]) -> None:
    for line in source:
        sys.stderr.write(line)
        sys.stderr.flush()
        tail.append(line)
        del tail[:-TAIL_LINES]


def _stop(sweep: Sweep, job: Job, begun: Status, got: list[int]) -> None:
    """Leave a job that a signal ended: at SIGUSR2 it requeues itself, as often as it may; SIGTERM is another's wish.

    Raises:
        JobError: when it has requeued itself too often.
        SystemExit: otherwise.
    """
    allowed = getattr(build(sweep.launcher, "launcher"), "requeues", 0)
    wishes = signal.SIGTERM not in got and begun.slurm_id is not None
    if wishes and begun.requeues >= allowed:
        times = begun.requeues + 1
        _fail(sweep, job, begun, REQUEUE, f"reached its time limit {times} times, launcher.requeues is {allowed}")
    reason = None if wishes else "was stopped by a signal"
    _end(sweep, job, replace(begun, state="requeued" if wishes else "stopped", reason=reason, code=REQUEUE))
    sys.exit(REQUEUE)


def _show_trace(sweep: Sweep, job: Job) -> None:
    """Put the trace that run.py left into the log, where this process has one of its own."""
    written = sweep.path(job) / "error.txt"
    if written.exists() and not isinstance(build(sweep.launcher, "launcher"), Local):
        print(visible(written.read_text(encoding="utf-8")), file=sys.stderr, flush=True)


def _fail(sweep: Sweep, job: Job, begun: Status, code: int, reason: str) -> None:
    _end(sweep, job, replace(begun, state="failed", reason=reason, code=code))
    raise JobError(f"{job.name}: {reason}")


def _end(sweep: Sweep, job: Job, status: Status) -> None:
    folders.write_status(sweep.path(job), replace(status, ended=folders.now()))


def _reason(folder: Path, code: int, told: list[str]) -> str:
    """Why a run failed, in one line; what it told is kept where run.py itself could not write its trace."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"run.py was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    written = folder / "error.txt"
    if not written.exists():
        written.write_text("".join(told), encoding="utf-8")
    lines = [line.strip() for line in told if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"run.py ended with code {code}"
