"""Where metrics go: a file of JSON lines, Weights & Biases, or nowhere.

A component says where, and its `open` starts a run's sink there. Metrics are flat: names to numbers or strings. Those
with a "step" belong to training at that step; those without belong to a stage.
"""

import json
import netrc
import os
import secrets
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.parse import urlparse

from rich.console import Console

from sweetspot.component import component, json_values

WANDB_HOST = "https://api.wandb.ai"


class Sink(Protocol):
    """The open log of one run."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Take flat metrics, of the training step `metrics["step"]` or, without it, of a stage."""
        ...

    def close(self, summary: Mapping[str, Any]) -> None:
        """Take what the run came to, and end the log."""
        ...


@runtime_checkable
class Logger(Protocol):
    """Where the metrics of a run go."""

    def open(self, folder: Path, config: Mapping[str, Any], name: str) -> Sink:
        """The sink of a run that keeps its files in `folder`; opened again there, the log goes on."""
        ...


@component
class NoLogger:
    """Metrics are not kept."""

    def open(self, folder: Path, config: Mapping[str, Any], name: str) -> "Nowhere":  # noqa: ARG002
        """A sink that keeps nothing."""
        return Nowhere()


class Nowhere:
    """A sink that keeps nothing."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Nothing."""


@component
class JsonlLogger:
    """Metrics go to log.jsonl in the run's folder, one JSON object a line, each with its time."""

    def open(self, folder: Path, config: Mapping[str, Any], name: str) -> "JsonLines":
        """The run's log.jsonl, lengthened where there is one; a half-written last line of it is cut off."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        if path.exists():
            with path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
        sink = JsonLines(path)
        sink.log({"event": "start", "name": name, "config": config})
        return sink


class JsonLines:
    """A file of JSON lines. Each line is one write to the file's end, so that a kill leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Add the metrics as a line; NaN and infinity become null."""
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **metrics}
        line = json.dumps(json_values(entry), ensure_ascii=False, allow_nan=False) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())

    def close(self, summary: Mapping[str, Any]) -> None:
        """Add the summary as the last line."""
        self.log({"event": "finish", "summary": summary})


@component
class WandbLogger:
    """Metrics go to Weights & Biases; its files lie in the run's folder.

    mode "auto": as WANDB_MODE says where that is set, else online where a key is known (WANDB_API_KEY or ~/.netrc) and
    offline where none is. Nothing ever waits for a key to be typed.
    """

    project: str
    entity: str | None
    mode: Literal["auto", "online", "offline"]
    group: str | None
    tags: list[str]

    def open(self, folder: Path, config: Mapping[str, Any], name: str) -> "WandbRun":
        """The W&B run of this folder: a new one, or the one whose id lies in wandb-id.txt.

        Raises:
            ValueError: wandb is not installed, or `mode` is online and no key is known.
        """
        try:
            import wandb  # only where it is asked for: the import takes a second and starts no service
        except ModuleNotFoundError:
            rule = "logger: wandb must be installed, got none; pip install 'sweetspot[wandb]', or set logger=jsonl"
            raise ValueError(rule) from None
        mode = self.resolved_mode()
        folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=self.tags,
            name=name,
            id=_kept_id(folder / "wandb-id.txt"),
            resume="allow" if mode == "online" else None,
            mode=mode,
            dir=str(folder),
            config=dict(config),
            settings=wandb.Settings(console="off", silent=True),
        )
        sync = f", send it later with: wandb sync {Path(run.dir).parent}" if mode == "offline" else ""
        place = run.url if mode == "online" else mode + sync
        Console(stderr=True).print(f"W&B: {place}", highlight=False, markup=False, soft_wrap=True)
        return WandbRun(run)

    def resolved_mode(self) -> Literal["online", "offline", "disabled"]:
        """Where the metrics will go.

        Raises:
            ValueError: `mode` is online and no key is known.
        """
        asked = os.environ.get("WANDB_MODE", "auto") if self.mode == "auto" else self.mode
        if asked in ("offline", "disabled"):
            return asked
        if _key_is_known():
            return "online"
        if asked == "online":
            raise ValueError("logger.mode must be auto or offline without a W&B key (WANDB_API_KEY), got online")
        return "offline"


class WandbRun:
    """An open W&B run: train/* is plotted over the training step, stage/* over the number of the stage's entry."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.stages = 0
        for steps, metrics in (("train/step", "train/*"), ("stage/number", "stage/*")):
            run.define_metric(steps, hidden=True)
            run.define_metric(metrics, step_metric=steps)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Log the metrics; those with a "step" get the prefix train/."""
        if "step" in metrics:
            self.run.log({f"train/{name.removeprefix('train/')}": value for name, value in metrics.items()})
        else:
            self.stages += 1
            self.run.log({"stage/number": self.stages, **metrics})

    def close(self, summary: Mapping[str, Any]) -> None:
        """Add the summary and end the run, marked as failed where an error is on its way."""
        self.run.summary.update(json_values(summary))
        self.run.finish(exit_code=1 if sys.exc_info()[0] else 0)


def _kept_id(path: Path) -> str:
    """The id of the run in this folder, made at its first start."""
    if not path.exists():
        path.write_text(secrets.token_hex(4) + "\n")
    return path.read_text().strip()


def _key_is_known() -> bool:
    """Whether W&B would find a key without asking for it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    if not path.is_file():
        return False
    host = urlparse(os.environ.get("WANDB_BASE_URL", WANDB_HOST)).hostname or ""
    return host in netrc.netrc(path).hosts
