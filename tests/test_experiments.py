"""Every experiment at size=tiny, from an empty store to its tables, held against numbers computed from the stored rows.

One store serves all: the pool of the largest n, and every run that two experiments want.
"""

import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from experiments import (
    academic,
    adaptive_budget,
    extended_positions,
    kept,
    loss_swap,
    min_of_k,
    output,
    pair_grid,
    reward_model_swap,
    reward_normality,
    rounds,
    runs,
    sample_scaling,
    training_dynamics,
)
from experiments.output import Found
from experiments.repeats import as_table, repeated
from experiments.runs import Point, Settings
from sweetspot.report.words import signed
from sweetspot.strategy import POINTS, paper_pairs
from sweetspot.sweep import collect
from sweetspot.sweep import folder as folders
from sweetspot.sweep.outcome import Outcome
from sweetspot.visible import in_markdown
from tests import study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("experiments")]
SETTINGS = Settings(resamples=200, seed=0)
MANY = Settings(resamples=40_000, seed=0)
Rows = list[dict[str, Any]]
SECONDS = 480  # for all of this module


def clocks() -> tuple[float, float]:
    """The time, and that of processors which this process and those that it waited for have taken, seconds."""
    spent = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.monotonic(), sum(one.ru_utime + one.ru_stime for one in spent)


@pytest.fixture(scope="module", autouse=True)
def began() -> tuple[float, float]:
    """The clocks when the first test of the module began."""
    return clocks()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder in which relative paths start; the sweeps of this module share its store."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        study.workers_here(patch, folder)
        yield folder


@pytest.fixture(scope="module")
def grid(place: Path) -> list[Point]:
    """The pair grid as its experiment sweeps it: 21 pairs and the random baseline."""
    assert not (place / "store").exists()
    return shipped("pair_grid")


@pytest.fixture(scope="module")
def scaling(grid: list[Point]) -> list[Point]:
    """Four strategies at three n, on the grid's pool."""
    assert grid
    return shipped("sample_scaling")


@pytest.fixture(scope="module")
def swapped(grid: list[Point]) -> list[Point]:
    """Two strategies by each of two reward models, on the grid's pool."""
    assert grid
    return shipped("reward_model_swap")


def shipped(experiment: str) -> list[Point]:
    """The runs of an experiment as its command sweeps them at size=tiny."""
    found, missing = runs.read([study.sweep(experiment, study.shipped(experiment))])
    assert not missing
    return found


def stored(point: Point) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rewards and lengths [prompts, n] straight from the tables of the store, and the prompts' ids, sorted."""
    found: dict[str, dict[tuple[str, int], float]] = {"reward": {}, "n_tokens": {}}
    for part, column in (("rewards", "reward"), ("samples", "n_tokens")):
        for path in (point.store / point.part(part)["folder"]).glob("*.parquet"):
            for row in pq.read_table(path, columns=["prompt_id", "sample_index", column]).to_pylist():
                found[column][row["prompt_id"], row["sample_index"]] = row[column]
    prompts = pq.read_table(point.store / point.part("samples")["prompts"])["prompt_id"].to_pylist()
    matrices = [
        np.array([[found[column][name, index] for index in range(point.n)] for name in sorted(prompts)], dtype=float)
        for column in ("reward", "n_tokens")
    ]
    return matrices[0], matrices[1], sorted(prompts)


def changed(point: Point) -> np.ndarray:
    """The change of the judge's reward of each held-out prompt, prompts by id, straight from the scores."""
    rows = pq.read_table(point.store / point.manifest["evaluations"][0]["path"]).to_pylist()
    names = sorted({row["prompt_id"] for row in rows})
    own = [[row["reward"] - row["baseline_reward"] for row in rows if row["prompt_id"] == name] for name in names]
    return np.array([np.mean(one) for one in own])


def resampled(values: np.ndarray) -> tuple[Any, float]:
    """The middle 95% of the means of values drawn again with replacement, and how far a limit may lie off: a fifth of
    the standard error, as another 40,000 draws of few values would."""
    drawn = np.random.default_rng(1).choice(values, size=(40_000, len(values)))
    return np.percentile(drawn.mean(axis=1), [2.5, 97.5]), 0.2 * values.std() / math.sqrt(len(values))


def found_again(found: Found) -> None:
    """A study has a figure, and every table of it that is held against itself is found again, each row and number."""
    assert found.figures
    tables = {name: rows for name, rows in found.tables.items() if rows}
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in tables.items():
            pq.write_table(as_table(rows), Path(folder, f"{name}.parquet"))
        told = repeated(found.tables, Path(folder))
    for line, (name, rows) in zip(told, tables.items(), strict=True):
        assert line.startswith(f"{name}: {len(rows)} of {len(rows)} rows are there, ")
        assert re.search(r", (\d+) of \1 figures lie|, without an interval", line), line


def only(rows: Any, **wanted: Any) -> dict[str, Any]:
    """The one row that has these values."""
    (row,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return row


def test_one_pool_serves_the_whole_grid_and_every_n(grid: list[Point], scaling: list[Point]) -> None:
    assert len(grid) == len(paper_pairs()) + 1
    assert [point.n for point in scaling] == [n for n in (5, 16, 32) for _ in range(4)]
    made = [{stage["name"]: stage["made"] for stage in point.manifest["stages"]} for point in [*grid, *scaling]]
    assert [stages["sample"] for stages in made] == [2] + [0] * (len(made) - 1)
    assert [stages["score"] for stages in made] == [2] + [0] * (len(made) - 1)
    assert [stages.get("sample start", 0) for stages in made] == [1] + [0] * (len(made) - 1)


def test_reward_normality_tells_what_scipy_finds_in_the_stored_rewards(grid: list[Point]) -> None:
    found = reward_normality.study(grid, MANY, "reward")
    rewards = stored(grid[0])[0]
    assert [row["n"] for row in found.tables["shape_by_n"]] == [5, 10, 20, 32]
    for n in (10, 32):
        row, first = only(found.tables["shape_by_n"], n=n), rewards_in_order(grid[0])[:, :n]
        assert row["shapiro"] == np.mean([stats.shapiro(one).pvalue >= 0.05 for one in first])
        assert row["skew"] == pytest.approx(stats.skew(first, axis=1).mean())
        assert row["kurtosis"] == pytest.approx(stats.kurtosis(first, axis=1).mean())
        z = stats.zscore(first, axis=1, ddof=1)
        assert (row["below"], row["above"]) == pytest.approx(((z < -2).mean(), (z > 2).mean()))
        limits, off = resampled(stats.skew(first, axis=1))
        assert (row["skew_low"], row["skew_high"]) == pytest.approx(limits, abs=off)
    told = grid[0].part("rewards")
    assert told["normal_share_shapiro_single"] == only(found.tables["shape_by_n"], n=32)["shapiro"]
    assert told["normal_share_shapiro"] == only(found.tables["shape_by_n"], n=32)["shapiro_adjusted"]
    found_again(found)
    lowest = only(found.tables["order_statistics"], rank=1)
    assert lowest["mean"] == pytest.approx(stats.zscore(rewards, axis=1, ddof=1).min(axis=1).mean())
    assert lowest["predicted"] == pytest.approx(-2.0697 / 0.99197, abs=1e-3)  # tables of n = 32: E[max], c4


def rewards_in_order(point: Point) -> np.ndarray:
    """The stored rewards in the order of sample_index; rows as sorted ids: means over prompts do not mind."""
    return stored(point)[0]


def test_min_of_k_is_the_mean_over_all_subsets_and_compares_policies_prompt_by_prompt(grid: list[Point]) -> None:
    own = shipped("min_of_k")
    assert own[4].part("policy")["key"] == next(p for p in grid if p.strategy == "(max, min)").part("policy")["key"]
    found = min_of_k.study(own, SETTINGS, "reward")
    rewards, lengths, _ = stored(own[0])
    z = stats.zscore(rewards, axis=1, ddof=1)
    pairs = list(combinations(range(32), 2))
    row = only(found.tables["worst_of_k"], k=2)
    assert row["z_mean"] == pytest.approx(np.mean([[min(one[a], one[b]) for a, b in pairs] for one in z]), abs=1e-6)
    worst = [[lengths[i, a] if rewards[i, a] < rewards[i, b] else lengths[i, b] for a, b in pairs] for i in range(12)]
    assert row["tokens_mean"] == pytest.approx(np.mean(worst))
    assert only(found.tables["worst_of_k"], k=32)["margin_z_mean"] == pytest.approx(np.ptp(z, axis=1).mean(), abs=1e-6)
    slopes = [np.polyfit(lengths[i], z[i], 1)[0] * lengths[i].var() for i in range(12) if lengths[i].var() > 0]
    assert lengths.var(axis=1).max() > 0
    assert row["z_per_token"] == pytest.approx(np.sum(slopes) / lengths.var(axis=1).sum(), abs=1e-6)
    two, five = (only(found.tables["trained"], k=k) for k in (2, 5))
    assert two["than_5_mean"] == pytest.approx((changed(own[0]) - changed(own[1])).mean())
    assert "than_5_mean" not in five
    assert five["mean"] == pytest.approx(own[1].manifest["evaluations"][0]["judges"][0]["difference"])
    found_again(found)


def test_sample_scaling_estimates_every_n_from_one_pool_and_compares_policies_of_one_n(scaling: list[Point]) -> None:
    found = sample_scaling.study(scaling, SETTINGS, "reward")
    rewards = stored(scaling[-1])[0]
    fives = np.random.default_rng(0).permuted(np.tile(rewards, (4000, 1, 1)), axis=2)[:, :, :5]
    selection = found.tables["selection_by_n"]
    for position, of in (("max", fives.max(axis=2)), ("min", fives.min(axis=2))):
        row, error = only(selection, position=position, n=5), of.mean(axis=1).std() / math.sqrt(4000)
        assert row["reward_mean"] == pytest.approx(of.mean(), abs=5 * error)
    assert only(selection, position="min_of_5", n=32)["reward_mean"] == pytest.approx(
        only(selection, position="min", n=5)["reward_mean"]
    )
    assert only(selection, position="max", n=32)["reward_mean"] == pytest.approx(rewards.max(axis=1).mean())
    assert only(selection, position="random", n=20)["reward_mean"] == pytest.approx(rewards.mean())
    points = {(point.n, point.strategy): point for point in scaling}
    row = only(found.tables["trained_by_n"], n=16, strategy="(max, min_of_5)")
    difference = changed(points[16, "(max, min_of_5)"]) - changed(points[16, "(max, min)"])
    assert row["than_max_min_mean"] == pytest.approx(difference.mean())
    selecting = points[16, "(max, min_of_5)"].manifest["evaluations"][0]["judges"][1]
    assert (selecting["role"], row["selecting"]) == ("selecting", pytest.approx(selecting["difference"]))
    assert any("at n = 5" in line.what and "45 LC" in line.paper for line in found.beside)
    found_again(found)


def test_the_pair_grid_holds_every_pair_beside_the_random_one(grid: list[Point], tmp_path: Path) -> None:
    found = pair_grid.study(grid, SETTINGS, "reward")
    rows, points = found.tables["pair_grid"], {point.strategy: point for point in grid}
    assert {(row["chosen"], row["rejected"]) for row in rows} == {*paper_pairs(), ("random", "random")}
    rewards, lengths, names = stored(grid[0])
    for strategy in ("(max, min)", "(mu+2sigma, mu-2sigma)"):
        row, point = only(rows, strategy=strategy), points[strategy]
        assert row["mean"] == pytest.approx(changed(point).mean())
        difference = changed(point) - changed(points["random"])
        assert row["than_random_mean"] == pytest.approx(difference.mean())
        own = only(pair_grid.study([points["random"], point], MANY, "reward").tables["pair_grid"], strategy=strategy)
        limits, off = resampled(difference)
        assert (own["than_random_low"], own["than_random_high"]) == pytest.approx(limits, abs=off)
        sums = np.abs([np.dot(signs, difference) for signs in product((-1, 1), repeat=len(difference))])
        reached = (sums >= abs(difference.sum()) - 1e-12).mean()  # of all 64 ways to swap policy and random
        assert own["than_random_p"] == pytest.approx(reached, abs=0.01)
        pairs = pq.read_table(point.store / point.part("pairs")["path"]).to_pylist()
        assert row["chosen_z_mean"] == pytest.approx(np.mean([pair["chosen_z"] for pair in pairs]), abs=1e-5)
        gaps = [lengths[names.index(p["prompt_id"])][[p["chosen_index"], p["rejected_index"]]] for p in pairs]
        assert row["longer_mean"] == pytest.approx(np.mean([first - second for first, second in gaps]))
    p = [row["than_random_p"] for row in rows if row["strategy"] != "random"]
    assert len(p) == 21
    adjusted = [row["than_random_p_holm"] for row in rows if row["strategy"] != "random"]
    assert adjusted == pytest.approx(multipletests(p, method="holm")[1])
    both = only(found.tables["collisions"], first="mu-2sigma", second="min")
    target = rewards.mean(axis=1) - 2 * rewards.std(axis=1, ddof=1)
    nearest = np.abs(rewards - target[:, None]).argmin(axis=1)
    assert both["share"] == pytest.approx((nearest == rewards.argmin(axis=1)).mean())
    shared = only(found.tables["pair_overlap"], first="(max, min)", second="(mu+2sigma, min)")
    assert shared["same_rejected"] == 1
    nearest = np.abs(rewards - 2 * rewards.mean(axis=1, keepdims=True) + target[:, None]).argmin(axis=1)
    assert shared["same_chosen"] == shared["same_pair"] == pytest.approx((nearest == rewards.argmax(axis=1)).mean())
    paths = output.write(found, grid, tmp_path)
    assert {path.suffix for path in paths} == {".parquet", ".csv", ".png", ".svg", ".md", ".jsonl"}
    written = pq.read_table(tmp_path / "pair_grid.parquet")
    assert written["than_random_mean"].null_count == 1, "the random pair itself, the first row"
    assert (
        csv.read_csv(tmp_path / "pair_grid.csv").num_rows
        == pq.read_table(tmp_path / "pair_grid.parquet").num_rows
        == 22
    )
    drawn = (tmp_path / "pair_grid_tiny_32.svg").read_text()
    assert all(drawn.count(f">{point}<") == 2 for point in POINTS)
    assert any(line.what == "pairs below the start" and "none of the 21" in line.paper for line in found.beside)


def test_several_seeds_are_averaged_by_prompt_before_anything_is_compared(grid: list[Point]) -> None:
    again = [["experiment=pair_grid", "size=tiny", f"strategy={one}", "seed=1"] for one in ("random", "paper/max_min")]
    second = runs.read([study.sweep("second_seed", again)])[0]
    found = pair_grid.study([*grid, *second], SETTINGS, "reward").tables["pair_grid"]
    row = only(found, strategy="(max, min)")
    first = next(point for point in grid if point.strategy == "(max, min)")
    means = [changed(first).mean(), changed(second[1]).mean()]
    assert row["seeds"] == "0, 1"
    assert (row["mean"], row["seed_sd"]) == pytest.approx((np.mean(means), np.std(means, ddof=1)))
    assert only(found, strategy="(max, mu)")["seeds"] == "0"
    kept = [point.part("pairs")["kept"] for point in (first, second[1])]
    assert (row["kept"], row["chosen_z_prompts"]) == (sum(kept), 12)


def test_a_study_is_a_command_that_reads_a_sweep_and_tells_what_is_missing(grid: list[Point], place: Path) -> None:
    sweep = grid[0].folder.parent
    hidden = grid[3].folder / "manifest.json"
    hidden.rename(hidden.with_suffix(".hidden"))
    command = [
        sys.executable,
        "-m",
        "experiments.pair_grid",
        str(sweep),
        "--out",
        str(place / "told"),
        "--resamples",
        "100",
    ]
    told = subprocess.run(command, cwd=study.ROOT, capture_output=True, text=True, check=True).stdout
    hidden.with_suffix(".hidden").rename(hidden)
    assert f"not done: {grid[3].folder.name} (no manifest)" in told
    assert pq.read_table(place / "told" / "pair_grid.parquet").num_rows == 21
    nothing = subprocess.run([*command[:3], str(place)], cwd=study.ROOT, capture_output=True, text=True, check=False)
    assert nothing.returncode == 1
    assert nothing.stderr == f"error: a study reads folders with a manifest.json or a jobs.json, got {place}\n"


def test_a_kept_store_gives_the_same_tables_and_makes_no_pool_or_policy(
    grid: list[Point], place: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    assert kept.keep(grid[:2], folder) > kept.keep(grid[:2], folder) == 0
    assert not [*folder.rglob("*.safetensors"), *folder.rglob("tokenizer.json")]
    scores = [row for path in folder.glob("scores/*/*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {row["response"] for row in scores} == {row["baseline"] for row in scores} == {""}
    several = Point(place, {**grid[0].manifest, "rounds": grid[0].manifest["rounds"] * 2})
    with pytest.raises(ValueError, match="only runs of one round, without SFT and lm-eval, can be kept"):
        kept.keep([several], folder)
    first = study.swept("pair_grid")["strategy"][:2]
    points = [["experiment=pair_grid", "size=tiny", f"strategy={one}", f"store={folder}"] for one in first]
    again, missing = runs.read([study.sweep("again", points)])
    assert not missing
    made = {stage["name"] for point in again for stage in point.manifest["stages"] if stage["made"]}
    assert made <= {"prepare", "select", "reference"}
    assert pair_grid.study(again, SETTINGS, "reward").tables == pair_grid.study(grid[:2], SETTINGS, "reward").tables


def test_a_result_is_held_against_an_earlier_one_row_by_row(grid: list[Point], tmp_path: Path) -> None:
    found = pair_grid.study(grid, SETTINGS, "reward")
    output.write(found, grid, tmp_path)
    assert [json.loads(line)["store"] for line in (tmp_path / "runs.jsonl").read_text().splitlines()] == ["store"] * 22
    assert in_markdown(f"(max, mu), n = {grid[0].n}, reward") in (tmp_path / "comparison.md").read_text()
    found_again(found)
    three = pair_grid.study(grid[:3], SETTINGS, "reward").tables
    columns = 5  # the policy, its difference from random, z of chosen and rejected, tokens
    count = 3 * columns - 1  # random is not compared with itself
    told = repeated(three, tmp_path)
    inside = f"{count} of {count + 2} figures lie in the intervals of {tmp_path}"  # no (max, min)
    assert told[0] == f"pair_grid: 3 of 22 rows are there, {inside}"
    missing = [line for line in told if line.startswith("  missing: ")]
    assert sum(any(f" {point.strategy} " in line for line in missing[:19]) for point in grid[3:]) == 19
    assert any(line.startswith("collisions: 21 of 21 rows are there, 21 of 21 figures lie") for line in told)
    rows = pq.read_table(tmp_path / "pair_grid.parquet").to_pylist()
    rows[1] |= {"low": 98.0, "high": 99.0}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pair_grid.parquet")
    told = repeated(three, tmp_path)
    assert told[0].startswith(f"pair_grid: 3 of 22 rows are there, {count - 1} of {count + 2} figures")
    (outside,) = [line for line in told if line.startswith("  outside: ")]
    assert f" {rows[1]['strategy']} " in outside
    assert outside.endswith(" mean")


def test_the_report_of_the_grid_shows_what_its_study_finds(grid: list[Point]) -> None:
    sweep = folders.read(grid[0].folder.resolve().parent)
    page = collect.write(sweep, {job.number: Outcome("done", "", "", "") for job in sweep.jobs})[-1].read_text()
    heat = next(words for words in re.findall('aria-label="([^"]*)"', page) if words.startswith("Heat map of 21 pairs"))
    found = pair_grid.study(grid, Settings(2000, 0), "reward").tables["pair_grid"]
    assert len(found) == 22
    for row in found:
        star = "*" if row.get("than_random_p_holm", 1.0) < 0.05 else ""
        assert row["strategy"] == "random" or f"{row['strategy']} {signed(row['mean'])}{star}" in re.split(
            "[;:] |[.]$", heat
        )
    assert "22 of 22 points are done" in page


def test_a_study_of_runs_that_did_not_get_so_far_says_so(grid: list[Point]) -> None:
    manifest = json.loads((grid[0].folder / "manifest.json").read_text())
    stopped = Point(grid[0].folder, {**manifest, "evaluations": []})
    with pytest.raises(ValueError, match="the study needs runs that reached an evaluation of reward, got none of 1"):
        pair_grid.study([stopped], SETTINGS, "reward")
    assert sample_scaling.study([stopped], SETTINGS, "reward").tables["trained_by_n"] == []


@pytest.mark.usefixtures("place")
def test_training_dynamics_ends_where_the_history_ends() -> None:
    own = shipped("training_dynamics")
    found = training_dynamics.study(own, SETTINGS, "reward")
    found_again(found)
    ends, point = found.tables["ends"], own[1]
    assert all(end["held_out_pairs"] and end["held_out/loss"] for end in ends)
    lines = (point.store / point.part("policy")["folder"] / "history.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    end, half, pairs = only(ends, strategy="(max, mu-2sigma)"), len(rows) // 2, point.part("policy")["pairs"]
    assert end["steps"] == len(rows) == 2 * half
    sizes = [min(4, pairs - start) for start in range(0, pairs, 4)]  # of the steps of an epoch
    assert len(sizes) == half
    assert sizes[-1] < 4, "a short step"
    epochs = [
        [row for row, size in zip(part, sizes, strict=True) for _ in range(size)] for part in (rows[:half], rows[half:])
    ]
    assert end["loss"] == pytest.approx(np.mean([row["loss"] for row in epochs[1]]))
    for side in ("chosen", "rejected"):
        reference = [np.mean([row[f"logps/{side}"] - row[f"rewards/{side}"] / 0.1 for row in part]) for part in epochs]
        assert reference[0] == pytest.approx(reference[1], rel=1e-5), "both epochs see the same pairs"
        shift = np.mean([row[f"logps/{side}"] for row in epochs[1]]) - reference[0]
        assert end[f"{side}_shift"] == pytest.approx(shift, abs=1e-3)
    assert rows[0]["rewards/chosen"] == pytest.approx(0, abs=1e-5), (
        "the first step is measured before anything is learnt"
    )
    assert end["held_out/loss"] == rows[-1]["held_out/loss"]
    assert end["held_out_pairs"] + end["pairs"] == point.part("pairs")["kept"]
    curve = [row for row in found.tables["curves"] if row["strategy"] == "(max, mu-2sigma)"]
    assert [row["loss"] for row in curve] == [row["loss"] for row in rows]
    assert [row["held_out/loss"] is None for row in curve] == ["held_out/loss" not in row for row in rows]
    assert (point.manifest["evaluations"], point.manifest["until"]) == ([], "train")


@pytest.mark.usefixtures("grid")
def test_extended_positions_are_the_extremes_for_the_share_of_prompts_that_brute_force_finds() -> None:
    own = shipped("extended_positions")
    assert len(own) == 4
    found = extended_positions.study(own, SETTINGS, "reward")
    rewards = stored(own[0])[0]
    target = rewards.mean(axis=1) - 3 * rewards.std(axis=1, ddof=1)
    nearest = np.abs(rewards - target[:, None]).argmin(axis=1)
    row = only(found.tables["positions"], position="mu-3sigma")
    assert row["share"] == pytest.approx((nearest == rewards.argmin(axis=1)).mean())
    z = stats.zscore(rewards, axis=1, ddof=1)
    assert row["z_mean"] == pytest.approx(z[np.arange(12), nearest].mean(), abs=1e-6)
    row = only(found.tables["trained"], strategy="(max, mu-3sigma)")
    points = {point.strategy: point for point in own}
    difference = changed(points["(max, mu-3sigma)"]) - changed(points["(max, min)"])
    assert row["than_max_min_mean"] == pytest.approx(difference.mean())
    found_again(found)


def test_losses_are_compared_with_dpo_on_the_same_pair(grid: list[Point]) -> None:
    losses = ["dpo", "ipo", "hinge", "apo_zero", "sppo_hard", "simpo"]
    swept = shipped("loss_swap")
    whole = loss_swap.study(swept, SETTINGS, "win_rate")
    found_again(whole)
    own = [point for point in swept if point.strategy == "(max, mu-2sigma)"]
    found = whole.tables["loss_swap"]
    names = [json.loads((point.folder / "manifest.json").read_text())["config"]["dpo"]["loss"] for point in own]
    assert names == losses
    table = [
        pq.read_table(point.store / point.manifest["evaluations"][0]["path"])["preference"].to_numpy() for point in own
    ]
    for loss, preferred in zip(losses[1:], table[1:], strict=False):
        row = only(found, loss=loss, strategy="(max, mu-2sigma)")
        assert row["mean"] == pytest.approx(100 * preferred.mean())
        assert row["than_dpo_mean"] == pytest.approx(100 * (preferred.mean() - table[0].mean()))
    curves = [[row["loss"] for row in runs.history(point)] for point in own]
    assert [first for first, *_ in curves[:4]] == pytest.approx([math.log(2), 25, 1, 1], abs=1e-3)
    assert curves[4][0] == pytest.approx(2 * 25, abs=1e-2)  # 1 / (2 beta) is 5, and the policy its reference still
    row = only(found, loss="simpo", strategy="(max, mu-2sigma)")
    assert (row["beta"], row["gamma"]) == (2, 1)
    with pytest.raises(
        ValueError, match=r"must differ in their seed alone, got \(max, mu-2sigma\), n = 32, seeds 0, 0"
    ):
        pair_grid.study([*own, *grid], SETTINGS, "reward")
    first = next(point for point in grid if point.strategy == "(max, mu-2sigma)")
    assert len(runs.having([*own, first], "policy")) == len(own)  # dpo's is that of the grid


def test_two_reward_models_on_one_pool_agree_as_numpy_says_and_the_best_by_one_is_worth_less_to_the_other(
    grid: list[Point], swapped: list[Point]
) -> None:
    own = [point for point in swapped if point.strategy == "(max, min)"]
    assert own[0].part("samples")["key"] == grid[0].part("samples")["key"] == own[1].part("samples")["key"]
    found = reward_model_swap.study(swapped, SETTINGS, "reward")
    first, second = (stored(point)[0] for point in own)
    row = only(found.tables["agreement"], first="tiny", second="tiny_gold")
    each = [np.corrcoef(a, b)[0, 1] for a, b in zip(first, second, strict=True)]
    assert row["mean"] == pytest.approx(np.mean(each), abs=1e-6)
    z = [stats.zscore(one, axis=1, ddof=1) for one in (first, second)]
    row = only(found.tables["over_optimisation"], selecting="tiny", n=32)
    assert row["selecting_mean"] == pytest.approx(z[0].max(axis=1).mean(), abs=1e-6)
    assert row["gold_mean"] == pytest.approx(z[1][np.arange(12), z[0].argmax(axis=1)].mean(), abs=1e-6)
    assert row["gold_mean"] < row["selecting_mean"]
    same = (first.argmax(axis=1) == second.argmax(axis=1)) & (first.argmin(axis=1) == second.argmin(axis=1))
    assert only(found.tables["overlap"], strategy="(max, min)")["same_pair"] == pytest.approx(same.mean())
    row = only(found.tables["trained"], reward_model="tiny_gold", strategy="(max, min)")
    assert row["mean"] == pytest.approx(changed(own[1]).mean())
    found_again(found)
    selected = [Point(point.folder, {**point.manifest, "evaluations": []}) for point in swapped]  # until=select
    assert reward_model_swap.study(selected, SETTINGS, None).tables == {**found.tables, "trained": []}
    with pytest.raises(ValueError, match="needs runs of two reward models on the same samples, got tiny"):
        reward_model_swap.study(grid, SETTINGS, "reward")


@pytest.mark.usefixtures("grid")
def test_rounds_are_compared_with_the_first() -> None:
    swept = shipped("rounds")
    assert [point.config["rounds"] for point in swept] == [1, 1, 2, 2]
    own = [point for point in swept if point.strategy == "(max, mu-2sigma)"]
    assert own[0].part("policy")["key"] == own[1].part("policy", 0)["key"]
    found = rounds.study(swept, SETTINGS, "reward")
    means = []
    for turn in own[1].manifest["rounds"]:
        tables = [pq.read_table(path) for path in (own[1].store / turn["rewards"]["folder"]).glob("*.parquet")]
        rows = [row for table in tables for row in table.to_pylist()]
        means.append(np.mean([row["reward"] for row in rows if row["sample_index"] < 32]))
    second = only(found.tables["rounds"], rounds=2, round=2, strategy="(max, mu-2sigma)")
    assert second["mean"] == pytest.approx(means[1], abs=1e-5)
    assert second["since_first_mean"] == pytest.approx(means[1] - means[0], abs=1e-5)
    row = only(found.tables["trained"], rounds=2, strategy="(max, mu-2sigma)")
    assert row["than_one_mean"] == pytest.approx((changed(own[1]) - changed(own[0])).mean())
    found_again(found)


@pytest.mark.usefixtures("place")
def test_an_adaptive_budget_is_worth_the_uniform_n_that_reaches_the_same_best_reward() -> None:
    own = shipped("adaptive_budget")
    assert [point.config["sampler"]["budget"] for point in own] == ["adaptive", "uniform"]
    found = adaptive_budget.study(own, SETTINGS, "reward")
    (row,) = found.tables["adaptive_budget"]
    rewards, _, names = stored(own[1])
    pairs = pq.read_table(own[0].store / own[0].part("pairs")["path"]).to_pylist()
    assert row["chosen"] == pytest.approx(np.mean([pair["chosen_reward"] for pair in pairs]), abs=1e-6)
    counts = dict(zip(runs.prompt_ids(own[0]), adaptive_budget.drawn(own[0]), strict=True))
    assert sum(counts.values()) == own[0].part("samples")["drawn"] <= 48 * len(names)
    assert row["drawn_mean"] == pytest.approx(np.mean([counts[pair["prompt_id"]] for pair in pairs]))
    found_again(found)
    shuffled = np.random.default_rng(0).permuted(np.tile(rewards, (2000, 1, 1)), axis=2)
    best = np.maximum.accumulate(shuffled, axis=2).mean(axis=(0, 1))  # [128], of the best of k
    assert row["equal_n"] == pytest.approx(np.interp(row["chosen"], best, np.arange(1, 129)), rel=0.05)
    assert row["share"] == pytest.approx(row["drawn_mean"] / row["equal_n"])
    with pytest.raises(ValueError, match="needs an adaptive and a uniform run, got adaptive"):
        adaptive_budget.study(own[:1], SETTINGS, "reward")


def test_academic_tasks_of_policy_and_start_stand_side_by_side(grid: list[Point]) -> None:
    pytest.importorskip("lm_eval")
    own = shipped("academic")
    found = academic.study([*own, *grid], SETTINGS, "reward")
    found_again(found)
    row, told = only(found.tables["academic"], strategy="random"), own[0].manifest["evaluations"][1]
    tables = {
        path.parent.name: pq.read_table(path).to_pylist()[0] for path in own[0].store.glob("academic/*/*.parquet")
    }
    policies = {point.manifest["evaluations"][1]["key"] for point in own}
    (start,) = [one for name, one in tables.items() if name not in policies]
    policy = tables[told["key"]]
    assert (row["value"], row["start"]) == (policy["value"], start["value"])
    reach = 1.959964 * math.hypot(policy["standard_error"], start["standard_error"])
    assert (row["low"], row["high"]) == pytest.approx((row["difference"] - reach, row["difference"] + reach))
    assert "rhymes" in (own[0].folder / "report.html").read_text()
    with pytest.raises(ValueError, match="reached an lm_eval evaluation, got none of 22"):
        academic.study(grid, SETTINGS, "reward")


def test_instructions_are_a_measure_of_their_own_policy_and_start_checked_alike(grid: list[Point], place: Path) -> None:
    asked = [
        ("Say something.", ["punctuation:no_comma"], [{}]),
        ("Say it in a few words.", ["length_constraints:number_words"], [{"relation": "less than", "num_words": 9}]),
        ("Say more.", ["punctuation:no_comma", "detectable_format:title"], [{}, {}]),
    ]
    names = ("prompt", "instruction_id_list", "kwargs")
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in asked]
    (place / "asked.jsonl").write_text("\n".join(lines))
    checks = ["+eval@also.checks=ifeval", "also.checks.path=asked.jsonl", "also.checks.sampler.max_tokens=12"]
    checks += ["sampler@also.checks.sampler=transformers", "also.checks.resamples=1000"]
    points = [["experiment=pair_grid", "size=tiny", f"strategy={one}", *checks] for one in ("random", "paper/max_min")]
    own, _ = runs.read([study.sweep("checked", points)])
    (row,) = pair_grid.study(own, SETTINGS, "instructions").tables["pair_grid"][1:]
    told = own[1].manifest["evaluations"][1]
    sides = [pq.read_table(own[1].store / told[name]).to_pylist() for name in ("path", "start_path")]
    share = [{one["prompt_id"]: np.mean(one["strict"]) for one in side} for side in sides]
    gains = [100 * (share[0][name] - share[1][name]) for name in share[0]]
    assert len(gains) == 3
    assert row["mean"] == pytest.approx(np.mean(gains)) == told["difference"]
    assert (row["measure"], row["baseline"], row["prompts"]) == ("instructions", "the start", 3)
    assert stages_made(own[0])["sample start checks"] == 1
    assert stages_made(own[1]).get("sample start checks", 0) == 0
    with pytest.raises(ValueError, match="reached an evaluation of instructions, got none of 22"):
        pair_grid.study(grid, SETTINGS, "instructions")


def stages_made(point: Point) -> dict[str, int]:
    return {stage["name"]: stage["made"] for stage in point.manifest["stages"]}


def test_every_study_draws_writes_and_prints_whatever_it_is_given(
    grid: list[Point], swapped: list[Point], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of trained runs and of a pool that nothing was trained on; every column of a table has one type."""
    scored = shipped("reward_normality")
    assert [stage["made"] for stage in scored[0].manifest["stages"]] == [0, 0]
    found = {
        "reward_normality": reward_normality.study(scored, SETTINGS, "reward"),
        "min_of_k": min_of_k.study(scored, SETTINGS, "reward"),
        "sample_scaling": sample_scaling.study(scored, SETTINGS, "reward"),
        "extended_positions": extended_positions.study(scored, SETTINGS, "reward"),
        "rounds": rounds.study(scored, SETTINGS, "reward"),
        "reward_model_swap": reward_model_swap.study(swapped, SETTINGS, "win_rate"),
        "loss_swap": loss_swap.study(grid, SETTINGS, "win_rate"),
        "training_dynamics": training_dynamics.study(grid, SETTINGS, "win_rate"),
        "sampled": sample_scaling.study(grid, SETTINGS, "win_rate"),
        "paired": pair_grid.study(grid, SETTINGS, "win_rate"),
    }
    for name, one in found.items():
        found_again(one)
        output.show(one, name)
        for path in output.write(one, grid, tmp_path / name):
            assert path.stat().st_size > 100
    told = capsys.readouterr().out
    assert "second hand" in told
    assert "seed 0" in told


def test_an_experiment_is_a_sweep_by_itself_and_its_jobs_are_runs(grid: list[Point], place: Path) -> None:
    """Through run.py, with the axes of the experiment, one of which the command line replaces."""
    command = [sys.executable, str(study.ROOT / "run.py"), "experiment=pair_grid", "size=tiny"]
    environment = {**os.environ, "PYTHONPATH": str(study.ROOT)}
    told = subprocess.run(
        [*command, "launcher.dry_run=true"], cwd=place, env=environment, capture_output=True, text=True, check=True
    )
    assert "jobs: 22 to submit (Local)" in told.stdout
    swept = [*command, "strategy=paper/max_mu", "until=select"]
    subprocess.run(swept, cwd=place, env=environment, capture_output=True, text=True, check=True)
    own, missing = runs.read([place / "runs" / "latest"])
    assert not missing
    assert [(point.strategy, point.part("pairs")["key"]) for point in own] == [
        (point.strategy, point.part("pairs")["key"]) for point in grid if point.strategy == "(max, mu)"
    ]


@pytest.mark.usefixtures("grid")
def test_all_of_it_takes_less_than_eight_minutes_from_an_empty_store(began: tuple[float, float]) -> None:
    """Every fixture, command and comparison of this module; `grid` saw that the store was empty. Where the machine has
    other work as well, processor time alone counts: nearly all of it is one process with one thread."""
    wall, processor = (now - then for now, then in zip(clocks(), began, strict=True))
    print(f"every experiment at size=tiny, from an empty store: {wall:.0f} s, {processor:.0f} s of a processor")
    assert processor < SECONDS
    busy = os.getloadavg()[1] > 1.5 * (os.cpu_count() or 1)  # of the last five minutes
    assert busy or wall < SECONDS
