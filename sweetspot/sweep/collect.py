"""One table of a sweep: a row a job, whatever finished, from manifests alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweetspot import report
from sweetspot.manifest import flat_metrics
from sweetspot.manifest import read as read_manifest
from sweetspot.report import Swept
from sweetspot.sweep import folder as folders
from sweetspot.sweep import summary
from sweetspot.sweep.folder import Job, Sweep
from sweetspot.sweep.forecast import STAGES
from sweetspot.sweep.outcome import Outcome
from sweetspot.visible import encodable, in_markdown, visible

SHOWN = ("job", "standing", "reason", "kept", "chosen_z", "rejected_z", "margin", "log")
OTHERS = {"select": "start and end", "sft": "prepare"}
PAIRS = ("kept", "chosen_z", "rejected_z", "margin")


def rows(sweep: Sweep, found: Mapping[int, Outcome]) -> list[dict[str, Any]]:
    """A row for each point of the sweep: how it stands, where it lies, and the numbers of its manifest.

    Args:
        found: how each job stands, by number.
    """
    return [
        encodable(
            {
                "job": job.name,
                "number": job.number,
                "overrides": " ".join(job.overrides),
                "standing": found[job.number].standing,
                "reason": visible(found[job.number].reason),
                "log": _log(sweep, job),
                **_numbers(sweep.path(job) / "manifest.json"),
            }
        )
        for job in sweep.jobs
        if job.part == "run"
    ]


def write(sweep: Sweep, found: Mapping[int, Outcome]) -> list[Path]:
    """Write the table into the folder: sweep.parquet has every number, sweep.md those of the last round's pairs, and
    sweep.html results, failures and times (last; a page that cannot be made is a warning, and left out). Jobs that are
    logged to W&B get a summary there (`summary`)."""
    table = rows(sweep, found)
    names = list(dict.fromkeys(name for row in table for name in row))
    columns = {name: [row.get(name) for row in table] for name in names}
    parquet, page = sweep.folder / "sweep.parquet", sweep.folder / "sweep.md"
    scratch = parquet.with_suffix(".part")
    pq.write_table(pa.table(columns), scratch)
    scratch.replace(parquet)
    scratch = page.with_suffix(".part")
    scratch.write_text(markdown(SHOWN, table), encoding="utf-8")
    scratch.replace(page)
    facts, shown = _facts(sweep, found)
    pages = report.tried(lambda: report.write_sweep(sweep.folder / "sweep.html", facts, shown), [])
    summary.send(sweep, table, facts, shown)
    return [parquet, page, *pages]


def write_page(sweep: Sweep, found: Mapping[int, Outcome], path: Path) -> Path:
    """Write the page of the sweep alone, as sweep.html but without links to its runs' pages, which are not beside it.

    Args:
        found: how each job stands, by number.
        path: where it goes.
    """
    facts, shown = _facts(sweep, found)
    return report.write_sweep(path, facts, [replace(job, page=None) for job in shown])


def _facts(sweep: Sweep, found: Mapping[int, Outcome]) -> tuple[Swept, list[report.Job]]:
    """What sweep.html is made of."""
    manifests = {job.number: read for job in sweep.jobs if (read := _manifest(sweep.path(job)))}
    expected = folders.read_forecast(sweep.folder)
    taken = stage_seconds(sweep, expected[0]) if expected else None
    seconds = {name: (each, taken[name]) for name, each in expected[1].items()} if expected and taken else None
    price = sweep.launcher.get("price_per_device_hour")
    stores = list(dict.fromkeys(manifest["store"] for manifest in manifests.values() if "store" in manifest))
    facts = Swept(sweep.command, sweep.created, sweep.commit, price, seconds, list(manifests.values()), stores)
    shown = [
        report.Job(
            name=job.name,
            standing=found[job.number].standing,
            reason=found[job.number].reason,
            log=_log(sweep, job),
            page=f"{job.name}/report.html" if (sweep.path(job) / "report.html").exists() else None,
            overrides=job.overrides,
            manifest=manifests.get(job.number),
        )
        for job in sweep.jobs
        if job.part == "run" or found[job.number].standing != "done"
    ]
    return facts, shown


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / "manifest.json"
    return read_manifest(path) if path.exists() else None


def _log(sweep: Sweep, job: Job) -> str:
    return str(sweep.log(job) or sweep.path(job))


def stage_seconds(sweep: Sweep, numbers: Sequence[int]) -> dict[str, float] | None:
    """What the stages of these jobs took, summed over them, by the names of a forecast; None until all are there.

    "start and end" is what the last turn of a job took beside its stages.
    """
    found: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    for job in sweep.jobs:
        if job.number not in numbers:
            continue
        status, path = folders.read_status(sweep.path(job)), sweep.path(job) / "manifest.json"
        if status is None or status.ended is None or status.state != "done" or not path.exists():
            return None
        stages = read_manifest(path)["stages"]
        for stage in stages:
            found[_stage(stage["name"])] += stage["seconds"]
        whole = datetime.fromisoformat(status.ended) - datetime.fromisoformat(status.started)
        found["start and end"] += whole.total_seconds() - sum(stage["seconds"] for stage in stages)
    return found


def _stage(name: str) -> str:
    """The forecast's stage of one that a manifest names: further turns of adaptive sampling count as the first."""
    first, _, rest = name.partition(" ")
    return (
        first if first in STAGES and (not rest or rest.isdecimal() or rest == "check") else OTHERS.get(name, "evaluate")
    )


def markdown(columns: Sequence[str], table: Sequence[Mapping[str, Any]]) -> str:
    """A table in Markdown; what a row lacks is left empty."""
    lines = [_line(columns), _line(["---"] * len(columns))]
    return "".join([*lines, *(_line([_cell(row.get(name)) for name in columns]) for row in table)])


def _numbers(path: Path) -> dict[str, Any]:
    """The numbers of a manifest as columns; those of the last round's pairs also by their bare names."""
    if not path.exists():
        return {}
    manifest = read_manifest(path)
    pairs = manifest["rounds"][-1].get("pairs", {}) if manifest["rounds"] else {}
    flat = {name: float(value) for name, value in flat_metrics(manifest).items()}
    bare = {name: float(pairs[name]) for name in PAIRS if pairs.get(name) is not None}
    return {"manifest": str(path), "seconds": float(manifest["seconds"]), **bare, **flat}


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else in_markdown(str(value))
