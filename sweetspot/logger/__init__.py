"""Where metrics go: a file of JSON lines, Weights & Biases, both, or nowhere.

A logger says where, and its `open` starts a run's sink there. Metrics are flat: names to numbers or strings. Those
with a "step" belong to training at that step; those without belong to a stage. A logger that fails ends no run.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console

from sweetspot.visible import one_line

BINS = 64  # of a histogram
CURVES = "curves.txt"  # in a run's folder: a line for each step of a training that a log of it has taken


class Sink(Protocol):
    """The open log of one run."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Take flat metrics, of the training step `metrics["step"]` or, without it, of a stage."""
        ...

    def histogram(self, name: str, values: NDArray[Any]) -> None:
        """Take the distribution of numbers; those that are not finite do not count."""
        ...

    def table(self, name: str, rows: pa.Table) -> None:
        """Take rows that lie in the run's store as well."""
        ...

    def close(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Take what the run came to and the files that it left (manifest.json, report.html), and end the log."""
        ...


@runtime_checkable
class Logger(Protocol):
    """Where the metrics of a run go."""

    def check(self) -> list[str]:
        """What should be known before a run, a line each; ValueError in one line where a setting cannot be met."""
        ...

    def open(self, folder: Path, config: Mapping[str, Any], name: str) -> Sink:
        """The sink of a run that keeps its files in `folder`; opened again there, the log goes on."""
        ...


class Logs:
    """The open logs of one run, by name. One that fails is told of once and left, and the run goes on without it.

    Attributes:
        warnings: a line for each that failed.
        folder: the run's; None for logs that are never opened again.
    """

    def __init__(
        self, sinks: Mapping[str, Sink], warnings: list[str] | None = None, folder: Path | None = None
    ) -> None:
        self.sinks, self.warnings, self.folder = dict(sinks), [] if warnings is None else warnings, folder
        self._taken: set[str] | None = None

    def log(self, metrics: Mapping[str, Any]) -> None:
        """As in `Sink`."""
        self._each(lambda sink: sink.log(metrics))

    def curve(self, trained: str, metrics: Mapping[str, Any]) -> None:
        """As `log`, of the training of the model with this key. A step of it is taken once by each log, whichever run
        made it, and however often this one goes on in its folder."""
        if "step" not in metrics:
            return self.log(metrics)
        for name in list(self.sinks):
            self._each(lambda sink, at=name: self._step(sink, f"{at} {trained} {metrics['step']}", metrics), name)
        return None

    def histogram(self, name: str, values: NDArray[Any]) -> None:
        """As in `Sink`."""
        self._each(lambda sink: sink.histogram(name, values))

    def table(self, name: str, rows: pa.Table) -> None:
        """As in `Sink`."""
        self._each(lambda sink: sink.table(name, rows))

    def close(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """As in `Sink`."""
        self._each(lambda sink: sink.close(summary, files))

    def failed(self, name: str, error: Exception) -> None:
        """Leave a log that failed, and tell."""
        self.sinks.pop(name, None)
        told = one_line(str(error)) or type(error).__name__
        self.warnings.append(f"logging to {name} ended: {told}; the run goes on without it")
        warn(self.warnings[-1])

    def _step(self, sink: Sink, entry: str, metrics: Mapping[str, Any]) -> None:
        path = self.folder / CURVES if self.folder else None
        if self._taken is None:
            self._taken = set(path.read_text().splitlines()) if path and path.exists() else set()
        if entry in self._taken:
            return
        sink.log(metrics)
        self._taken.add(entry)
        if path:
            with path.open("a") as file:
                file.write(f"{entry}\n")

    def _each(self, do: Callable[[Sink], None], only: str | None = None) -> None:
        for name, sink in list(self.sinks.items()):
            if only not in (None, name):
                continue
            try:
                do(sink)
            except Exception as error:  # whatever a service or a disk does: the run is worth more than its log
                self.failed(name, error)


def warn(words: str) -> None:
    """Tell on standard error, in one line."""
    Console(stderr=True).print(f"warning: {one_line(words)}", highlight=False, markup=False, soft_wrap=True)


def open_all(
    loggers: Mapping[str, Logger], folder: Path, config: Mapping[str, Any], name: str, warnings: list[str]
) -> Logs:
    """The open logs of a run that keeps its files in `folder`.

    Args:
        loggers: by name.
        folder: the run's.
        config: the composed configuration.
        name: of the run.
        warnings: gets a line more for each log that fails, now or later.
    """
    logs = Logs({}, warnings, folder)
    for at, logger in loggers.items():
        try:
            logs.sinks[at] = logger.open(folder, config, name)
        except Exception as error:
            logs.failed(at, error)
    return logs


def check(loggers: Mapping[str, Logger]) -> list[str]:
    """What should be known of the loggers before a run, a line each.

    Raises:
        ValueError: in one line, for a setting that cannot be met, and for what is no logger.
    """
    told: list[str] = []
    for name, logger in loggers.items():
        if not isinstance(logger, Logger):
            chosen = f"; choose it as well: logger={name}" if isinstance(logger, Mapping) else ""
            raise ValueError(f"logger.{name} must be a Logger, got {type(logger).__name__}{chosen}")
        told += logger.check()
    return told


def withhold_texts(loggers: Mapping[str, Logger]) -> bool:
    """Whether one of them sends files elsewhere without texts of conversations: its field `text` is false."""
    return any(getattr(logger, "text", None) is False for logger in loggers.values())


def binned(values: NDArray[Any]) -> tuple[list[int], list[float]]:
    """The counts of the finite values in 64 bins of one width, and the bins' edges; both are empty without any."""
    kept = values[np.isfinite(values)].astype(np.float64)
    if not len(kept):
        return [], []
    counts, edges = np.histogram(kept, BINS)
    return counts.tolist(), edges.tolist()
