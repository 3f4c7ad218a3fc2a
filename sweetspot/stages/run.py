"""One run: its store, its workers, and what its stages did."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from sweetspot import launch, ranks
from sweetspot.dpo import DPO, DeepSpeed
from sweetspot.launch import Launch
from sweetspot.logger import Logs
from sweetspot.sft import SFT
from sweetspot.store import CorruptTileError, Store, read_tile
from sweetspot.tile import Cover, Group, Plan


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage did: how many of its units (tiles, rows, policies) were made and how many were there already."""

    name: str
    unit: str
    made: int
    reused: int
    seconds: float


@dataclasses.dataclass
class Run:
    """One run: where its artefacts and files lie, how its workers are started, and what its stages did so far.

    Attributes:
        before: checks, by name, that are made once before the first worker starts: what would else fail hours later.
    """

    store: Store
    folder: Path
    launch: Launch
    log: Logs
    remake_corrupt: bool
    before: dict[str, Callable[[], None]] = dataclasses.field(default_factory=dict[str, Callable[[], None]])
    stages: list[Stage] = dataclasses.field(default_factory=list[Stage])
    began: list[float] = dataclasses.field(default_factory=list[float])  # when each stage did, of time.monotonic()

    def work(
        self, title: str, module: str, job: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> None:
        """Run a worker in a process of its own; its metrics go to the logger."""
        self._begin()
        own = {**self.launch.environment(), **(environment or {})}
        launch.run(module, job, self._job_folder(title), own, self.log.log)

    def fill(
        self,
        title: str,
        module: str,
        job: Mapping[str, Any],
        missing: int,
        group: int,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Have workers make a pool's missing tiles, together with whoever else is making them.

        Args:
            missing: tiles; more workers than that are not started.
            group: GPUs that share one copy of the model.

        Returns:
            How many tiles this run's workers placed.
        """
        self._begin()
        workers = [{**own, **(environment or {})} for own in self.launch.workers(group)[:missing]]
        job = {**job, "lease_seconds": self.launch.lease_seconds}
        return launch.run_workers(module, job, self._job_folder(title), workers, self.log.log)

    def train(
        self,
        title: str,
        module: str,
        job: Mapping[str, Any],
        deepspeed: DeepSpeed,
        settings: DPO | SFT,
        trained: str,
        until: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run a training job: in one process, or on a rank for each device of this node and of the others.

        Args:
            settings: of the training.
            trained: the key of what it makes, by which its curve is logged.
            until: True when the job has been done elsewhere.
        """
        spread, environment = ranks.fitted(self.launch, settings.batch_size), settings.environment()
        take = partial(self.log.curve, trained)
        self._begin()
        if not deepspeed.stage and ranks.total(spread) == 1:
            alone = {**self.launch.environment(), **environment}
            return launch.run(module, job, self._job_folder(title), alone, take)
        more = {**environment, **(ranks.deepspeed_environment() if deepspeed.stage else {})}
        own = [{**one, **more} for one in ranks.environments(spread)]
        timeout = self.launch.timeout_seconds
        return ranks.run(module, job, self._job_folder(title), own, take, timeout, until)

    def lend(self, title: str, module: str, folder: Path, deepspeed: DeepSpeed, settings: DPO | SFT) -> None:
        """On another node than the first: lend its ranks to a training job until what it makes is in its place.

        The job comes from rank 0, so that nothing is written here.

        Raises:
            WorkerError: when a rank is lost, or the first node does not put the model into its place.
        """
        if not folder.exists():
            job = {"deepspeed": {"stage": deepspeed.stage}}
            self.train(title, module, job, deepspeed, settings, folder.name, folder.exists)
        deadline = time.monotonic() + self.launch.timeout_seconds
        while not folder.exists():
            if time.monotonic() > deadline:
                raise launch.WorkerError(f"{title}: the first node has trained, but {folder} is not in its place")
            time.sleep(launch.POLL_SECONDS)

    def _begin(self) -> None:
        while self.before:
            self.before.pop(next(iter(self.before)))()

    def _job_folder(self, title: str) -> Path:
        return self.folder / "jobs" / f"{len(self.stages):02d}-{title.replace(' ', '-')}"

    def did(self, name: str, unit: str, made: int, reused: int, started: float) -> None:
        """Record and log a finished stage; `started` is of time.monotonic().

        Its seconds are its own: those of the stages inside it, which are recorded already, do not count.
        """
        inside = sum(stage.seconds for stage, began in zip(self.stages, self.began, strict=True) if began >= started)
        stage = Stage(name, unit, made, reused, round(max(0.0, time.monotonic() - started - inside), 2))
        self.stages.append(stage)
        self.began.append(started)
        self.log.log({f"stage/{name}/{what}": getattr(stage, what) for what in ("made", "reused", "seconds")})

    def missing(self, paths: Iterable[Path], schema: pa.Schema) -> set[Path]:
        """The tiles that are not there. With `remake_corrupt`, damaged ones are deleted and so are missing too."""
        absent: set[Path] = set()
        for path in paths:
            if path.exists() and self.remake_corrupt:
                try:
                    read_tile(path, schema)
                except CorruptTileError:
                    path.unlink()
            if not path.exists():
                absent.add(path)
        return absent

    def plan(
        self,
        cover: Cover,
        prompt_ids: Sequence[str],
        groups: Sequence[Group],
        n: int,
        pack: int | None,
        schema: pa.Schema | None,
    ) -> Plan:
        """Which tiles of a pool are there and which are missing (`Cover.plan`).

        With `remake_corrupt` and a schema, the tiles that are there are read, and damaged ones are deleted and so are
        missing too.
        """
        while True:
            try:
                plan = cover.plan(prompt_ids, groups, n, pack)
                for tile in plan.present if self.remake_corrupt and schema is not None else ():
                    read_tile(tile.at(cover.folder), schema)
                return plan
            except CorruptTileError as error:
                if not self.remake_corrupt:
                    raise
                error.path.unlink(missing_ok=True)
