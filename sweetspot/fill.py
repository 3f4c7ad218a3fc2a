"""Filling a pool: a worker takes tiles that nobody holds and makes them, until none is missing.

Any number of workers, of any number of jobs, fill one folder together (`sweetspot.lease`). A worker loads its engine
when it has claimed its first tile and not before. It writes a tile while the engine makes the next one.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sweetspot.launch import Emit, TileError
from sweetspot.lease import Holder, Lease, Watch, generations, lease_path, listing, read_holder
from sweetspot.store import StoreError

Loaded = TypeVar("Loaded")
PROGRESS_SECONDS = 1.0  # between two events
USER_ERRORS = (ValueError, StoreError)  # trying again would end the same way


@dataclass(frozen=True)
class Todo:
    """A tile that is to be made.

    Attributes:
        path: where it goes.
        size: responses in it.
        what: what the worker needs to know to make it.
        prompt_ids: whose samples it will hold, where tiles of other prompt sets may hold some of them too; such a tile
            is not begun while another one with one of them is being made.
    """

    path: Path
    size: int
    what: Any
    prompt_ids: Sequence[str] = ()


@dataclass
class Told:
    """What a worker tells of its progress: responses of the whole job, whoever made them.

    Attributes:
        emit: takes the events.
        per: unit of the rate ("tokens/s").
        total: responses that were missing when this worker began.
        done: of these, how many are there now.
        work: what this worker has done, in the rate's unit.
    """

    emit: Emit
    per: str
    total: int
    done: int = 0
    work: int = 0
    began: float = field(default_factory=time.monotonic)
    last: float = -PROGRESS_SECONDS

    def add(self, work: int, responses: int = 0) -> None:
        """Count what was done; called by the engine as often as it likes."""
        self.work += work
        self.done = min(self.total, self.done + responses)
        self.show()

    def show(self, note: str = "", now: bool = False) -> None:
        """Emit the state, at most once a second unless it must be `now`."""
        clock = time.monotonic()
        if not now and clock - self.last < PROGRESS_SECONDS:
            return
        self.last = clock
        state: dict[str, Any] = {"done": self.done, "total": self.total, "unit": "responses", "note": note}
        if self.work:
            state |= {"rate": self.work / (clock - self.began), "per": self.per}
        self.emit({"progress": state})


@dataclass
class Writing:
    """The tile that is being written in the background, and its lease, which is kept until it is placed."""

    emit: Emit
    thread: ThreadPoolExecutor
    now: tuple[Todo, Lease, "Future[bool]"] | None = None

    def begin(self, todo: Todo, lease: Lease, place: Callable[[], bool]) -> None:
        """Write a tile when the one before is placed."""
        self.wait()
        self.now = (todo, lease, self.thread.submit(place))

    def wait(self) -> bool:
        """Wait until nothing is being written; False when nothing was.

        Raises:
            StoreError, ValueError: an error of the user.
            TileError: any other, with the tile.
        """
        if self.now is None:
            return False
        todo, lease, placed = self.now
        self.now = None
        try:
            won = _tried(todo, placed.result)
        finally:
            lease.release()
        self.emit({"made" if won else "lost": todo.path.stem})
        return True


def fill(
    missing: Callable[[], Sequence[Todo]],
    load: Callable[[], Loaded],
    make: Callable[[Loaded, Todo, Told], Callable[[], bool]],
    emit: Emit,
    lease_seconds: float,
    per: str,
) -> None:
    """Make tiles until none is missing.

    Args:
        missing: the tiles of the job that are not there, in the order in which they are wanted; asked again and again.
        load: the engine. Not called when others make all the tiles.
        make: has the engine make a tile, tells of it, and returns what writes the tile: True when this call placed it.
        emit: takes {"progress"}, {"tile": one that was begun}, {"made" or "lost": one that was written}.
        lease_seconds: the term of a lease.
        per: unit of the rate.

    Raises:
        TileError: when the engine fails.
        ValueError, StoreError: errors of the user.
    """
    left = missing()
    told = Told(emit, per, sum(todo.size for todo in left))
    engine: Loaded | None = None
    with Watch(lease_seconds) as watch, ThreadPoolExecutor(1) as thread:
        writing = Writing(emit, thread)
        try:
            while left:
                own = {writing.now[0].path} if writing.now else set[Path]()
                told.done = told.total - sum(todo.size for todo in left if todo.path not in own)
                claimed, holders = claim(left, own, missing, watch)
                if claimed is not None:
                    engine = _make(*claimed, engine, load, make, told, writing)
                elif not writing.wait():
                    _wait(holders, told, lease_seconds)
                left = missing()
        finally:
            writing.wait()
    told.done = told.total
    told.show(now=True)


def _make(
    todo: Todo,
    lease: Lease,
    engine: Loaded | None,
    load: Callable[[], Loaded],
    make: Callable[[Loaded, Todo, Told], Callable[[], bool]],
    told: Told,
    writing: Writing,
) -> Loaded:
    """Make a tile that was claimed and begin to write it; returns the engine."""
    told.emit({"tile": todo.path.stem})
    told.show()
    try:
        loaded = load() if engine is None else engine
        writing.begin(todo, lease, _tried(todo, lambda: make(loaded, todo, told)))
    except BaseException:
        lease.release()
        raise
    return loaded


def _wait(holders: Counter[Holder], told: Told, lease_seconds: float) -> None:
    """Say for whom this worker waits, and wait a little."""
    named = ", ".join(f"{holder}: {count}" for holder, count in holders.most_common(3))
    more = f" and {len(holders) - 3} more" if len(holders) > 3 else ""
    told.show(f"waiting for tiles of {named}{more}" if holders else "")
    time.sleep(min(1.0, lease_seconds / 20) * random.uniform(0.5, 1.0))


def claim(
    left: Sequence[Todo], own: set[Path], missing: Callable[[], Sequence[Todo]], watch: Watch
) -> tuple[tuple[Todo, Lease] | None, Counter[Holder]]:
    """The first missing tile that nobody holds, with its lease; or None, and who holds how many."""
    holders: Counter[Holder] = Counter()
    known = {folder: generations(folder) for folder in {todo.path.parent for todo in left}}
    for todo in left:
        if todo.path in own:
            continue
        held = watch.claim(todo.path, known[todo.path.parent].get(todo.path.stem), todo.prompt_ids)
        if isinstance(held, Holder):
            holders[held.without_prompts()] += 1
        elif held is not None:
            if any(again.path == todo.path for again in missing()):  # it may have been placed meanwhile
                if (other := conflict(todo, left, watch)) is None:
                    return (todo, held), holders
                holders[other.without_prompts()] += 1
            held.release()
    return None, holders


def conflict(todo: Todo, left: Sequence[Todo], watch: Watch) -> Holder | None:
    """Who is making another tile with one of the same samples: that of another prompt set, from the same first sample.

    Whoever sees the other steps back, so two that begin at once both do, and try again a moment later.
    """
    known = {other.path.stem for other in left}
    first = todo.path.stem.rpartition("-")[2]
    for name, generation in generations(todo.path.parent).items():
        if not todo.prompt_ids or name in known or name.rpartition("-")[2] != first:
            continue
        path = lease_path(todo.path.with_name(f"{name}.parquet"), generation)
        holder = read_holder(path)
        if holder and set(holder.prompt_ids) & set(todo.prompt_ids) and watch.living(path):
            return holder
    return None


Result = TypeVar("Result")


def _tried(todo: Todo, attempt: Callable[[], Result]) -> Result:
    """What the attempt gives; what goes wrong and is no error of the user becomes a TileError."""
    try:
        return attempt()
    except USER_ERRORS:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise TileError(todo.path.stem, f"{type(error).__name__}: {text}") from error


def absent(todos: Sequence[Todo]) -> list[Todo]:
    """Those whose file is not there, by one listing of each folder."""
    there = {folder: set(listing(folder)) for folder in {todo.path.parent for todo in todos}}
    return [todo for todo in todos if todo.path.name not in there[todo.path.parent]]
