"""The summary of a sweep in Weights & Biases: a run beside those of its jobs, where they are kept there."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sweetspot.component import build
from sweetspot.logger import open_all
from sweetspot.logger.private import HIDDEN, Private, flat, private
from sweetspot.logger.wandb_logger import WandbLogger
from sweetspot.sweep.folder import Sweep
from sweetspot.sweep.points import key_of

PLACES = (
    "log",
    "manifest",
    "overrides",
)  # columns of the table that tell of places, or that a job's name tells as well

Facts = Mapping[str, Any]


def send(sweep: Sweep, table: Sequence[Facts], write: Callable[[Path, Callable[[str], str]], list[Path]]) -> None:
    """Log the table of points and sweep.html as a run of the sweep's own, under the same id each time.

    Nothing where no job's manifest says that it was logged to W&B. A fault of W&B is told in one line.

    Args:
        sweep: lies in its folder.
        table: as `collect.rows` makes it.
        write: writes sweep.html into a folder, with the command and why a job failed as the function leaves them:
            what the page cuts short could not be found in it afterwards; gives the page, or none.
    """
    manifests = [json.loads(Path(row["manifest"]).read_text(encoding="utf-8")) for row in table if row.get("manifest")]
    logger = next((one for manifest in manifests for one in _loggers(manifest)), None)
    if logger is None:
        return
    hidden = _private(sweep, table, manifests, logger.text)
    names = {job.name: hidden.name(job.name, _typed(job.overrides)) for job in sweep.jobs}
    about = {"created": sweep.created, "commit": sweep.commit, "plan": sweep.plan, "jobs": len(sweep.jobs)}
    logs = open_all({"wandb": logger}, sweep.folder, about, sweep.folder.name, [])
    logs.table("points", _columns([_row(row, names, hidden, logger.text) for row in table]))
    with tempfile.TemporaryDirectory() as folder:
        pages = write(Path(folder), hidden.text if logger.text else lambda _: HIDDEN)
        for page in pages:
            html = page.read_text(encoding="utf-8")
            for name, clean in names.items():
                html = html.replace(name, clean)
            page.write_text(hidden.known(html), encoding="utf-8")
        done = sum(row["standing"] == "done" for row in table)
        logs.close({"points": len(table), "done": done}, pages)


def _loggers(manifest: Facts) -> list[WandbLogger]:
    parts = [part for part in (manifest["config"].get("logger") or {}).values() if isinstance(part, Mapping)]
    return [one for part in parts if isinstance(one := build(part, "logger"), WandbLogger)]


def _private(sweep: Sweep, table: Sequence[Facts], manifests: Sequence[Facts], text: bool) -> Private:
    """What must not leave this machine of any job; the command, and why a job failed, may quote a text."""
    places = {"folder": str(sweep.folder), "directory": sweep.directory, "program": sweep.program}
    logs = {f"log {row['number']}": row["log"] for row in table}
    stores = {f"store {number}": manifest["store"] for number, manifest in enumerate(manifests)}
    typed = {f"{job.name}.{key}": value for job in sweep.jobs for key, value in _typed(job.overrides).items()}
    composed = {
        f"{number}.{key}": value
        for number, manifest in enumerate(manifests)
        for key, value in flat(manifest["config"]).items()
    }
    reasons = [row["reason"] for row in table]
    everything = {**places, **logs, **stores, **typed, **composed}
    return private(everything, text, [] if text else [sweep.command, *reasons])


def _typed(overrides: Sequence[str]) -> dict[str, str]:
    """The values on the command line, by their keys."""
    return {key_of(one).lstrip("+~"): one.partition("=")[2] for one in overrides}


def _row(row: Facts, names: Mapping[str, str], hidden: Private, text: bool) -> dict[str, Any]:
    """A point of the table without what is private."""
    kept = {name: value for name, value in row.items() if name not in PLACES}
    reason = hidden.text(row["reason"]) if text or not row["reason"] else HIDDEN
    return {**kept, "job": names[row["job"]], "reason": reason}


def _columns(rows: Sequence[Facts]) -> pa.Table:
    """Rows that do not all have the same columns as a table."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})
