"""The forecast of a sweep before it is submitted: what its jobs will make and reuse, and what that takes."""

from collections.abc import Sequence
from pathlib import Path

from sweetspot.devices import visible_gpus
from sweetspot.store import StoreError
from sweetspot.sweep import rates
from sweetspot.sweep.folder import Job
from sweetspot.sweep.forecast import Forecast, Need
from sweetspot.sweep.launcher import Launcher, Local, Slurm
from sweetspot.sweep.points import Known
from sweetspot.sweep.submit import PARTS
from sweetspot.sweep.work import Work


def forecast(
    jobs: Sequence[Job],
    known: Known,
    launcher: Launcher,
) -> tuple[Forecast, list[str]]:
    """The forecast of the jobs that are to be submitted, and what it leaves out, a line each.

    Args:
        jobs: those.
        known: their points, composed.
        launcher: where they run.

    Raises:
        ValueError: for a calibration that cannot be read.
    """
    calibration = rates.read(Path(launcher.calibration))
    found, left_out, works = Forecast(calibration), dict[str, None](), dict[str, Work]()
    for part in PARTS:
        needs: list[list[Need]] = []
        for job in jobs:
            if job.part != part:
                continue
            try:
                if isinstance(one := known[job.overrides], str):
                    raise ValueError(one)
                store = str(one.config["store"])
                needs.append(works.setdefault(store, Work(Path(store), calibration)).of(one.config))
            except (ValueError, StoreError, OSError) as error:
                left_out[f"{job.name} is not counted: {' '.join(str(error).split())}"] = None
        found.add(needs, _at_once(launcher, len(needs)), _devices(launcher, part))
    return found, [*(one for work in works.values() for one in work.unknown), *left_out]


def _at_once(launcher: Launcher, count: int) -> int:
    """Jobs that run together, as far as the launcher knows."""
    if isinstance(launcher, Local):
        return 1
    return max(1, min(count, launcher.array_parallelism) if isinstance(launcher, Slurm) else count)


def _devices(launcher: Launcher, part: str) -> int:
    """GPUs of a job, or 1: its share of the processor."""
    return max(1, launcher.of(part).gpus if isinstance(launcher, Slurm) else len(visible_gpus()))
