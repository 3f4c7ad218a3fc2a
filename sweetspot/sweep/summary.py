"""The summary of a sweep in Weights & Biases: a run beside those of its jobs, where they are kept there."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from sweetspot import report
from sweetspot.component import build
from sweetspot.logger import open_all, warn
from sweetspot.logger.private import HIDDEN, READ, Private, flat, private
from sweetspot.logger.wandb_logger import WandbLogger
from sweetspot.sweep.folder import Sweep
from sweetspot.sweep.points import key_of

PLACES = (
    "log",
    "manifest",
    "overrides",
)  # columns of the table that tell of places, or that a job's name tells as well
TARGET = f"{WandbLogger.__module__}.{WandbLogger.__qualname__}"

Facts = Mapping[str, Any]


def send(sweep: Sweep, table: Sequence[Facts], facts: report.Swept, jobs: Sequence[report.Job]) -> None:
    """Log the table of points and sweep.html as a run of the sweep's own, under the same id each time.

    Nothing where no job's manifest says that it was logged to W&B. A fault, of its settings too, is told in one line.

    Args:
        sweep: lies in its folder.
        table: as `collect.rows` makes it.
        facts, jobs: what sweep.html is made of. It is made anew of what may leave this machine: in a finished page
            what is private would be cut short and quoted, and so not be found.
    """
    try:
        logger = _logger(facts.manifests)
    except ValueError as error:
        warn(f"the sweep has no summary in W&B: {error}")
        return
    if logger is None:
        return
    hidden = _private(sweep, table, facts.manifests, logger.text)
    names = {job.name: hidden.name(job.name, _typed(job.overrides)) for job in sweep.jobs}
    about = {"created": sweep.created, "commit": sweep.commit, "plan": sweep.plan, "jobs": len(sweep.jobs)}
    logs = open_all({"wandb": logger}, sweep.folder, about, sweep.folder.name, [])
    logs.table("points", _columns([_row(row, names, hidden, logger.text) for row in table]))
    swept = _swept(facts, hidden.name(sweep.folder.name, {}), hidden, logger.text)
    shown = [_job(job, names[job.name], hidden, logger.text) for job in jobs]
    done = sum(row["standing"] == "done" for row in table)
    with tempfile.TemporaryDirectory() as folder:
        pages = report.tried(lambda: report.write_sweep(Path(folder) / "sweep.html", swept, shown), [])
        logs.close({"points": len(table), "done": done}, pages)


def _swept(facts: report.Swept, name: str, hidden: Private, text: bool) -> report.Swept:
    """What the page shows of the whole sweep, under its name in place of its command."""
    manifests = [hidden.manifest(one, READ) for one in facts.manifests]
    stores = [hidden.text(one) for one in facts.stores]
    return replace(facts, command=name, manifests=manifests, stores=stores, texts=text)


def _job(job: report.Job, name: str, hidden: Private, text: bool) -> report.Job:
    """What the page shows of a job; its own page and its log are not there."""
    return replace(
        job,
        name=name,
        reason=_reason(job.reason, hidden, text),
        log=HIDDEN,
        page=None,
        overrides=[hidden.override(one) for one in job.overrides],
        manifest=hidden.manifest(job.manifest, READ) if job.manifest else None,
    )


def _reason(reason: str, hidden: Private, text: bool) -> str:
    return hidden.text(reason) if text or not reason else HIDDEN


def _logger(manifests: Sequence[Facts]) -> WandbLogger | None:
    """The last job's W&B logger, with texts only where all had them; loggers of somebody's own are left alone.

    Raises:
        ValueError: where its settings are not those of this version.
    """
    parts = [part for manifest in manifests for part in (manifest["config"].get("logger") or {}).values()]
    kept = [part for part in parts if isinstance(part, Mapping) and part.get("_target_") == TARGET]
    return build({**kept[-1], "text": all(part.get("text") is True for part in kept)}, "logger.wandb") if kept else None


def _private(sweep: Sweep, table: Sequence[Facts], manifests: Sequence[Facts], text: bool) -> Private:
    """What must not leave this machine of any job; the command, and why a job failed, may quote a text."""
    places = {"folder": str(sweep.folder), "directory": sweep.directory, "program": sweep.program}
    logs = {f"log {row['number']}": row["log"] for row in table}
    stores = {f"store {number}": manifest.get("store") for number, manifest in enumerate(manifests)}
    typed = {f"typed {job.number}.{key}": value for job in sweep.jobs for key, value in _typed(job.overrides).items()}
    composed = {
        f"{number}.{key}": value
        for number, manifest in enumerate(manifests)
        for key, value in flat(manifest["config"]).items()
    }
    reasons = [row["reason"] for row in table]
    everything = {**places, **logs, **stores, **typed, **composed}
    return private(everything, text, [] if text else [sweep.command, *reasons])


def _typed(overrides: Sequence[str]) -> dict[str, Any]:
    """The values on the command line, by their dotted keys."""
    return flat({key_of(one).lstrip("+~"): _value(one) for one in overrides})


def _value(override: str) -> Any:
    """The value of a word of the command line: a mapping or a list as such, and all else as its text."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    text = override.partition("=")[2]
    if not text.startswith(("{", "[")):
        return re.sub(r"\\(.)", r"\1", text)
    try:
        return OverridesParser.create().parse_override(override).value()
    except HydraException:  # what it is not for Hydra it is for nobody
        return text


def _row(row: Facts, names: Mapping[str, str], hidden: Private, text: bool) -> dict[str, Any]:
    """A point of the table without what is private."""
    kept = {name: value for name, value in row.items() if name not in PLACES}
    return {**kept, "job": names[row["job"]], "reason": _reason(row["reason"], hidden, text)}


def _columns(rows: Sequence[Facts]) -> pa.Table:
    """Rows that do not all have the same columns as a table."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})
