"""What the commands print: tables for people, or one JSON value."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweetspot.exchange.check import Finding
from sweetspot.exchange.inventory import Row, age_of
from sweetspot.visible import one_line

TITLES = {
    "samples": ["key", "model", "sampler", "prompts", "n", "tokens", "size", "age"],
    "rewards": ["key", "reward_model", "samples", "rewards", "size", "age"],
    "pairs": ["key", "strategy", "n", "rewards", "pairs", "size", "age"],
    "policies": ["key", "start", "pairs", "size", "age"],
}
WIDE = 400  # columns where the output is no terminal, so that no path is broken
NUMBERS = ("prompts", "n", "tokens", "size", "age")


def listing(found: Mapping[str, Sequence[Row]], as_json: bool) -> None:
    """The artefacts by kind."""
    if as_json:
        _json(found)
        return
    now = datetime.now(UTC)
    for kind, rows in found.items():
        shown = [{**row, "size": size(row["bytes"]), "age": _age(age_of(row["made"], now))} for row in rows]
        _table(kind, TITLES[kind], shown)


def sizes(rows: Sequence[Row], as_json: bool) -> None:
    """Bytes by kind and artefact, and of all."""
    total = sum(int(row["bytes"]) for row in rows)
    if as_json:
        kinds: dict[str, int] = {}
        for row in rows:
            kinds[row["kind"]] = kinds.get(row["kind"], 0) + int(row["bytes"])
        _json({"bytes": total, "kinds": kinds, "artefacts": rows})
        return
    shown = [{**row, "size": size(row["bytes"])} for row in rows]
    _table("", ["kind", "key", "size"], [*shown, {"kind": "all", "size": size(total)}])


def findings(found: Sequence[Finding], as_json: bool, none: str) -> None:
    """What verify or gc found."""
    if as_json:
        _json([asdict(one) for one in found])
    elif not found:
        sys.stdout.write(f"{none}\n")
    else:
        shown = [{**asdict(one), "size": size(one.bytes), "age": _age(one.age)} for one in found]
        _table("", ["state", "path", "reason", "size", "age"], shown)


def pool(key: str, facts: Mapping[str, Any], as_json: bool) -> None:
    """An imported pool, and how a run uses it."""
    if as_json:
        _json({"key": key, **facts})
        return
    each = str(facts["most"]) if facts["least"] == facts["most"] else f"{facts['least']} to {facts['most']}"
    left = f", {facts['left_out']} rows left out" if facts["left_out"] else ""
    with_rewards = " reward_model=imported" if facts["rewards"] else ""
    sys.stdout.write(
        f"pool {key}: {facts['prompts']:,} prompts, {each} responses each, {facts['tokens']:,} tokens{left}\n"
        f"use it: python run.py data=imported data.pool={key}{with_rewards} n_samples={facts['most']} "
        f"model=other model.path={one_line(facts['model_name'])}\n"
    )


def exported(out: Path, counts: Mapping[str, int], as_json: bool) -> None:
    """The files of an export."""
    if as_json:
        _json({"folder": str(out), "rows": dict(counts)})
        return
    sys.stdout.writelines(f"{one_line(str(out / name))}: {rows:,} rows\n" for name, rows in counts.items())


def size(count: float) -> str:
    """Bytes as B, kB, MB, GB or TB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _age(seconds: float | None) -> str:
    """An age in its largest whole unit."""
    if seconds is None:
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _table(title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """A table as wide as the terminal; where there is none, as wide as it needs to be."""
    table = Table(box=None, title=title or None, title_justify="left", pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right" if name in NUMBERS else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(name))) for name in columns))
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else one_line(str(value))


def _json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")
