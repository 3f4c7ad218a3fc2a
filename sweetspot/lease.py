"""Leases: which tiles are being made, so that any number of processes fill one pool together.

    .T.lease.G        the lease of generation G = 0, 1, .. on the tile T.parquet; the highest generation holds the tile

A lease is linked into place exclusively, whole, with its holder as JSON inside, and its holder touches it six times a
term. No two clocks are compared: a lease is dead when its process is gone from this machine, or when its modification
time did not change for a whole term of the watcher's own clock. A dead lease is never renamed or deleted to take it
over: the next generation is made, which one of several watchers can do. A holder that was taken for dead and wakes up
finds that the first writer of the tile won.

It needs exclusive links, modification times and nothing else of the file system (NFS and Lustre included).
"""

import contextlib
import getpass
import json
import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sweetspot.store import write_text

BEATS = 6  # heartbeats in a term
NAME = re.compile(r"\.(?P<tile>.+)\.lease\.(?P<generation>\d+)")


@dataclass(frozen=True)
class Holder:
    """Who holds a tile.

    Attributes:
        host, pid, user: where to look for it.
        started: when its process started, in the kernel's ticks, so that a new process of the same number is another.
        space: the boot and process namespace that pid and started belong to; "" where the system does not tell.
        prompt_ids: whose samples it makes; empty where the name of the tile says enough.
    """

    host: str
    pid: int
    user: str
    started: int
    space: str
    prompt_ids: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.user}@{self.host} (process {self.pid})"

    @classmethod
    def here(cls, prompt_ids: Sequence[str] = ()) -> "Holder":
        """This process."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, getpass.getuser(), _started(pid) or 0, _space(), prompt_ids)

    def without_prompts(self) -> "Holder":
        """Who it is, whatever it makes."""
        return replace(self, prompt_ids=())

    def gone(self) -> bool:
        """Whether its process is known to have ended; False also where this machine cannot know."""
        return bool(self.space) and self.space == _space() and _started(self.pid) != self.started


def _started(pid: int) -> int | None:
    """When a process of this machine started; None when it has ended, a zombie included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _space() -> str:
    """This boot of this machine, and the process namespace; containers on one machine differ."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # a system without /proc: only the heartbeat tells
        return ""


@dataclass(frozen=True)
class Lease:
    """A tile that this process holds; `release` it when the tile is placed or given up."""

    tile: Path
    generation: int
    ended: threading.Event

    def release(self) -> None:
        """Stop the heartbeat and remove this lease and the dead ones below it."""
        self.ended.set()
        for generation in range(self.generation, -1, -1):
            with contextlib.suppress(OSError):  # gone already, or another user's in a folder with the sticky bit
                lease_path(self.tile, generation).unlink()


@dataclass
class Watch:
    """What one process has seen of the leases, timed by its own clock alone.

    As a context it removes, when an exception leaves it, the leases that were taken in it and not released: a stop
    signal may come at any moment, that between the making of a lease and its handing over included.

    Attributes:
        term: how long a lease without a heartbeat lives, seconds.
        seen: by lease file, its modification time (ns) and when, on this process's monotonic clock, it was new.
        taken: the lease files that this process made, or was about to.
    """

    term: float
    seen: dict[Path, tuple[int, float]] = field(default_factory=dict[Path, tuple[int, float]])
    taken: set[Path] = field(default_factory=set[Path])

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        me = Holder.here()
        for path in self.taken if kind else ():
            if (holder := read_holder(path)) and holder.without_prompts() == me:
                path.unlink(missing_ok=True)

    def claim(self, tile: Path, generation: int | None, prompt_ids: Sequence[str] = ()) -> Lease | Holder | None:
        """The lease on a tile, or who holds it, or None when that changed just now: look again.

        The holder of a new lease looks whether the tile is still missing before it makes it.

        Args:
            tile: the tile's place.
            generation: the highest that was seen on it (`generations`), None when there is none.
            prompt_ids: recorded in the lease.
        """
        below: int | None = None
        if generation is not None:
            old = lease_path(tile, generation)
            if (holder := self.living(old)) is not None:
                return holder
            below = _touched(old)
        mine = 0 if generation is None else generation + 1
        self.taken.add(lease_path(tile, mine))
        if not write_text(lease_path(tile, mine), json.dumps(asdict(Holder.here(prompt_ids)))):
            return read_holder(lease_path(tile, mine))
        lease = Lease(tile, mine, threading.Event())
        overtaken = generations(tile.parent).get(tile.name.removesuffix(".parquet"), mine) > mine
        replaced = generation is not None and _touched(lease_path(tile, generation)) != below
        if overtaken or replaced:  # somebody released it, or took it, between our look and our lease
            lease.ended.set()
            lease_path(tile, mine).unlink(missing_ok=True)
            return None
        threading.Thread(target=_beat, args=(lease_path(tile, mine), lease.ended, self.term), daemon=True).start()
        return lease

    def living(self, path: Path) -> Holder | None:
        """The holder of a lease file, or None when the lease is dead or gone."""
        touched, holder = _touched(path), read_holder(path)
        if touched is None or holder is None or holder.gone():
            return None
        now = time.monotonic()
        before, since = self.seen.get(path, (None, now))
        if touched != before:
            self.seen[path] = (touched, now)
            return holder
        return holder if now - since < self.term else None


def lease_path(tile: Path, generation: int) -> Path:
    """Where the lease of a generation on a tile lies."""
    return tile.with_name(f".{tile.name.removesuffix('.parquet')}.lease.{generation}")


def generations(folder: Path) -> dict[str, int]:
    """The highest generation of lease on each tile of a folder, by the tile's name."""
    found: dict[str, int] = {}
    for name in listing(folder):
        if match := NAME.fullmatch(name):
            found[match["tile"]] = max(found.get(match["tile"], 0), int(match["generation"]))
    return found


def listing(folder: Path) -> list[str]:
    """The names in a folder, in one reading; [] when there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except FileNotFoundError:
        return []


def read_holder(path: Path) -> Holder | None:
    """Who made a lease file; None when it is gone."""
    try:
        return Holder(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None


def _touched(path: Path) -> int | None:
    """The modification time of a file, ns, asked of an open file so that a network file system asks its server."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _beat(path: Path, ended: threading.Event, term: float) -> None:
    """Touch the lease with the file server's time until it ends or is gone."""
    while not ended.wait(term / BEATS):
        try:
            os.utime(path)
        except FileNotFoundError:  # taken over, and the tile placed
            return
        except OSError:  # a file server that is away for a moment; the next beat tries again
            continue
