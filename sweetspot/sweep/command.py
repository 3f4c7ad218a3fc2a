"""The command line of a sweep: python -m sweetspot.sweep COMMAND DIR. Each command may be repeated."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweetspot.sweep import collect, local, rates, slurm
from sweetspot.sweep import folder as folders
from sweetspot.sweep.calibrate import calibrate
from sweetspot.sweep.folder import Sweep
from sweetspot.sweep.outcome import Outcome, outcomes
from sweetspot.sweep.submit import submit
from sweetspot.visible import one_line, visible

FOLDER_COMMANDS = {
    "status": "how each job stands",
    "collect": "one table of whatever finished",
    "resubmit": "submits what failed, was stopped or is missing",
    "cancel": "ends what waits or runs",
}
EXAMPLES = """examples:
  python -m sweetspot.sweep status runs/latest            how each job stands;  --watch repeats it until all have ended
  python -m sweetspot.sweep collect runs/latest           sweep.parquet, sweep.md and sweep.html of whatever finished
  python -m sweetspot.sweep resubmit runs/latest          submits what failed, was stopped or is missing
  python -m sweetspot.sweep cancel runs/latest            ends what waits or runs
  python -m sweetspot.sweep calibrate model=other model.path=MODEL     a small run; calibration.json for the forecast
"""


def main(arguments: Sequence[str]) -> None:
    """Run a command.

    Raises:
        ValueError: one line, for a folder that holds no sweep, or when SLURM refuses.
    """
    parser = argparse.ArgumentParser(
        "python -m sweetspot.sweep", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, words in FOLDER_COMMANDS.items():
        one = commands.add_parser(name, help=words)
        one.add_argument("folder", type=Path, help="the sweep's (runs/NAME)")
        if name == "status":
            one.add_argument("--watch", type=float, metavar="SECONDS", help="show it again and again")
        if name == "collect":
            only = "write the page alone, to FILE, without links to the pages of its runs"
            one.add_argument("--page", type=Path, metavar="FILE", help=only)
    measure = commands.add_parser("calibrate", help="measures how fast the stages go, for the forecast of a sweep")
    measure.add_argument("--file", type=Path, default=Path("calibration.json"), help="what is measured is added to it")
    measure.add_argument("--prompts", type=int, help="to sample for; more take longer and tell more")
    measure.add_argument("--at-once", type=int, default=1, help="runs at once, where jobs will share a machine's cores")
    measure.add_argument("overrides", nargs="*", help="those of the sweep; strategy, n_samples and eval are set here")
    asked = parser.parse_args(arguments)
    if asked.command == "calibrate":
        _calibrate(asked)
        return
    sweep = folders.read(asked.folder.resolve())
    match asked.command:
        case "status":
            _status(sweep, asked.watch)
        case "collect" if asked.page:
            print(visible(str(collect.write_page(sweep, outcomes(sweep), asked.page))))
        case "collect":
            for path in collect.write(sweep, outcomes(sweep)):
                print(path)
            print((sweep.folder / "sweep.md").read_text(encoding="utf-8"), end="")
        case "resubmit":
            _resubmit(sweep)
        case _:
            _cancel(sweep)


def stage(folder: Path) -> str:
    """The stage that a job's workers work at or were last at, and how far they are ("01-score 3/6 responses")."""
    begun = sorted((folder / "jobs").glob("*/events.jsonl"), key=lambda path: path.stat().st_mtime)
    if not begun:
        return ""
    told = [json.loads(line) for line in begun[-1].read_text().splitlines() if line.endswith("}")]
    states: list[dict[str, Any]] = [event["progress"] for event in told if "progress" in event]
    progress = f" {states[-1]['done']}/{states[-1]['total']} {states[-1]['unit']}" if states else ""
    return f"{begun[-1].parent.name}{progress}"


def _status(sweep: Sweep, seconds: float | None) -> None:
    while True:
        found = outcomes(sweep)
        Console().print(_table(sweep, found))
        if seconds is None or not any(one.lives for one in found.values()):
            return
        time.sleep(seconds)


def _table(sweep: Sweep, found: dict[int, Outcome]) -> Table:
    table = Table(title=Text(one_line(str(sweep.folder))))
    for name in ("job", "state", "stage", "node", "time left", "why", "log"):
        table.add_column(name, overflow="fold")
    for job in sweep.jobs:
        one = found[job.number]
        log = str(sweep.log(job)) if one.standing in ("failed", "stopped") and sweep.log(job) else ""
        cells = (job.name, one.standing, stage(sweep.path(job)), one.node, one.left, one.reason, log)
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    return table


def _resubmit(sweep: Sweep) -> None:
    found = outcomes(sweep)
    wanted = [number for number, one in found.items() if not one.lives and one.standing != "done"]
    for job in sweep.jobs:
        if job.number in wanted:
            print(one_line(f"{found[job.number].standing}  {job.name}: {found[job.number].reason}"))
    if wanted:
        submit(sweep, wanted)
    print(f"{len(wanted)} of {len(sweep.jobs)} jobs submitted")


def _cancel(sweep: Sweep) -> None:
    found = outcomes(sweep)
    living = [job for job in sweep.jobs if found[job.number].lives]
    local.cancel(sweep, [job for job in living if job.last and job.last.slurm_id is None])
    slurm.cancel([job.last.slurm_id for job in living if job.last and job.last.slurm_id])
    print(f"{len(living)} of {len(sweep.jobs)} jobs cancelled")


def _calibrate(asked: argparse.Namespace) -> None:
    before = rates.read(asked.file)  # a file of another kind is told of before anything runs
    found = calibrate(asked.overrides, asked.prompts, asked.at_once)
    rates.write(asked.file, before.merged(found))
    for rate in found.rates:
        speed = f", then {1 / rate.per_token:,.0f} tokens/s" if rate.per_token else ""
        print(f"{rate.kind:10}{rate.of}: {rate.start:.1f} s{speed}")
    print(asked.file)
