"""Studies of figures worked by hand: training curves of a few steps, and an adaptive budget beside a short curve."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import adaptive_budget, training_dynamics
from experiments.runs import Point, Settings
from sweetspot.schema import PAIRS, REWARDS
from sweetspot.store import write_tile
from tests import reported

SETTINGS = Settings(resamples=200, seed=0)
DPO = {"loss": "dpo", "beta": 0.1, "gamma": 0.0, "batch_size": 4}
STRATEGY = {"_target_": "sweetspot.strategy.PositionPair", "chosen": "max", "rejected": "min"}


def trained(store: Path, rows: Sequence[dict[str, float]], pairs: int, seed: int = 0, **dpo: Any) -> Point:
    """A run whose training left these rows of curves; what they lack is 0."""
    names = (*training_dynamics.CURVES, "rewards/chosen", "rewards/rejected")
    history = [
        {"step": step, "epoch": step * 2 / len(rows), **dict.fromkeys(names, 0.0), **row}
        for step, row in enumerate(rows, 1)
    ]
    path = store / f"history-{seed}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in history))
    policy = {"key": f"o{seed}", "history": path.name, "pairs": pairs, "held_out": 2}
    config = {"model": {"name": "tiny"}, "strategy": STRATEGY, "n_samples": 8, "seed": seed, "dpo": {**DPO, **dpo}}
    manifest = {"store": str(store), "config": config, "rounds": [{"policy": policy}], "evaluations": []}
    return Point(store, manifest)


def ends(*points: Point) -> tuple[list[dict[str, Any]], str]:
    """The row of each strategy, and what is told of the first."""
    found = training_dynamics.study(points, SETTINGS, "reward")
    return [dict(row) for row in found.tables["ends_over_seeds"]], found.beside[0].found


def test_an_unchanged_model_is_not_displaced_however_short_the_last_step_is(tmp_path: Path) -> None:
    """9 pairs of -10, ..., -90 nats in batches of 4 in another order each epoch, the last of one pair."""
    epochs = [[10, 20, 30, 40], [50, 60, 70, 80], [90], [90, 80, 70, 60], [50, 40, 30, 20], [10]]
    (row,), told = ends(trained(tmp_path, [{"logps/chosen": -float(np.mean(part))} for part in epochs], pairs=9))
    assert (row["chosen_shift"], row["rejected_shift"]) == (0, 0)
    assert row["logps/chosen"] == pytest.approx(-50)  # of all 9 alike; the mean of the steps is -40
    assert told.endswith("9 pairs, 2 held out, 6 steps, seed 0; one run, no interval")


def test_a_last_step_of_one_pair_counts_as_one_pair_and_the_shift_is_the_reward_over_beta(tmp_path: Path) -> None:
    last = [
        {"loss": 0.6, "rewards/chosen": -0.2, "rewards/rejected": -0.4},
        {"loss": 0.4, "rewards/chosen": -0.4, "rewards/rejected": -0.8},
        {"loss": 0.2, "rewards/chosen": 0.6, "rewards/rejected": 0.3},
    ]
    (row,), told = ends(trained(tmp_path, [{"loss": 9.0}] * 3 + last, pairs=9))
    assert row["loss"] == pytest.approx((4 * 0.6 + 4 * 0.4 + 0.2) / 9)
    assert row["chosen_shift"] == pytest.approx((4 * -0.2 + 4 * -0.4 + 0.6) / 9 / 0.1)
    assert row["rejected_shift"] == pytest.approx((4 * -0.4 + 4 * -0.8 + 0.3) / 9 / 0.1)
    assert "chosen log-probability -2.00 nats from the reference" in told


def test_one_epoch_has_a_shift_and_a_loss_without_a_reference_has_none(tmp_path: Path) -> None:
    rows = [{"rewards/chosen": 0.0}, {"rewards/chosen": -0.1}]
    (row,), _ = ends(trained(tmp_path, rows, pairs=8))
    assert row["chosen_shift"] == pytest.approx(-0.5)
    (row,), told = ends(trained(tmp_path, rows, pairs=8, loss="simpo"))
    assert row["chosen_shift"] is None
    assert "nats" not in told


def test_seeds_are_averaged_with_their_sd_and_interval(tmp_path: Path) -> None:
    points = [trained(tmp_path, [{"loss": loss}], pairs=4, seed=seed) for seed, loss in enumerate((0.3, 0.5, 0.7))]
    (row,), told = ends(*points)
    assert (row["loss"], row["loss_sd"], row["seeds"], row["pairs"]) == (0.5, pytest.approx(0.2), "0, 1, 2", 12)
    reach = 4.302653 * 0.2 / 3**0.5  # Student's t with two degrees of freedom
    assert (row["loss_low"], row["loss_high"]) == pytest.approx((0.5 - reach, 0.5 + reach), abs=1e-6)
    assert "loss 0.500 (95%: 0.003 to 0.997; sd 0.200)" in told
    assert told.endswith("12 pairs, 6 held out, 3 steps in all of 3 runs, seeds 0, 1, 2")
    assert [row["seed"] for row in training_dynamics.study(points, SETTINGS, "").tables["ends"]] == [0, 1, 2]


def test_runs_of_one_seed_that_differ_in_something_else_are_not_averaged(tmp_path: Path) -> None:
    points = [trained(tmp_path, [{"loss": 0.3}], 4, seed, learning_rate=1e-3) for seed in (0, 1)]
    points[1].manifest["config"]["seed"] = 0
    with pytest.raises(ValueError, match=r"differ in their seed alone, got \(max, min\), n = 8, seeds 0, 0"):
        ends(*points)
    points[1].manifest["config"]["dpo"]["beta"] = 0.2
    assert len(ends(*points)[0]) == 2


def test_seeds_of_another_recipe_are_named_and_not_averaged(tmp_path: Path) -> None:
    points = [trained(tmp_path, [{"loss": 0.3}], 4, seed, learning_rate=rate) for seed, rate in ((0, 1e-3), (1, 1e-5))]
    with pytest.raises(ValueError, match=r"got \(max, min\), n = 8, seeds 0, 1 with dpo.learning_rate 0.001 or 1e-05"):
        ends(*points)


SAMPLER = {
    "_target_": "sweetspot.sampler.TransformersSampler",
    **{"temperature": 1.0, "top_p": 1.0, "max_tokens": 4, "max_prompt_tokens": 4, "dtype": "float32", "seed": 0},
    **{"tile_prompts": 16, "tile_samples": 2, "pilot_samples": 2, "mean_samples": 8, "gain_threshold": 0.0},
    **{"tail": "normal", "batch_size": 1},
}
REWARD = np.array([[1.0] * 8, *([k + row for k in (2, 7, 1, 5, 3, 8, 4, 6)] for row in range(5))])  # [6 prompts, 8]


def budgets(folder: Path, uniform_n: int) -> tuple[Point, Point]:
    """An adaptive run of up to 8 samples a prompt, which all get but the first, whose rewards are equal and which has
    no pair; and a uniform one on its pool."""
    manifest = json.loads(reported.make_run(folder, "select", n_prompts=6, n=8).read_text())
    store, found = folder / "store", manifest["rounds"][0]
    ids = pq.read_table(store / found["samples"]["prompts"])["prompt_id"].to_pylist()
    tile = store / found["rewards"]["folder"] / "t-00000.parquet"
    tile.unlink()
    rows = [
        {"prompt_id": name, "sample_index": at, "reward": value}
        for name, values in zip(ids, REWARD, strict=True)
        for at, value in enumerate(values)
    ]
    write_tile(tile, pa.Table.from_pylist(rows, schema=REWARDS), {})
    best = zip(ids, REWARD.max(axis=1), strict=True)
    pairs = [{"prompt_id": name, "pair_index": 0, "chosen_reward": reward} for name, reward in best]
    pq.write_table(pa.Table.from_pylist(pairs[1:], schema=PAIRS), store / "own.parquet")

    def run(budget: str, n: int) -> Point:
        config = {"strategy": STRATEGY, "n_samples": n, "seed": 0, "sampler": {**SAMPLER, "budget": budget}}
        samples = {**found["samples"], "n_samples": n, "drawn": 2 + 5 * 8}
        turn = {**found, "samples": samples, "pairs": {**found["pairs"], "path": "own.parquet"}}
        return Point(folder, {**manifest, "config": config, "rounds": [turn]})

    return run("adaptive", 8), run("uniform", uniform_n)


def test_samples_are_counted_for_the_prompts_whose_rewards_are_compared(tmp_path: Path) -> None:
    adaptive, uniform = budgets(tmp_path, uniform_n=8)
    assert adaptive_budget.drawn(adaptive).tolist() == [2, 8, 8, 8, 8, 8]
    (row,) = adaptive_budget.study([adaptive, uniform], SETTINGS, "reward").tables["adaptive_budget"]
    assert (row["prompts"], row["drawn_mean"], row["chosen"]) == (5, 8, 10)  # all 42 samples over 6 prompts are 7
    assert (row["equal_n"], row["share"], row["beyond"]) == (8, 1, False)


def test_a_reward_that_the_uniform_run_does_not_reach_is_worth_its_n_or_more(tmp_path: Path) -> None:
    """A prompt has 2, 7, 1, 5, 3, 8, 4, 6 and 0 to 4 more: the best of the first 4 is 7 + 2 in the mean, that
    of all 8 + 2."""
    found = adaptive_budget.study(budgets(tmp_path, uniform_n=4), SETTINGS, "reward")
    (row,) = found.tables["adaptive_budget"]
    assert found.tables["uniform_curve"][-1]["chosen"] == pytest.approx(7 + 2)
    assert (row["equal_n"], row["equal_n_low"], row["uniform_n"], row["beyond"]) == (4, 4, 4, True)
    assert found.beside[0].found == (
        "8.0 a prompt do as >= 4.0 of uniform n (95%: >= 4.0 to >= 4.0; 5 prompts): <= 200% (95%: <= 200% to <= 200%)"
    )
