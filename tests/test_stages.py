"""Stages on hand-made tiles: rows join by (prompt_id, sample_index), and keys hold all that decides a result."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sweetspot.component import build
from sweetspot.dpo import DPO, DeepSpeed
from sweetspot.launch import Launch
from sweetspot.model import Model
from sweetspot.sampler import Tile
from sweetspot.schema import PROMPTS, REWARDS, SAMPLES, prompt_id
from sweetspot.stages import Rewards, Run, Samples, select, train
from sweetspot.stages.policy import logprob_key
from sweetspot.store import Store, write_tile
from sweetspot.strategy import PositionPair

TEXTS = ["one", "long", "three"]
TURNS = [[{"role": "user", "content": text}] for text in TEXTS]
IDS = [prompt_id(turn) for turn in TURNS]


class Kept:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Keep the row."""
        self.rows.append(metrics)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Nothing is left to do."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Store(tmp_path / "store"), tmp_path, Launch(threads=1), Kept(), remake_corrupt=False)


@pytest.fixture
def rewards(tmp_path: Path, tiny_model: Model) -> Rewards:
    """Three prompts x 3 samples in two tiles written in reverse order; the second prompt was set aside as too long."""
    prompts = pa.Table.from_pylist(
        [{"prompt_id": name, "messages": turn, "source": "test"} for name, turn in zip(IDS, TURNS, strict=True)],
        schema=PROMPTS,
    )
    pool, scored = tmp_path / "pool", tmp_path / "rewards"
    tiles = [Tile("a", 0, 2, 0, 3), Tile("b", 2, 3, 0, 3)]
    for tile, row, values in ((tiles[0], 0, [0.5, 3.0, 1.0]), (tiles[1], 2, [2.0, -1.0, 0.0])):
        places = [{"prompt_id": IDS[row], "sample_index": index} for index in (2, 1, 0)]
        samples = [
            {**place, "response": f"{TEXTS[row]}-{place['sample_index']}", "token_ids": [5, 2]} for place in places
        ]
        facts = {"set_aside": {IDS[1]: 900} if row == 0 else {}}
        write_tile(pool / f"{tile.name}.parquet", pa.Table.from_pylist(samples, schema=SAMPLES), facts)
        worth = [{**place, "reward": values[place["sample_index"]]} for place in places]
        write_tile(scored / f"{tile.name}.parquet", pa.Table.from_pylist(worth, schema=REWARDS), {})
    samples = Samples("pool", pool, prompts, tmp_path / "prompts.parquet", tiles, 3, tiny_model)
    return Rewards("rewards", scored, samples)


def test_the_reward_matrix_has_nan_where_a_prompt_was_set_aside(rewards: Rewards) -> None:
    expected = np.array([[0.5, 3.0, 1.0], [np.nan] * 3, [2.0, -1.0, 0.0]], dtype=np.float32)
    np.testing.assert_array_equal(rewards.matrix(), expected)
    assert rewards.samples.set_aside() == {IDS[1]: 900}


def test_a_smaller_n_reads_the_first_columns(rewards: Rewards) -> None:
    two = dataclasses.replace(rewards, samples=dataclasses.replace(rewards.samples, n_samples=2))
    np.testing.assert_array_equal(two.matrix()[[0, 2]], [[0.5, 3.0], [2.0, -1.0]])


def test_pairs_join_their_own_responses_with_an_over_long_prompt_in_between(rewards: Rewards, run: Run) -> None:
    pairs = select(rewards, PositionPair(chosen="max", rejected="min"), run)
    rows = pairs.table.to_pylist()
    assert [(row["prompt_id"], row["chosen"], row["rejected"]) for row in rows] == [
        (IDS[0], "one-1", "one-0"),
        (IDS[2], "three-0", "three-1"),
    ]
    assert rows[0]["messages"] == TURNS[0]
    assert pairs.dropped["too_few"] == [IDS[1]]
    # 0.5, 3, 1: mean 1.5, sd sqrt((1 + 2.25 + 0.25) / 2) = sqrt(1.75)
    assert rows[0]["chosen_z"] == pytest.approx(1.5 / math.sqrt(1.75))
    assert rows[0]["rejected_z"] == pytest.approx(-1.0 / math.sqrt(1.75))


def test_training_without_a_pair_says_why_there_is_none(rewards: Rewards, run: Run, tiny_model: Model) -> None:
    pairs = select(rewards, PositionPair(chosen="mu+4sigma", rejected="mu+3sigma"), run)
    dpo, deepspeed = build(DPO_CONFIG), DeepSpeed(stage=0)
    with pytest.raises(ValueError, match="no pair is left of 3 prompts") as refused:
        train(pairs, tiny_model, tiny_model, dpo, deepspeed, {}, run)
    assert "too_few 1, same_response 2" in str(refused.value)
    assert "1 of them were set aside as longer than sampler.max_prompt_tokens" in str(refused.value)


def test_the_same_selection_is_reused_and_another_strategy_is_not(rewards: Rewards, run: Run) -> None:
    first = select(rewards, PositionPair(chosen="max", rejected="min"), run)
    again = select(rewards, PositionPair(chosen="max", rejected="min"), run)
    other = select(rewards, PositionPair(chosen="random", rejected="random"), run)
    assert again.key == first.key != other.key
    assert [stage.made for stage in run.stages] == [1, 0, 1]


DPO_CONFIG = {
    "_target_": "sweetspot.dpo.DPO",
    "beta": 0.1,
    "learning_rate": 1e-5,
    "schedule": "linear",
    "warmup_ratio": 0.1,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "epochs": 1,
    "batch_size": 4,
    "max_tokens": 64,
    "max_prompt_tokens": 32,
    "dtype": "float32",
    "autocast": None,
    "seed": 0,
    "reference": "previous",
    "device_batch_size": 4,
    "reference_batch_tokens": 256,
    "gradient_checkpointing": False,
    "save_every": 4,
    "save_total_limit": 1,
}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"beta": 0.5, "learning_rate": 1e-4, "epochs": 3, "seed": 7}, True),
        ({"reference_batch_tokens": 999}, True),
        ({"autocast": "bfloat16"}, False),
        ({"max_prompt_tokens": 16}, False),
        ({"max_tokens": 48}, False),
    ],
)
def test_reference_rows_are_shared_unless_numerics_or_truncation_change(
    tiny_model: Model, change: dict[str, Any], same: bool
) -> None:
    dpo: DPO = build(DPO_CONFIG)
    other: DPO = build({**DPO_CONFIG, **change})
    assert (logprob_key(tiny_model, dpo, "pool") == logprob_key(tiny_model, other, "pool")) is same


def test_reference_rows_are_stale_when_model_template_or_pool_change(
    tiny_model: Model, tiny_policy: Path, tmp_path: Path
) -> None:
    dpo: DPO = build(DPO_CONFIG)
    kept = logprob_key(tiny_model, dpo, "pool")
    assert logprob_key(tiny_model, dpo, "another pool") != kept
    assert logprob_key(dataclasses.replace(tiny_model, system_prompt="Be brief."), dpo, "pool") != kept
    for name in ("model.safetensors", "chat_template.jinja"):
        folder = tmp_path / name
        folder.mkdir()
        for file in tiny_policy.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        assert logprob_key(tiny_model.at(folder), dpo, "pool") == kept
        (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
        assert logprob_key(tiny_model.at(folder), dpo, "pool") != kept
