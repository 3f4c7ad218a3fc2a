"""Comparing runs: `python -m sweetspot.eval compare MANIFEST MANIFEST ...`.

Reads manifests and the scores that they name; prints a table for each benchmark and judge, and writes the same as
Parquet and Markdown. Scores by different judges, or against different baselines, are different things: they stand in
different tables, and runs that share none cannot be compared.
"""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweetspot.eval.alpaca_metrics import read_regulariser
from sweetspot.eval.comparison import AtLength, Compared, Measured, Settings, compare, compare_at_length
from sweetspot.schema import SCORES
from sweetspot.statistics import Floats, as_floats
from sweetspot.store import read_tile
from sweetspot.visible import in_markdown, one_line

COLUMNS = ("second less first", "difference", "95% interval", "p", "Holm", "BH", "detectable", "verdict")


@dataclasses.dataclass(frozen=True)
class Scored:
    """One run's scores on one benchmark by one judge.

    Attributes:
        policy: how the run is called.
        benchmark: kind, judge and baseline: what must be equal to compare.
        judge: its key; two judges of one name are told apart by it.
        facts: the evaluation's part of the manifest.
        rows: SCORES, in the order of the prompts' ids.
        regulariser: of the length-controlled rate, as a path; None without one.
    """

    policy: str
    benchmark: str
    judge: str
    facts: dict[str, Any]
    rows: pa.Table
    regulariser: Path | None


def read(paths: Sequence[Path]) -> list[Scored]:
    """The scores of the runs, one for each evaluation that has some.

    Raises:
        ValueError: for a file that is no manifest of a finished run, or a store that is gone; one line.
    """
    manifests = [_manifest(path) for path in paths]
    names = [_name(manifest) for manifest in manifests]
    if len(set(names)) < len(names):
        names = [f"{name}, {path.parent.name or path}" for name, path in zip(names, paths, strict=True)]
    found: list[Scored] = []
    for name, manifest in zip(names, manifests, strict=True):
        store = Path(manifest["store"])
        for facts in manifest["evaluations"]:
            if facts["kind"] not in ("held_out", "alpaca_eval_2", "arena_hard"):
                continue
            rows = read_tile(store / facts["path"], SCORES)[0].sort_by([("prompt_id", "ascending")])
            texts = json.dumps([rows[column].to_pylist() for column in ("prompt_id", "sample_index", "baseline")])
            baseline = facts.get("baseline") or f"the start {hashlib.sha256(texts.encode()).hexdigest()[:8]}"
            judge = facts.get("judge") or next(one["name"] for one in facts["judges"] if one["role"] == "judge")
            title = f"{facts['kind']} against {baseline} by {judge}" + (", partial" if facts.get("partial") else "")
            regular = store / facts["regulariser"] if facts.get("regulariser") else None
            found.append(Scored(name, title, facts["judge_key"], facts, rows, regular))
    return found


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"compare: {path} must be a manifest.json ({error})") from None
    if not isinstance(manifest, dict) or not manifest.get("evaluations"):
        raise ValueError(f"compare: {path} must be the manifest of a run that was evaluated")
    return manifest


def _name(manifest: dict[str, Any]) -> str:
    last = manifest["rounds"][-1]
    turns = f", round {len(manifest['rounds'])}" if len(manifest["rounds"]) > 1 else ""
    return f"{last['pairs']['strategy']} n={last['samples']['n_samples']}{turns}"


def tables(scored: Sequence[Scored], settings: Settings) -> dict[str, list[Compared]]:
    """The comparisons of each benchmark and judge that two or more runs share.

    Raises:
        ValueError: when no two runs share one, or the runs of one were not evaluated on the same prompts.
    """
    groups: dict[tuple[str, str], list[Scored]] = {}
    for one in scored:
        groups.setdefault((one.benchmark, one.judge), []).append(one)
    shared = {name: group for name, group in groups.items() if len(group) > 1}
    if not shared:
        listed = "; ".join(f"{one.policy}: {one.benchmark}" for one in scored)
        raise ValueError(f"compare: no two runs share a benchmark, a baseline and a judge ({listed})")
    double = len({title for title, _ in shared}) < len(shared)
    return {
        title + (f" {judge[:8]}" if double else ""): compare_group(title, group, settings)
        for (title, judge), group in shared.items()
    }


def compare_group(title: str, group: Sequence[Scored], settings: Settings) -> list[Compared]:
    """Win rate, reward where there is one, and the length-controlled rate where all runs have it."""
    ids = {one.policy: sorted(set(one.rows["prompt_id"].to_pylist())) for one in group}
    if len({tuple(names) for names in ids.values()}) > 1:
        counts = ", ".join(f"{policy} {len(names)}" for policy, names in ids.items())
        raise ValueError(f"compare: {title}: the runs must have the same prompts, got {counts} prompts that differ")
    found = compare("win rate (%)", [Measured(one.policy, 100 * means(one, "preference")) for one in group], settings)
    if all(one.rows["reward"].null_count == 0 for one in group):
        found += compare("reward", [Measured(one.policy, means(one, "reward")) for one in group], settings)
    sources = {one.regulariser for one in group}
    if None not in sources and len({path.name for path in sources if path}) == 1:
        regulariser, order = read_regulariser(next(path for path in sources if path))
        places = np.argsort(order)  # difficulties are by prompt id, the rows are sorted by it
        regulariser = dataclasses.replace(regulariser, difficulty=regulariser.difficulty[places])
        at_length = [_at_length(one) for one in group]
        found += compare_at_length("length-controlled win rate (%)", at_length, regulariser, settings)
    return found


def means(one: Scored, column: str) -> Floats:
    """A column's mean for each prompt, in the order of the prompts' ids."""
    grouped = one.rows.group_by("prompt_id", use_threads=False).aggregate([(column, "mean")])
    return as_floats(grouped.sort_by([("prompt_id", "ascending")])[f"{column}_mean"].to_pylist())


def _at_length(one: Scored) -> AtLength:
    lengths = [as_floats([len(text) for text in one.rows[column].to_pylist()]) for column in ("baseline", "response")]
    preference = as_floats(one.rows["preference"].to_pylist())
    return AtLength(one.policy, preference, lengths[0] - lengths[1], one.facts["lc_strength"])


def row(one: Compared) -> list[str]:
    """A comparison as a line of a table."""
    return [
        f"{one.figure}: {one.second} - {one.first}",
        f"{one.difference:+.2f} ({one.second_mean:.2f} - {one.first_mean:.2f})",
        f"{one.low:+.2f} to {one.high:+.2f}",
        *(f"{value:.4f}" for value in (one.p, one.p_holm, one.p_bh)),
        f"{one.detectable:.2f} at {one.n}; {one.planned_detectable:.2f} at {one.planned_n}",
        one.verdict,
    ]


def notes(found: dict[str, list[Compared]], settings: Settings) -> list[str]:
    """What the columns mean, and the planned study."""
    lines = [
        f"Paired by prompt. Intervals: percentile bootstrap over prompts; p: random signs; {settings.resamples} draws, "
        f"seed {settings.seed}. For the length-controlled rate both regressions are fitted again in every draw.",
        "Holm and BH are adjusted over the pairs of a figure; the verdict is at 5% by Holm. Detectable: the true "
        "difference that a test at 5% finds with a power of 80%, at so many prompts.",
    ]
    return lines + [
        f"{title}, {one.figure}: {one.planned_n} prompts find a true difference of {one.effect:g} between "
        f"{one.first} and {one.second} with a power of {one.planned_power:.0%}."
        for title, compared in found.items()
        for one in compared
    ]


def markdown(found: dict[str, list[Compared]], settings: Settings) -> str:
    """The tables as Markdown."""
    lines = ["# Comparison", ""]
    for title, compared in found.items():
        lines += [f"## {in_markdown(title)}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += ["| " + " | ".join(map(in_markdown, row(one))) + " |" for one in compared] + [""]
    return "\n".join([*lines, *(f"{in_markdown(note)}\n" for note in notes(found, settings))])


def parquet(found: dict[str, list[Compared]]) -> pa.Table:
    """The comparisons as rows, with the benchmark and judge that they belong to."""
    rows = [
        {"table": title, **dataclasses.asdict(one), "verdict": one.verdict}
        for title, compared in found.items()
        for one in compared
    ]
    return pa.Table.from_pylist(rows)


def main(arguments: Sequence[str]) -> None:
    """Compare the runs that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m sweetspot.eval compare", description=__doc__)
    parser.add_argument("manifests", nargs="+", type=Path, help="manifest.json of each run, two or more")
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="folder for the tables")
    parser.add_argument("--resamples", type=int, default=2000, help="draws of bootstrap and permutation")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--planned-n", type=int, help="prompts of a planned study")
    parser.add_argument("--effect", type=float, default=1.0, help="true difference that it should find")
    given = parser.parse_args(arguments)
    if len(given.manifests) < 2:
        raise ValueError("compare: two manifests or more are needed, got 1")
    settings = Settings(given.resamples, given.seed, given.planned_n, given.effect)
    found = tables(read(given.manifests), settings)
    console = Console()
    for title, compared in found.items():
        shown = Table(title=Text(one_line(title)), title_justify="left")
        for column in COLUMNS:
            shown.add_column(column, overflow="fold")
        for one in compared:
            shown.add_row(*(Text(one_line(cell)) for cell in row(one)))
        console.print(shown)
    for note in notes(found, settings):
        console.print(one_line(note), markup=False, highlight=False)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "comparison.md").write_text(markdown(found, settings), encoding="utf-8")
    pq.write_table(parquet(found), given.out / "comparison.parquet")
    console.print(
        f"tables    {given.out / 'comparison.md'}, {given.out / 'comparison.parquet'}", markup=False, highlight=False
    )
