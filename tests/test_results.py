"""The committed study: every figure of RESULTS.md stands in a table beside it, with its interval."""

import csv
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "experiments" / "results" / "embedded"
TEXT = (FOLDER / "RESULTS.md").read_text(encoding="utf-8")
NUMBER = r"[+-]?\d+(?:\.\d+)?"
FIGURE = re.compile(rf"({NUMBER})(%?)(?: \w+)? \(95%: ({NUMBER})%? to ({NUMBER})%?")
INTERVALS = (("mean", "low", "high"), ("", "_low", "_high"))


def figures(path: Path) -> list[tuple[float, float, float]]:
    """Every (figure, low, high) of a table."""
    found: list[tuple[float, float, float]] = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for column in row:
                for ends in INTERVALS:
                    stem = column.removesuffix(ends[0])
                    names = [f"{stem}{end}" for end in ends]
                    if names[0] == column and all(row.get(name) for name in names):
                        found.append((float(row[names[0]]), float(row[names[1]]), float(row[names[2]])))
    return found


KNOWN = [figure for path in sorted(FOLDER.glob("*/*.csv")) for figure in figures(path)]


def stands(shown: tuple[str, ...], percent: bool) -> bool:
    """Whether a table has this figure with this interval, rounded as it is shown."""
    decimals, scale = len(shown[0].partition(".")[2]), 100 if percent else 1
    wanted = tuple(one.removeprefix("+") for one in shown)
    return any(tuple(f"{scale * one:.{decimals}f}" for one in known) == wanted for known in KNOWN)


def test_every_figure_of_the_text_stands_in_a_table_with_its_interval() -> None:
    shown = FIGURE.findall(TEXT)
    assert len(shown) > 10
    assert [one for one in shown if not stands((one[0], one[2], one[3]), one[1] == "%")] == []


def test_a_figure_that_is_in_no_table_is_noticed() -> None:
    figure, low, high = next(one for one in KNOWN if abs(one[0]) > 0.5)
    shown = tuple(f"{one:.3f}" for one in (figure, low, high))
    assert stands(shown, percent=False)
    assert not stands((f"{figure + 0.002:.3f}", *shown[1:]), percent=False)


def test_no_claim_stands_without_a_figure() -> None:
    claims = re.findall(r"^- .*?(?=^- |^#|^$|\Z)", TEXT.partition("## What agrees")[2], re.M | re.S)
    assert len(claims) >= 4
    assert [claim for claim in claims if not FIGURE.search(claim)] == []


@pytest.mark.parametrize("study", sorted(path.name for path in FOLDER.iterdir() if path.is_dir()))
def test_each_study_has_its_command_its_seeds_and_the_manifests_of_its_runs(study: str) -> None:
    part = next(part for part in TEXT.split("\n## ") if f"experiments.{study.partition('.')[0]} " in part)
    assert re.search(r"python run.py experiment=\w+ size=embedded", part)
    assert re.search(r"[Ss]eeds? \d", part)
    runs = [json.loads(line) for line in (FOLDER / study / "runs.jsonl").read_text().splitlines()]
    assert all(run["store"] == "store" and run["config"]["n_samples"] >= 5 for run in runs)
    assert len({run["rounds"][0]["samples"]["key"] for run in runs}) == 1, "one pool"


def test_the_results_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 5e6
