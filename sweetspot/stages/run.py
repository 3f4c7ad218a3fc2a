"""One run: its store, its workers, and what its stages did."""

import dataclasses
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from sweetspot import launch
from sweetspot.component import key, within
from sweetspot.launch import Launch
from sweetspot.logger import Sink
from sweetspot.model import EMBEDDED, Model
from sweetspot.store import CorruptTileError, Store, read_tile


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
    """One run: where its artefacts and files lie, how its workers are started, and what its stages did so far."""

    store: Store
    folder: Path
    launch: Launch
    log: Sink
    remake_corrupt: bool
    stages: list[Stage] = dataclasses.field(default_factory=list[Stage])

    def work(
        self, title: str, module: str, job: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> None:
        """Run a worker in a process of its own; its metrics go to the logger."""
        folder = self.folder / "jobs" / f"{len(self.stages):02d}-{title.replace(' ', '-')}"
        launch.run(module, job, folder, {**self.launch.environment(), **(environment or {})}, self.log.log)

    def did(self, name: str, unit: str, made: int, reused: int, started: float) -> None:
        """Record and log a finished stage; `started` is of time.monotonic()."""
        stage = Stage(name, unit, made, reused, round(time.monotonic() - started, 2))
        self.stages.append(stage)
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


def prepare(part: Any, run: Run) -> Any:
    """The component with the embedded model, wherever it is named in it, as a folder of the store, made when absent."""
    if isinstance(part, Model):
        return part.at(embedded_folder(run)) if part.path == EMBEDDED else part
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return part
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if (ready := within(value, lambda inner: prepare(inner, run))) != value:
            changed[field.name] = ready
    return dataclasses.replace(part, **changed) if changed else part


def embedded_folder(run: Run) -> Path:
    """The converted SmolLM2 in the store."""
    from sweetspot.embedded import smollm2

    started = time.monotonic()
    folder = run.store.folder("models", f"smollm2_135m-{key(smollm2.RECIPE)}")
    if not folder.exists():
        with run.store.building(folder, {"recipe": smollm2.RECIPE}) as scratch:
            run.work("prepare", "sweetspot.embedded.smollm2", {"folder": str(scratch)})
        run.did("prepare", "models", 1, 0, started)
    return folder
