"""What SLURM says of jobs: states and reasons, from squeue for those that live and sacct for those that ended."""

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TIMEOUT_SECONDS = 60
LIVING = frozenset(
    {
        *("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING"),
        *("SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT", "REQUEUE_FED"),
    }
)


@dataclass(frozen=True)
class Known:
    """What SLURM says of a job.

    Attributes:
        state: in its words (PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, CANCELLED, OUT_OF_MEMORY, NODE_FAIL, ...).
        reason: why it waits, or its exit code ("0:9" is signal 9); "" when there is none.
        node: where it runs or ran, "" before.
        left: time left of one that runs ("1-02:03:04"), "" else.
    """

    state: str
    reason: str
    node: str
    left: str

    @property
    def lives(self) -> bool:
        """Whether it waits or runs."""
        return self.state in LIVING


def states(ids: Sequence[str]) -> dict[str, Known]:
    """What SLURM knows of jobs ("123", "123_4"), by id; those that it has forgotten are absent.

    Raises:
        ValueError: when squeue is not there or does not answer.
    """
    wanted = list(dict.fromkeys(ids))
    if not wanted:
        return {}
    whole = ",".join(dict.fromkeys(one.partition("_")[0] for one in wanted))
    # -j with an id that SLURM has forgotten is an error, so all of this user's jobs are asked for
    # all states: sacct learns of an end a little later
    queue = call("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%R|%N|%L")
    found = _by_id(_queued(line) for line in queue.splitlines() if line)
    if any(one not in found for one in wanted) and shutil.which("sacct"):
        fields = "JobID,State,ExitCode,NodeList"
        told = call("sacct", "--noheader", "--parsable2", "--allocations", f"--format={fields}", f"--jobs={whole}")
        found = _by_id(_ended(line) for line in told.splitlines() if line) | found
    for one in wanted:  # an array that never began is told of as a whole
        if one not in found and (whole_array := found.get(one.partition("_")[0])):
            found[one] = whole_array
    return {one: found[one] for one in wanted if one in found}


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs that wait or run; those that ended stay as they are.

    Raises:
        ValueError: when scancel refuses.
    """
    if ids:
        call("scancel", *ids)


def call(*command: str, timeout: float = TIMEOUT_SECONDS) -> str:
    """What a SLURM command prints.

    Raises:
        ValueError: one line, when it is not on PATH, refuses, or gives no answer in time.
    """
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except FileNotFoundError:
        raise ValueError(f"SLURM's {command[0]} must be on PATH: log in to a cluster, or take launcher=local") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"{command[0]} gave no answer in {timeout:.0f} s") from None
    if ended.returncode:
        raise ValueError(
            " ".join((ended.stderr or ended.stdout).split()) or f"{command[0]} ended with {ended.returncode}"
        )
    return ended.stdout


def each(name: str) -> list[str]:
    """The jobs that a name stands for: those of an array that never began are one line, "26_[0-2,7%4]"."""
    array, bracket, rest = name.partition("_[")
    if not bracket:
        return [name]
    spans = [part.partition("-") for part in rest.rstrip("]").partition("%")[0].split(",")]
    return [f"{array}_{task}" for first, _, last in spans for task in range(int(first), int(last or first) + 1)]


def _by_id(told: Iterable[tuple[str, Known]]) -> dict[str, Known]:
    return {one: known for name, known in told for one in each(name)}


def _queued(line: str) -> tuple[str, Known]:
    name, state, reason, node, left = line.split("|")
    return name, Known(
        state, reason.strip("()") if state != "RUNNING" else "", node, left if state == "RUNNING" else ""
    )


def _ended(line: str) -> tuple[str, Known]:
    name, state, code, node = line.split("|")
    return name, Known(state.split()[0], code, "" if node == "None assigned" else node, "")
