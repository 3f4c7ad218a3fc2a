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


KNOWN = {
    folder.name: [figure for path in sorted(folder.glob("*.csv")) for figure in figures(path)]
    for folder in sorted(path.parent for path in FOLDER.glob("*/runs.jsonl"))
}
CLAIMS = re.findall(r"^- .*?(?=^- |^#|^$|\Z)", TEXT.partition("## What agrees")[2], re.M | re.S)
SOURCE = re.compile(r"\[`([\w.]+)`\]\(#")  # a claim names the study whose tables it is from


def stands(study: str, shown: tuple[str, ...], percent: bool) -> bool:
    """Whether a table of the study has this figure with this interval, rounded as it is shown."""
    decimals, scale = len(shown[0].partition(".")[2]), 100 if percent else 1
    wanted = tuple(one.removeprefix("+") for one in shown)
    return any(tuple(f"{scale * one:.{decimals}f}" for one in known) == wanted for known in KNOWN[study])


def values(study: str) -> set[float]:
    """All fractions in the tables of a study."""
    found: set[float] = set()
    for path in (FOLDER / study).glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            found |= {
                float(cell) for row in csv.DictReader(file) for cell in row.values() if re.fullmatch(NUMBER, cell)
            }
    return found


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_names_its_study_whose_tables_have_its_figures_with_their_intervals(claim: str) -> None:
    (study,) = set(SOURCE.findall(claim))
    shown = FIGURE.findall(claim)
    assert shown
    assert [one for one in shown if not stands(study, (one[0], one[2], one[3]), one[1] == "%")] == []
    bare = [one.removeprefix("+") for one in re.findall(r"(?<![\d.])[+-]?\d+\.\d+", FIGURE.sub("", claim))]
    known = values(study)
    assert [one for one in bare if not any(f"{value:.{len(one.partition('.')[2])}f}" == one for value in known)] == []


def test_there_are_claims_and_every_figure_stands_in_one() -> None:
    assert len(CLAIMS) >= 8
    assert len(FIGURE.findall(TEXT)) == len(FIGURE.findall("".join(CLAIMS)))


def test_a_figure_that_is_in_no_table_is_noticed() -> None:
    figure, low, high = next(one for one in KNOWN["pair_grid"] if abs(one[0]) > 0.1)
    shown = tuple(f"{one:.3f}" for one in (figure, low, high))
    assert stands("pair_grid", shown, percent=False)
    assert not stands("pair_grid", (f"{figure + 0.002:.3f}", *shown[1:]), percent=False)
    assert not stands("reward_normality", shown, percent=False)


@pytest.mark.parametrize("study", KNOWN)
def test_each_study_has_its_command_its_seeds_and_the_manifests_of_its_runs(study: str) -> None:
    part = next(part for part in TEXT.split("\n## ") if f"experiments.{study.partition('.')[0]} " in part)
    assert re.search(r"python run.py experiment=\w+ size=embedded", part)
    assert re.search(r"[Ss]eeds? \d", part)
    runs = [json.loads(line) for line in (FOLDER / study / "runs.jsonl").read_text().splitlines()]
    assert all(run["store"] == "store" and run["rounds"][0]["samples"]["n_samples"] >= 5 for run in runs)
    assert max(run["config"]["n_samples"] for run in runs) >= 64
    assert len({run["rounds"][0]["samples"]["key"] for run in runs}) == 1, "one pool"


def test_the_results_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 5e6
