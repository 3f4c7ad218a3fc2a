"""Ranks at work: all or none.

Each rank writes the file `beat` once a second: a tick, how often its main thread has moved, and what it does. A rank
whose tick stands still is stopped; one that trains without moving is stuck. Loading, the first step and saving may
take their time; there the time limit of the collectives holds.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweetspot.launch import POLL_SECONDS, STOP_SECONDS, Worker, WorkerError
from sweetspot.progress import bar
from sweetspot.stopping import REQUEUE, STOPS, Stopped

BEAT = "SWEETSPOT_BEAT"  # the variable that tells a rank where its beat goes
TRAINING = "training"  # in a beat: the main thread must move
SAVING = "saving"  # in a beat: of a checkpoint or of the model
BEAT_SECONDS = 1.0  # between two beats
START_SECONDS = 120.0  # that a rank has at least until its first beat
STOPPED_SECONDS = 5.0  # without a tick, which comes every second
LEAVE_SECONDS = 20.0  # that the others have once one has left: they leave together
SETTLE_SECONDS = 1.0  # after a rank failed, in which the one that was the cause shows
TROUBLE = ("gloo", "nccl", "connection", "socket", "store", "collective")  # in the error of a rank that lost another


def run(
    module: str,
    job: Mapping[str, Any],
    folder: Path,
    environments: Sequence[Mapping[str, str]],
    on_metrics: Callable[[dict[str, Any]], None],
    timeout: float,
    until: Callable[[], bool] = lambda: False,
) -> None:
    """Run a job on the ranks of this node, all or none: when one is lost, the others are ended.

    Args:
        module: with `main(job, emit)`; the first rank's progress and metrics are shown and passed on.
        job: plain JSON; the job of rank 0 is that of all.
        folder: of the job; the ranks have folders beside it, named after their number.
        environments: of each rank, with RANK.
        on_metrics: called with each {"metrics": ...} event as it comes.
        timeout: seconds of silence after which a rank counts as lost.
        until: asked again and again; True ends the ranks, as there is nothing left to do.

    Raises:
        WorkerError: naming the rank that failed; every process is gone by then.
        Stopped: when the ranks were told to stop, and have saved what they could.
    """
    ranks: list[Worker] = []
    try:
        for environment in environments:
            own = folder.with_name(f"{folder.name}-rank-{environment['RANK']}")
            own.mkdir(parents=True, exist_ok=True)
            (own / "beat").unlink(missing_ok=True)
            (own / "job.json").write_text(json.dumps(job, indent=1))
            ranks.append(Worker(module, own, {**environment, BEAT: str(own / "beat")}))
        _follow(ranks, folder.name, on_metrics, timeout, until)
    except Stopped:
        _stop(ranks)
        for rank in ranks:
            _read(rank, _unseen, on_metrics)
        raise
    finally:
        for rank in ranks:
            rank.end()
            rank.events.close()


def _stop(ranks: Sequence[Worker]) -> None:
    """Tell the ranks to stop, and wait until they have saved, STOP_SECONDS at most.

    Those that do not train yet have nothing to save; one that waits for ranks that are gone is not waited for.
    """
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.terminate()
    pulses = [_Pulse(rank.folder / "beat") for rank in ranks]
    known = time.monotonic() + 2 * BEAT_SECONDS  # when the beats tell of now
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        for pulse in pulses:
            pulse.silent()
        running = [one.process.poll() is None for one in ranks]
        trains = [time.monotonic() < known or pulse.trains() for pulse in pulses]
        if not any(one and saves for one, saves in zip(running, trains, strict=True)):
            return
        if not all(running):
            deadline = min(deadline, time.monotonic() + LEAVE_SECONDS)
        time.sleep(POLL_SECONDS)


def _unseen(states: Mapping[int, Any]) -> None:
    """Where progress goes that nobody looks at any more."""


def _follow(
    ranks: Sequence[Worker],
    title: str,
    on_metrics: Callable[[dict[str, Any]], None],
    timeout: float,
    until: Callable[[], bool],
) -> None:
    """Show and pass on the events until every rank has ended well."""
    pulses = [_Pulse(rank.folder / "beat") for rank in ranks]
    with bar(title) as show:
        while not until():
            codes = [rank.process.poll() for rank in ranks]
            for rank in ranks:
                _read(rank, show, on_metrics)
            if REQUEUE in codes:
                raise Stopped(STOPS[0].name)
            if any(codes) or any(rank.error for rank in ranks):  # one that failed may hang in what it waited for
                time.sleep(SETTLE_SECONDS)
                raise WorkerError(_fault(ranks, show, on_metrics, title))
            if all(code == 0 for code in codes):
                return
            running = {rank: pulse for rank, pulse, code in zip(ranks, pulses, codes, strict=True) if code is None}
            if any(pulse.silent() > timeout for pulse in running.values()):
                raise WorkerError(_silence(running, timeout, title))
            time.sleep(POLL_SECONDS)


def _read(rank: Worker, show: Any, on_metrics: Callable[[dict[str, Any]], None]) -> None:
    for event in rank.read():
        if "progress" in event:
            show({0: event["progress"]})
        if "metrics" in event:
            on_metrics(event["metrics"])


def _fault(ranks: Sequence[Worker], show: Any, on_metrics: Callable[[dict[str, Any]], None], title: str) -> str:
    """Which rank was the cause, and of what: one that was killed, else one whose error tells of no other's loss."""
    failed: list[tuple[bool, bool, Worker, str]] = []
    for rank in ranks:
        rank.process.poll()
        _read(rank, show, on_metrics)
        if text := rank.error or rank.fault():
            lost_another = any(word in text.lower() for word in TROUBLE)
            told = rank.error is not None or (rank.process.returncode or 0) >= 0
            failed.append((lost_another, told, rank, text))
    _, _, rank, text = min(failed, key=lambda one: one[:2])
    shared = len(failed) == len(ranks) and len({one[3] for one in failed}) == 1
    name = "" if shared else f"rank {_number(rank)}: "
    return f"{title}: {name}{text} (log: {rank.folder / 'log.txt'})"


def _silence(running: Mapping[Worker, "_Pulse"], timeout: float, title: str) -> str:
    """Which rank stands still: of several, one that is stopped, else those that have moved least."""
    last = min(pulse.place() for pulse in running.values())
    lost = [rank for rank, pulse in running.items() if pulse.place() == last]
    names = f"rank{'s' * (len(lost) > 1)} {', '.join(str(_number(rank)) for rank in lost)}"
    told = f"gave no sign of life for {timeout:g} s while {running[lost[0]].doing}"
    return f"{title}: {names} {told} (log: {lost[0].folder / 'log.txt'})"


def _number(rank: Worker) -> int:
    return int(rank.environment["RANK"])


class _Pulse:
    """What one rank's beat tells, by this process's own clock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ticks, self._moves, self.doing = "", 0, "starting"
        self._ticked = self._moved = time.monotonic() + START_SECONDS  # until its first beat it has that long more

    def silent(self) -> float:
        """Seconds without a tick, or without a move where it must move."""
        now = time.monotonic()
        try:
            ticks, moves, doing = self._path.read_text().split()
        except (OSError, ValueError):  # not there yet, being written, or behind a network that is away
            return now - self._ticked
        if ticks != self._ticks:
            self._ticked, self._ticks = now, ticks
        if int(moves) != self._moves or doing != self.doing:
            self._moved, self._moves, self.doing = now, int(moves), doing
        return now - (min(self._ticked, self._moved) if doing == TRAINING else self._ticked)

    def trains(self) -> bool:
        """Whether there is something to save."""
        return self.doing in (TRAINING, SAVING)

    def place(self) -> tuple[bool, int]:
        """Smaller for who is the cause that the others wait: it does not tick, or has moved least."""
        return time.monotonic() - self._ticked < STOPPED_SECONDS, self._moves
