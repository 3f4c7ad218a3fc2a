"""An earlier result held against a new one: which rows are the same, and which figures are found again."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import output
from experiments.output import Beside, Found
from experiments.repeats import as_table, figures, labels, repeated
from experiments.runs import Point, Settings

ROW = {"strategy": "(max, min)", "n": 64, "seeds": "0, 1", "mean": 0.5, "low": 0.4, "high": 0.6, "prompts": 80}
INSIDE = "1 of 1 figures lie in the intervals of"
Tables = Mapping[str, Sequence[Mapping[str, Any]]]


def kept(folder: Path, tables: Tables) -> Path:
    """The folder with the tables of an earlier result."""
    for name, rows in tables.items():
        pq.write_table(as_table(rows), folder / f"{name}.parquet")
    return folder


def numbers(columns: Sequence[str]) -> pa.Table:
    """A table of one row of fractions."""
    return as_table([dict.fromkeys(columns, 0.5)])


def test_words_and_whole_numbers_name_a_row_and_counts_seeds_and_fractions_do_not() -> None:
    words = {"strategy": "(max, min)", "loss": "ipo", "selecting": "embedded", "task": "rhymes", "judge": "k3y"}
    numbers = {"n": 64, "k": 5, "rank": 1, "seed": 0, "rounds": 2, "round": 1, "step": 3, "fewshot": 0}
    settings = {"beta": 2, "gamma": 1.0}
    results = {"seeds": "0", "prompts": 80, "than_dpo_prompts": 80, "kept": 79, "pairs": 70, "held_out_pairs": 9}
    results |= {
        "steps": 18,
        "documents": 100,
        "chosen": 1.2,
        "epoch": 0.5,
        "share": 0.1,
        "beyond": True,
        "nothing": None,
    }
    table = as_table([{**results, **words, **numbers, **settings}])
    assert labels(table) == [*words, *numbers, *settings]
    assert labels(as_table([{"chosen": "max", "beta": None}])) == ["chosen"], "a word here, a reward elsewhere"


def test_every_figure_that_has_limits_is_compared_and_no_other() -> None:
    columns = ["mean", "low", "high", "z_mean", "z_low", "z_high", "skew", "skew_low", "skew_high", "drawn_mean", "p"]
    assert figures(numbers(columns)) == {
        "mean": ("low", "high"),
        "z_mean": ("z_low", "z_high"),
        "skew": ("skew_low", "skew_high"),
    }
    assert figures(numbers(["value", "difference", "low", "high"])) == {"difference": ("low", "high")}
    assert figures(numbers(["mean", "low"])) == {}


def test_a_word_that_is_has_the_name_of_a_figure_names_its_row(tmp_path: Path) -> None:
    row = {"selecting": "tiny", "selecting_mean": 1.0, "selecting_low": 0.5, "selecting_high": 1.5}
    assert figures(as_table([row])) == {"selecting_mean": ("selecting_low", "selecting_high")}
    told = repeated({"best": [row]}, kept(tmp_path, {"best": [row]}))
    assert told == [f"best: 1 of 1 rows are there, {INSIDE} {tmp_path}"]


def test_rows_that_differ_in_their_loss_or_beta_alone_are_told_apart(tmp_path: Path) -> None:
    rows = [{"loss": loss, "beta": beta, **ROW} for loss in ("dpo", "ipo") for beta in (0.1, 2)]
    tables = {"loss_swap": rows}
    assert repeated(tables, kept(tmp_path, tables)) == [
        f"loss_swap: 4 of 4 rows are there, 4 of 4 figures lie in the intervals of {tmp_path}"
    ]
    moved = [{**row, "mean": 0.7 if (row["loss"], row["beta"]) == ("ipo", 2) else 0.5} for row in rows]
    told = repeated({"loss_swap": moved}, tmp_path)
    assert told[0].startswith("loss_swap: 4 of 4 rows are there, 3 of 4 figures")
    assert told[1:] == ["  outside: ipo 2.0 (max, min) 64 mean"]


def test_more_seeds_and_other_counts_are_the_same_row(tmp_path: Path) -> None:
    folder = kept(tmp_path, {"grid": [{**ROW, "kept": 90}]})
    told = repeated({"grid": [{**ROW, "seeds": "0", "prompts": 79, "kept": 88}]}, folder)
    assert told == [f"grid: 1 of 1 rows are there, {INSIDE} {folder}"]


def test_rows_that_are_missing_now_are_counted_and_named(tmp_path: Path) -> None:
    rows = [{**ROW, "strategy": f"s{number}"} for number in range(4)]
    told = repeated({"grid": [*rows[1:3], {**ROW, "strategy": "new"}], "none": []}, kept(tmp_path, {"grid": rows}))
    assert told == [
        f"grid: 2 of 4 rows are there, 2 of 2 figures lie in the intervals of {tmp_path}",
        "  missing: s0 64",
        "  missing: s3 64",
    ]
    assert repeated({"grid": []}, tmp_path)[0].startswith("grid: 0 of 4 rows are there")


def test_a_figure_that_a_row_no_longer_has_is_not_found_again(tmp_path: Path) -> None:
    folder = kept(tmp_path, {"grid": [{**ROW, "than_random_mean": 0.1, "than_random_low": 0, "than_random_high": 1}]})
    told = repeated({"grid": [ROW]}, folder)
    assert told[0].startswith("grid: 1 of 1 rows are there, 1 of 2 figures")
    assert told[1:] == ["  missing: (max, min) 64 than_random_mean"]
    unknown = {"grid": [{**ROW, "mean": float("nan")}]}
    assert repeated(unknown, folder)[0].startswith("grid: 1 of 1 rows are there, 0 of 2 figures")


def test_a_table_without_intervals_compares_rows_alone_and_says_so(tmp_path: Path) -> None:
    tables = {"shared": [{"first": "a", "second": "b", "share": 0.5}]}
    assert repeated(tables, kept(tmp_path, tables)) == ["shared: 1 of 1 rows are there, without an interval to compare"]
    unknown = {"grid": [{**ROW, "low": None, "high": None}], "single": [{**ROW, "low": float("nan"), "high": 1.0}]}
    assert [line.partition(", ")[2] for line in repeated(unknown, kept(tmp_path, unknown))] == [
        "without an interval to compare"
    ] * 2


def test_rows_that_cannot_be_told_apart_are_not_compared(tmp_path: Path) -> None:
    tables = {"grid": [ROW, ROW]}
    told = repeated(tables, kept(tmp_path, tables))
    assert told == ["grid: nothing is compared, rows of one name (strategy, n) cannot be told apart"]


@pytest.mark.parametrize(
    ("mean", "low", "high", "inside"),
    [
        (-9.8e-19, 1e-18, 1e-18, True),
        (1 + 5e-7, 0.9, 1, True),
        (1e4 + 5e-3, 9e3, 1e4, True),
        (1.001, 0.9, 1, False),
        (0.899, 0.9, 1, False),
    ],
)
def test_a_limit_is_as_exact_as_float32(mean: float, low: float, high: float, inside: bool, tmp_path: Path) -> None:
    folder = kept(tmp_path, {"grid": [{**ROW, "low": low, "high": high}]})
    assert f"{int(inside)} of 1 figures" in repeated({"grid": [{**ROW, "mean": mean}]}, folder)[0]


def test_a_new_table_is_a_line_and_a_folder_with_none_of_them_an_error(tmp_path: Path) -> None:
    folder = kept(tmp_path, {"grid": [ROW]})
    assert repeated({"grid": [ROW], "overlap": [ROW]}, folder) == [
        f"grid: 1 of 1 rows are there, {INSIDE} {folder}",
        f"overlap: new, it is not in {folder}",
    ]
    with pytest.raises(FileNotFoundError, match=r"must hold one of overlap, trained, got .* without any"):
        repeated({"overlap": [ROW], "trained": []}, folder)


@pytest.mark.parametrize("study", ["sample_scaling", "min_of_k", "reward_normality", "pair_grid"])
def test_a_committed_result_is_found_again_whole(study: str) -> None:
    folder = Path(output.__file__).parent / "results" / "embedded" / study
    tables = {path.stem: pq.read_table(path).to_pylist() for path in sorted(folder.glob("*.parquet"))}
    told = repeated(tables, folder)
    assert [line.partition(",")[0] for line in told] == [
        f"{name}: {len(rows)} of {len(rows)} rows are there" for name, rows in tables.items()
    ]


def command(patch: pytest.MonkeyPatch, run: Path, *words: str) -> None:
    """A study of one table, as its command."""

    def study(points: Sequence[Point], settings: Settings, measure: str) -> Found:  # noqa: ARG001
        return Found({"grid": [ROW]}, beside=[Beside("a pair", "?", "+0.5")])

    run.mkdir(exist_ok=True)
    (run / "manifest.json").write_text(json.dumps({"config": {"store": "store"}}))
    patch.setattr(sys, "argv", ["grid", str(run), *words])
    output.run(study, "grid", "A study.")


def test_nothing_is_lost_where_the_earlier_result_is_not_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="error: --repeats: an earlier result must hold one of grid, got"):
        command(monkeypatch, tmp_path / "run", "--repeats", str(tmp_path))
    told = capsys.readouterr().out
    assert "+0.5" in told
    assert str(tmp_path / "run" / "grid" / "grid.parquet") in told.replace("\n", "")
    assert pq.read_table(tmp_path / "run" / "grid" / "grid.parquet").num_rows == 1
    (tmp_path / "grid.parquet").write_text("no table")
    with pytest.raises(SystemExit, match="error: --repeats: "):
        command(monkeypatch, tmp_path / "run", "--repeats", str(tmp_path))


def test_a_result_in_its_own_folder_is_compared_before_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = kept(tmp_path, {"grid": [{**ROW, "low": 0.6, "high": 0.7}]})
    command(monkeypatch, tmp_path / "run", "--repeats", str(folder), "--out", str(folder))
    assert "grid: 1 of 1 rows are there, 0 of 1 figures" in capsys.readouterr().out
    assert pq.read_table(folder / "grid.parquet")["low"].to_pylist() == [0.4]
