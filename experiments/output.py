"""What a study found: drawn as PNG and SVG, written as Parquet and CSV, and printed beside what the paper reports."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow.csv as csv
import pyarrow.parquet as pq
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import runs
from experiments.repeats import as_table, repeated
from experiments.runs import Point, Settings
from sweetspot.component import json_values
from sweetspot.distribution import Curve
from sweetspot.report.svg import drawable
from sweetspot.store import StoreError
from sweetspot.visible import in_markdown, one_line, visible

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: Any = {
    "svg.hashsalt": "sweetspot",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
    "savefig.dpi": 160,
}
UNKNOWN = "not reported"
COLUMNS = ("what", "the paper", "found")  # of the comparison
NOTES = "figures of the paper are second hand (a public note on it), without the number of its figure or table"


@dataclass(frozen=True)
class Beside:
    """A line of the comparison: what, what the paper reports, and what was found with n, seed and interval."""

    what: str
    paper: str
    found: str


@dataclass(frozen=True)
class Found:
    """The result of a study: tables by name (what a row lacks is null), figures by name, and the comparison."""

    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    figures: Mapping[str, Figure] = field(default_factory=dict[str, Figure])
    beside: Sequence[Beside] = ()


def write(found: Found, points: Sequence[Point], folder: Path) -> list[Path]:
    """Write every table and figure, the comparison as comparison.md, and the runs' manifests as runs.jsonl, the store
    in them as its command named it. An earlier file of the same name is replaced, a table without rows left out."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "comparison.md", folder / "runs.jsonl"]
    paths[0].write_text(comparison(found), encoding="utf-8")
    manifests = [json_values({**point.manifest, "store": point.config["store"]}) for point in points]
    paths[1].write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in manifests), encoding="utf-8")
    for name, rows in found.tables.items():
        if rows:
            table = as_table(rows)
            pq.write_table(table, folder / f"{name}.parquet")
            csv.write_csv(table, folder / f"{name}.csv")
            paths += [folder / f"{name}.parquet", folder / f"{name}.csv"]
    for name, figure in found.figures.items():
        for kind in ("png", "svg"):
            paths.append(folder / f"{name}.{kind}")
            with matplotlib.rc_context(STYLE):
                drawable(figure)
                figure.savefig(paths[-1], metadata={"Date": None} if kind == "svg" else None)
    return paths


def comparison(found: Found) -> str:
    """The comparison with the paper as a table in Markdown."""
    rows = [(line.what, line.paper, line.found) for line in found.beside]
    cells = [
        " | ".join(COLUMNS),
        " | ".join("---" for _ in COLUMNS),
        *(" | ".join(map(in_markdown, row)) for row in rows),
    ]
    return "\n".join([*(f"| {row} |" for row in cells), "", f"The {NOTES}.", ""])


def show(found: Found, title: str) -> None:
    """Print the comparison with the paper."""
    table = Table(title=title, title_justify="left")
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for line in found.beside:
        table.add_row(*(Text(one_line(cell)) for cell in (line.what, line.paper, line.found)))
    console = Console()
    console.print(table, markup=False)
    console.print(NOTES, highlight=False)


def run(study: Callable[[Sequence[Point], Settings, str | None], Found], name: str, doc: str) -> None:
    """The command of a study: read the runs, find, write and print.

    Args:
        study: of the runs, the settings of intervals and the measure ("reward", "win_rate" or "instructions"; None is
            `runs.measure_of`).
        name: of the study, and of its folder where none is given.
        doc: the study's docstring, which `--help` shows.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="a run or a sweep (runs/NAME); several are read together")
    parser.add_argument("--out", type=Path, help=f"folder for tables and figures; default: {name} in the first folder")
    measures = "of trained policies; default: reward where the judge gives rewards, else win_rate"
    parser.add_argument("--measure", choices=tuple(runs.LEVEL), help=measures)
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap draws over prompts")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--repeats", type=Path, help="folder of an earlier result: is it found again?")
    given = parser.parse_args()
    try:
        points, missing = runs.read(given.folders)
        with matplotlib.rc_context(STYLE):
            found = study(points, Settings(given.resamples, given.seed), given.measure)
    except (ValueError, OSError, StoreError) as error:
        sys.exit(f"error: {one_line(str(error))}")
    again, wrong = _again(found, given.repeats)  # before it is written, maybe into the same folder
    show(found, f"{name}, {len(points)} runs")
    if missing:
        print(one_line(f"not done: {', '.join(missing)}"))
    written = write(found, points, given.out or given.folders[0] / name)
    print(*(visible(line) for line in (*again, *map(str, written))), sep="\n")
    if wrong:
        sys.exit(f"error: {one_line(wrong)}")


def _again(found: Found, earlier: Path | None) -> tuple[list[str], str]:
    """What is told of an earlier result, and what is wrong with it; both empty where none is given."""
    try:
        return (repeated(found.tables, earlier) if earlier else []), ""
    except (ValueError, OSError) as error:
        return [], f"--repeats: {error}"


def figure(width: float = 7.0, height: float = 4.0) -> Figure:
    """An empty figure of this size in inches; it has a canvas of its own, and pyplot's state is left alone."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def band(axes: Any, curve: Curve, label: str, number: int) -> None:
    """A curve with its band, in the colour and marker of its number."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    axes.fill_between(curve.k, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(curve.k, curve.mean, marker=marker, color=colour, label=label, markersize=4)


def bars(
    axes: Any,
    x: Any,
    rows: Sequence[Mapping[str, Any]],
    label: str,
    number: int,
    prefix: str = "",
    line: str = "-",
) -> None:
    """Means with their intervals at x [rows], joined by a line of this style."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    mean, low, high = (np.array([row[prefix + name] for row in rows], dtype=float) for name in ("mean", "low", "high"))
    reach = np.vstack([mean - low, high - mean])
    axes.errorbar(x, mean, yerr=reach, marker=marker, color=colour, linestyle=line, label=label, capsize=3)


def heat(
    axes: Any,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    level: float,
    marked: Collection[tuple[int, int]] = (),
) -> None:
    """A heat map around a level with its numbers written in, a star beside those of marked cells (row, column); an
    empty cell stays white."""
    reach = float(np.nanmax(np.abs(values - level), initial=0)) or 1.0
    axes.imshow(np.ma.masked_invalid(values), cmap="PuOr", vmin=level - reach, vmax=level + reach, aspect="auto")
    axes.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
    axes.tick_params(axis="x", rotation=45)
    for (row, column), value in np.ndenumerate(values):
        if math.isfinite(value):
            ink = "white" if abs(value - level) > 0.7 * reach else "black"
            star = "*" if (row, column) in marked else ""
            axes.text(column, row, f"{value:.2f}{star}", ha="center", va="center", color=ink, fontsize=7)


def over_n(axes: Any, n: Sequence[int], title: str, unit: str) -> None:
    """A logarithmic axis of samples per prompt."""
    axes.set_xscale("log")
    axes.set_xticks(list(n), [str(size) for size in n])
    axes.minorticks_off()
    axes.set(xlabel="samples per prompt", ylabel=unit)
    axes.set_title(title, loc="left", fontsize=9)


def told(row: Mapping[str, Any], prefix: str = "", places: int = 3) -> str:
    """A mean with its interval and the number of prompts."""
    sign = "" if row.get("measure") == "win_rate" and not prefix else "+"  # a difference has a sign, a rate has none
    mean, low, high = (f"{row[prefix + name]:{sign}.{places}f}" for name in ("mean", "low", "high"))
    return f"{mean} (95%: {low} to {high}; {row[prefix + 'prompts']} prompts)"


def interval_of(row: Mapping[str, Any], name: str) -> str:
    """A figure that has a column of its own, with its interval."""
    return f"{row[name]:+.2f} (95%: {row[f'{name}_low']:+.2f} to {row[f'{name}_high']:+.2f})"


def shares(row: Mapping[str, Any], name: str) -> str:
    """A share that has a column of its own, with its interval."""
    return f"{row[name]:.0%} (95%: {row[f'{name}_low']:.0%} to {row[f'{name}_high']:.0%})"
