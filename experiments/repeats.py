"""Is an earlier result found again? A study's tables held against those of a folder, row by row.

Which columns name a row and which are figures is told by their kind, the same for every table: words and whole numbers
name it, but for counts and the list of seeds; of the fractions, which are figures, only the settings of a loss do.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweetspot.visible import encodable

Rows = Sequence[Mapping[str, Any]]
Label = tuple[Any, ...]
COUNTS = ("prompts", "pairs", "kept", "steps", "documents", "runs")  # and columns that end in _prompts, ...
WHOLE = (*COUNTS, "mean", "low", "high")  # whole numbers that name no row
SETTINGS = ("beta", "gamma")  # fractions that name a row
SEEDS = "seeds"  # how columns of seeds end, lists in words: more seeds of the same strategy are the same row
PLAIN = ("mean", "difference")  # whose limits are called `low` and `high`
ROUNDING = 1e-6  # by which a figure may lie outside, of 1 or of its limits where they are larger: rewards are float32


def as_table(rows: Rows) -> pa.Table:
    """The rows as a table: every column that a row has; what another lacks is null, half a surrogate pair an escape."""
    columns = dict.fromkeys(column for row in rows for column in row)
    return pa.Table.from_pydict({encodable(name): [encodable(row.get(name)) for row in rows] for name in columns})


def repeated(tables: Mapping[str, Rows], folder: Path) -> list[str]:
    """Of each table that the folder holds of an earlier result: how many of its rows are there again, how many of their
    figures lie in the intervals that the earlier ones had, and which do not, a line each.

    Raises:
        FileNotFoundError: the folder holds none of the tables.
    """
    files = {name: folder / f"{name}.parquet" for name in tables}
    if not any(path.is_file() for path in files.values()):
        raise FileNotFoundError(f"an earlier result must hold one of {', '.join(tables)}, got {folder} without any")
    told: list[str] = []
    for name, rows in tables.items():
        if files[name].is_file():
            told += _held(name, as_table(rows), pq.read_table(files[name]), folder)
        elif rows:
            told.append(f"{name}: new, it is not in {folder}")
    return told


def labels(table: pa.Table) -> list[str]:
    """The columns that name a row."""
    return [field.name for field in table.schema if _names(field)]


def _names(field: pa.Field) -> bool:
    if field.name in SETTINGS:
        return not pa.types.is_null(field.type)
    if pa.types.is_integer(field.type):
        return field.name.rpartition("_")[2] not in WHOLE
    return pa.types.is_string(field.type) and not field.name.endswith(SEEDS)


def figures(table: pa.Table) -> dict[str, tuple[str, str]]:
    """The limits of each figure that has an interval: of `z_mean` and `loss` those called `z_low` and `loss_low`."""
    columns = [name for name in table.column_names if name not in labels(table)]
    found: dict[str, tuple[str, str]] = {}
    for column in columns:
        stems = ["" if column in PLAIN else f"{column}_", *([column[:-4]] if column.endswith("_mean") else [])]
        limits = [(f"{stem}low", f"{stem}high") for stem in stems]
        found.update((column, pair) for pair in limits if {*pair} <= {*columns})
    return found


def _held(name: str, own: pa.Table, earlier: pa.Table, folder: Path) -> Iterator[str]:
    """What is told of one table, where both results have it."""
    names = [one for one in labels(earlier) if one in labels(own) or not own.num_rows]
    now, then = (_by_label(table, names) for table in (own, earlier))
    if len(then) < earlier.num_rows or len(now) < own.num_rows:
        yield f"{name}: nothing is compared, rows of one name ({', '.join(names)}) cannot be told apart"
        return
    both = [label for label in then if label in now]
    held = [
        (f"{_shown(label)} {column}", now[label].get(column), limits)
        for label in both
        for column, (low, high) in figures(earlier).items()
        if (limits := _limits(then[label], column, low, high))
    ]
    gone = [what for what, value, _ in held if value is None]
    outside = [what for what, value, limits in held if value is not None and not _within(value, *limits)]
    inside = f"{len(held) - len(gone) - len(outside)} of {len(held)} figures lie in the intervals of {folder}"
    yield f"{name}: {len(both)} of {len(then)} rows are there, {inside if held else 'without an interval to compare'}"
    yield from (f"  missing: {what}" for what in (*(_shown(label) for label in then if label not in now), *gone))
    yield from (f"  outside: {what}" for what in outside)


def _by_label(table: pa.Table, names: Sequence[str]) -> dict[Label, Mapping[str, Any]]:
    return {tuple(row[name] for name in names): row for row in table.to_pylist()}


def _shown(label: Label) -> str:
    return " ".join(str(part) for part in label if part is not None)


def _limits(row: Mapping[str, Any], figure: str, low: str, high: str) -> tuple[float, float] | None:
    """The interval of a row's figure; None where it has none."""
    found = [row[name] for name in (figure, low, high)]
    return None if any(value is None or not math.isfinite(value) for value in found) else (found[1], found[2])


def _within(value: float, low: float, high: float) -> bool:
    slack = ROUNDING * max(1.0, abs(low), abs(high))
    return low - slack <= value <= high + slack
