"""Where the jobs of a sweep run: the components of `conf/launcher`. None of their fields changes a result."""

import re
from typing import Any, Literal

from pydantic import Field

from sweetspot.component import component

Plan = Literal["pooled", "simple"]


@component
class Local:
    """Every job in turn, in a process of its own on this machine."""

    dry_run: bool
    calibration: str = Field(min_length=1)
    price_per_device_hour: float | None = Field(ge=0)


@component
class SubmititLocal:
    """All jobs at once on this machine, in the background."""

    dry_run: bool
    wait: bool
    calibration: str = Field(min_length=1)
    price_per_device_hour: float | None = Field(ge=0)


@component
class Shape:
    """What one job asks SLURM for."""

    gpus: int = Field(ge=0)
    cpus: int = Field(ge=1)
    memory_gb: float | None = Field(gt=0)
    minutes: int = Field(ge=1)


@component
class Slurm:
    """Jobs of a SLURM cluster, one array for those of a part. null leaves a choice to the cluster."""

    plan: Plan
    dry_run: bool
    wait: bool
    calibration: str = Field(min_length=1)
    price_per_device_hour: float | None = Field(ge=0)
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    reservation: str | None
    exclude: str | None
    dependency: str | None
    nodes: int = Field(ge=1)
    gpus: int = Field(ge=0)
    cpus: int = Field(ge=1)
    memory_gb: float | None = Field(gt=0)
    minutes: int = Field(ge=1)
    pool: Shape
    pool_jobs: int = Field(ge=1)
    array_parallelism: int = Field(ge=1)
    signal_seconds: int = Field(ge=1)
    requeues: int = Field(ge=0)
    setup: list[str]
    container: str | None
    python: str | None
    shared: list[str] | None
    more: dict[str, Any]

    def __post_init__(self) -> None:
        longest = 60 * min(self.minutes, self.pool.minutes)
        if self.signal_seconds >= longest:
            raise ValueError(f"signal_seconds must be < the time of a job ({longest} s), got {self.signal_seconds}")
        if self.dependency is not None and not re.fullmatch(
            r"(after\w*:[\w:+]+|singleton)([,?][\w:+]+)*", self.dependency
        ):
            raise ValueError(f"dependency must be as sbatch takes it (afterok:123), got {self.dependency}")

    def of(self, part: str) -> Shape:
        """What a job of a part asks for."""
        if part == "pool":
            return self.pool
        return Shape(gpus=self.gpus, cpus=self.cpus, memory_gb=self.memory_gb, minutes=self.minutes)


Launcher = Local | SubmititLocal | Slurm
