"""Metrics as JSON lines."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from sweetspot.component import component, json_values
from sweetspot.logger import binned


@component
class JsonlLogger:
    """Metrics go to log.jsonl in the run's folder, one JSON object a line, each with its time."""

    def check(self) -> list[str]:
        """Nothing can be wrong."""
        return []

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
        r"""Add the metrics as a line; NaN and infinity become null, lone surrogates escapes (`\ud800`)."""
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **metrics}
        line = json.dumps(json_values(entry), ensure_ascii=False, allow_nan=False) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode(errors="backslashreplace"))

    def histogram(self, name: str, values: NDArray[Any]) -> None:
        """Add the counts and edges of the bins as a line."""
        counts, edges = binned(values)
        self.log({"histogram": name, "counts": counts, "edges": edges})

    def table(self, name: str, rows: pa.Table) -> None:
        """Nothing: the rows lie in the store."""

    def close(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:  # noqa: ARG002 - they lie beside it
        """Add the summary as the last line."""
        self.log({"event": "finish", "summary": summary})
