"""The summary of a sweep in Weights & Biases: a run beside those of its jobs, where they are kept there."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sweetspot.component import build
from sweetspot.logger import open_all
from sweetspot.logger.private import HIDDEN, Private, private
from sweetspot.logger.wandb_logger import WandbLogger
from sweetspot.report import write_sweep
from sweetspot.sweep.folder import Sweep
from sweetspot.sweep.points import key_of

PLACES = ("log", "manifest", "overrides")  # columns of the table that say where things lie; the job's name has the rest

Facts = Mapping[str, Any]


def send(sweep: Sweep, table: Sequence[Facts], facts: Facts, jobs: Sequence[Facts]) -> None:
    """Log the table of points and sweep.html as a run of the sweep's own, under the same id each time.

    Nothing where no job's manifest says that it was logged to W&B. A fault of W&B is told in one line.

    Args:
        sweep: lies in its folder.
        table: as `collect.rows` makes it.
        facts, jobs: as `report.write_sweep` takes them.
    """
    logger = next((one for job in jobs if job["manifest"] for one in _loggers(job["manifest"])), None)
    if logger is None:
        return
    typed = {job.name: _values(job.overrides) for job in sweep.jobs}
    hidden = private({key: value for values in typed.values() for key, value in values.items()}, logger.text)
    rows = [_row(row, hidden, typed[row["job"]], logger.text) for row in table]
    about = {"created": sweep.created, "commit": sweep.commit, "plan": sweep.plan, "jobs": len(sweep.jobs)}
    logs = open_all({"wandb": logger}, sweep.folder, about, sweep.folder.name, [])
    logs.table("points", pa.Table.from_pylist(rows, pa.schema(_schema(rows))))
    with tempfile.TemporaryDirectory() as folder:
        cleaned = [_job(job, hidden, typed[job["name"]], logger.text) for job in jobs]
        command = facts["command"] if logger.text else HIDDEN
        page = write_sweep(Path(folder) / "sweep.html", {**facts, "command": hidden.text(command)}, cleaned)
        done = sum(row["standing"] == "done" for row in table)
        logs.close({"points": len(table), "done": done}, [page])


def _loggers(manifest: Facts) -> list[WandbLogger]:
    parts = [part for part in manifest["config"]["logger"].values() if isinstance(part, Mapping)]
    return [one for part in parts if isinstance(one := build(part, "logger"), WandbLogger)]


def _values(overrides: Sequence[str]) -> dict[str, str]:
    return {key_of(one).lstrip("+~"): one.partition("=")[2] for one in overrides}


def _row(row: Facts, hidden: Private, typed: Mapping[str, str], text: bool) -> dict[str, Any]:
    """A point of the table without what is private; why it failed may quote a text."""
    kept = {name: value for name, value in row.items() if name not in PLACES}
    return {**kept, "job": hidden.name(row["job"], typed), "reason": _reason(row["reason"], hidden, text)}


def _job(job: Facts, hidden: Private, typed: Mapping[str, str], text: bool) -> dict[str, Any]:
    manifest = json.loads(json.dumps(hidden.scrubbed(job["manifest"])))
    own = {"name": hidden.name(job["name"], typed), "reason": _reason(job["reason"], hidden, text)}
    return {**job, **own, "log": HIDDEN, "page": None, "manifest": manifest}


def _reason(reason: str, hidden: Private, text: bool) -> str:
    return hidden.text(reason) if text or not reason else HIDDEN


def _schema(rows: Sequence[Facts]) -> list[tuple[str, pa.DataType]]:
    """The columns of rows that do not all have the same: numbers but for those of which one is a text."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [
        (name, pa.string() if any(isinstance(row.get(name), str) for row in rows) else pa.float64()) for name in names
    ]
