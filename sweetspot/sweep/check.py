"""What of a submission can be seen to be wrong before it: partition, GPUs, and folders that the nodes cannot see."""

import math
import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sweetspot.sweep.launcher import Slurm
from sweetspot.sweep.slurm import call
from sweetspot.sweep.submit import parameters

# file systems that a machine has for itself; network file systems (nfs, lustre, gpfs, beegfs, ceph, ...) are not here
OWN = frozenset({"tmpfs", "ramfs", "devtmpfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "squashfs"})


class NoClusterError(ValueError):
    """No SLURM answers from here; the text says what to do."""


@dataclass(frozen=True)
class Partition:
    """A partition as sinfo tells it.

    Attributes:
        name: as `launcher.partition` names it.
        default: whether it is taken when none is named.
        gpus: the most GPUs that one of its nodes has.
        minutes: the longest time of a job, infinite where there is no limit.
    """

    name: str
    default: bool
    gpus: int
    minutes: float


def check(launcher: Slurm, folders: dict[str, Path]) -> None:
    """Refuse what the cluster would refuse, and folders that its nodes cannot see.

    Args:
        launcher: what is about to be asked for.
        folders: by key ("store"), those that every node must see.

    Raises:
        NoClusterError: when there is none to ask.
        ValueError: one line: key, rule, value.
    """
    if shutil.which("sbatch") is None:
        raise NoClusterError("launcher=slurm must find sbatch on PATH: log in to a cluster, or take launcher=local")
    known = partitions()
    _check_partition(launcher, known)
    hosts = call("scontrol", "show", "nodes", "--oneliner")
    for name, folder in folders.items():
        check_seen(name, folder, _hosts(hosts), launcher.shared)
    for part in ("run", "pool") if launcher.plan == "pooled" else ("run",):
        _test(launcher, part)


def partitions() -> list[Partition]:
    """The partitions of the cluster.

    Raises:
        NoClusterError: when it does not answer.
    """
    try:
        told = call("sinfo", "--noheader", "--format=%P|%G|%l")
    except ValueError as error:
        wanted = "log in to one or set SLURM_CONF, or take launcher=local"
        raise NoClusterError(f"launcher=slurm must reach a cluster: {wanted}; SLURM says: {error}") from None
    found: dict[str, Partition] = {}
    for line in told.splitlines():
        name, gres, limit = line.split("|")
        own = found.get(name.rstrip("*"), Partition(name.rstrip("*"), name.endswith("*"), 0, minutes_of(limit)))
        found[own.name] = replace(own, gpus=max(own.gpus, gpus_of(gres)))
    return list(found.values())


def minutes_of(limit: str) -> float:
    """A time in SLURM's words ("infinite", "1-12:00:00", "30:00"), in minutes."""
    if not limit[0].isdigit():
        return math.inf
    days, _, clock = limit.rpartition("-")
    hours, minutes, seconds = [0, *map(int, clock.split(":"))][-3:]
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def gpus_of(gres: str) -> int:
    """The GPUs of a node in SLURM's words: 4 of "gpu:a100:4(S:0-1),shard:8"."""
    counts = [part.partition("(")[0].split(":") for part in gres.split(",") if part.startswith("gpu")]
    return sum(int(words[-1]) if words[-1].isdigit() else 1 for words in counts)


def check_seen(name: str, folder: Path, hosts: Sequence[str], shared: Sequence[str] | None) -> None:
    """Hold a folder against what all nodes see: `shared`, or else the kind of its file system.

    Raises:
        ValueError: when it lies elsewhere.
    """
    place = folder.resolve()
    if shared is not None:
        if not any(place.is_relative_to(Path(one).resolve()) for one in shared):
            raise ValueError(f"{name} must lie under one of launcher.shared ({', '.join(shared)}), got {place}")
        return
    kind = file_system(place, Path("/proc/self/mounts").read_text())
    if set(hosts) - {socket.gethostname(), socket.gethostname().partition(".")[0]} and kind in OWN:
        raise ValueError(
            f"{name} must lie where every node sees it, got {place} on a file system of this machine ({kind}); "
            "if all nodes do see it, name it in launcher.shared"
        )


def check_writable(name: str, folder: Path) -> None:
    """Refuse a folder that cannot be written or made.

    Raises:
        ValueError: naming it.
    """
    there = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{name} must be a folder that can be written, got {folder}")


def file_system(place: Path, mounts: str) -> str:
    """The kind of the file system that a place is or will be on, by the lines of /proc/mounts."""
    fields = [line.split() for line in mounts.splitlines()]
    over = [(where, kind) for _, where, kind, *_ in fields if place.is_relative_to(where.replace("\\040", " "))]
    return max(over, key=lambda one: len(one[0]), default=("", "unknown"))[1]


def _check_partition(launcher: Slurm, known: Sequence[Partition]) -> None:
    names = [one.name for one in known]
    wanted = launcher.partition.split(",") if launcher.partition else [one.name for one in known if one.default]
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(f"launcher.partition must be one of {', '.join(names)}, got {', '.join(unknown)}")
    longest = max((one.minutes for one in known if one.name in wanted), default=math.inf)
    for key, minutes in {"minutes": launcher.minutes, "pool.minutes": launcher.pool.minutes}.items():
        if minutes > longest:
            where = f"partition {', '.join(wanted)}"
            raise ValueError(f"launcher.{key} must be <= {longest:g}, the time limit of {where}, got {minutes}")
    most = max((one.gpus for one in known if one.name in wanted), default=0)
    for key, gpus in {"gpus": launcher.gpus, "pool.gpus": launcher.pool.gpus}.items():
        if gpus > most:
            where = f"a node of partition {', '.join(wanted)} has"
            raise ValueError(f"launcher.{key} must be <= {most}, the most that {where}, got {gpus}")


def _hosts(nodes: str) -> list[str]:
    words = [word.partition("=") for line in nodes.splitlines() for word in line.split()]
    return sorted({value for key, _, value in words if key == "NodeHostName"})


def _test(launcher: Slurm, part: str) -> None:
    """Have sbatch look at the request without submitting it.

    Raises:
        ValueError: with SLURM's words.
    """
    wanted = parameters(launcher, part, [], "test")
    left_out = {
        "array_parallelism",
        "signal_delay_s",
        "setup",
        "teardown",
        "stderr_to_stdout",
        "additional_parameters",
        "srun_args",
    }
    options = {name: value for name, value in wanted.items() if name not in left_out | {"dependency"}}
    options |= wanted["additional_parameters"]
    flags = [_flag(name, value) for name, value in options.items()]
    try:
        call("sbatch", "--test-only", *flags, "--wrap=true")
    except ValueError as error:
        raise ValueError(f"launcher: SLURM refuses such a job: {error}") from None


def _flag(name: str, value: object) -> str:
    return f"--{name.replace('_', '-')}" if value is True else f"--{name.replace('_', '-')}={value}"
