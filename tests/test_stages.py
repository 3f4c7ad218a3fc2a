"""Stages on hand-made tiles: rows join by (prompt_id, sample_index), and keys hold all that decides a result."""

import dataclasses
import json
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sweetspot.component import build, to_config
from sweetspot.dpo import DPO
from sweetspot.logger import Logs
from sweetspot.model import Model, Probe, load_tokenizer
from sweetspot.reward_model import SequenceClassifier
from sweetspot.schema import PROMPTS, REWARDS, SAMPLES, prompt_id
from sweetspot.stages import Rewards, Run, Samples, sample, score, select, train
from sweetspot.stages.pool import rows_at
from sweetspot.stages.prepare import make_once
from sweetspot.stages.reference import log_probabilities, logprob_key, sampler_error
from sweetspot.store import Store, read_tile, write_tile
from sweetspot.strategy import PositionPair, Selection, paper_pairs
from sweetspot.tile import Tile
from tests import tiny
from tests.test_sampler import TRANSFORMERS

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


def kept(run: Run) -> list[Mapping[str, Any]]:
    """What the run has logged."""
    sink = run.log.sinks["kept"]
    assert isinstance(sink, Kept)
    return sink.rows


def steps(run: Run) -> list[int]:
    return [row["step"] for row in kept(run) if "step" in row]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(
        Store(tmp_path / "store"),
        tmp_path,
        tiny.launch(threads=1, devices=None, lease_seconds=60),
        Logs({"kept": Kept()}, folder=tmp_path),
        remake_corrupt=False,
    )


@pytest.fixture
def rewards(tmp_path: Path, tiny_model: Model) -> Rewards:
    """Three prompts x 3 samples in two tiles written in reverse order; the second prompt was set aside as too long."""
    prompts = pa.Table.from_pylist(
        [{"prompt_id": name, "messages": turn, "source": "test"} for name, turn in zip(IDS, TURNS, strict=True)],
        schema=PROMPTS,
    )
    pool, scored = tmp_path / "pool", tmp_path / "rewards"
    tiles = [Tile("a", range(2), 0, 3), Tile("b", range(2, 3), 0, 3)]
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
    return Rewards("rewards", scored, samples, tiles)


def test_the_reward_matrix_has_nan_where_a_prompt_was_set_aside(rewards: Rewards) -> None:
    expected = np.array([[0.5, 3.0, 1.0], [np.nan] * 3, [2.0, -1.0, 0.0]], dtype=np.float32)
    np.testing.assert_array_equal(rewards.matrix(), expected)
    assert rewards.samples.set_aside() == {IDS[1]: 900}


def test_a_smaller_n_reads_the_first_columns(rewards: Rewards) -> None:
    two = dataclasses.replace(rewards, samples=dataclasses.replace(rewards.samples, n_samples=2))
    np.testing.assert_array_equal(two.matrix()[[0, 2]], [[0.5, 3.0], [2.0, -1.0]])


def test_pairs_join_their_own_responses_with_an_over_long_prompt_in_between(rewards: Rewards, run: Run) -> None:
    pairs = select(rewards, PositionPair(chosen="max", rejected="min"), False, run)
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
    pairs = select(rewards, PositionPair(chosen="mu+4sigma", rejected="mu+3sigma"), False, run)
    dpo, deepspeed = build(DPO_CONFIG), tiny.deepspeed()
    with pytest.raises(ValueError, match="no pair is left of 3 prompts") as refused:
        train(pairs, tiny_model, tiny_model, dpo, deepspeed, {}, run)
    assert "too_few 1, same_response 2" in str(refused.value)
    assert "1 of them were set aside as longer than sampler.max_prompt_tokens" in str(refused.value)


def test_the_same_selection_is_reused_and_another_strategy_is_not(rewards: Rewards, run: Run) -> None:
    first = select(rewards, PositionPair(chosen="max", rejected="min"), False, run)
    again = select(rewards, PositionPair(chosen="max", rejected="min"), False, run)
    other = select(rewards, PositionPair(chosen="random", rejected="random"), False, run)
    assert again.key == first.key != other.key
    assert [stage.made for stage in run.stages] == [1, 0, 1]


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A strategy of somebody's own that gives what it was told to."""

    pairs: list[list[int]]

    def __call__(self, rewards: Any) -> Selection:
        """The pairs."""
        return Selection(*self.pairs, {"left": [len(rewards) - 1]})  # pyright: ignore


@pytest.mark.parametrize(
    ("pairs", "line"),
    [
        ([[0, 2], [1, 3], [0, 1]], "strategy: Fixed must choose scored responses, got response 3 of prompt 2"),
        ([[0, 1], [1, 1], [0, 0]], "strategy: Fixed must choose scored responses, got response 1 of prompt 1"),
        ([[0, 3], [1, 1], [0, 0]], "strategy: Fixed must choose scored responses, got response 1 of prompt 3"),
        ([[0, 2], [1, 0], [0, 0]], "strategy: Fixed must choose two responses, got one twice for prompt 2"),
        ([[0, 2], [1], [0, 1]], "strategy: Fixed must give prompt, chosen and rejected as three lists of one length"),
    ],
)
def test_a_selection_that_names_what_is_not_there_is_refused_in_one_line(
    rewards: Rewards, run: Run, pairs: list[list[int]], line: str
) -> None:
    with pytest.raises(ValueError) as refused:
        select(rewards, Fixed(pairs), False, run)
    assert str(refused.value) == line


def test_a_strategy_may_give_a_prompt_several_pairs_or_none_at_all(rewards: Rewards, run: Run) -> None:
    several = select(rewards, Fixed([[0, 0], [1, 2], [0, 0]]), False, run)
    places = [(row["pair_index"], row["chosen"], row["rejected"]) for row in several.table.to_pylist()]
    assert places == [(0, "one-1", "one-0"), (1, "one-2", "one-0")]
    none = select(rewards, Fixed([[], [], []]), False, run)
    assert (none.table.num_rows, none.dropped) == (0, {"left": [IDS[2]]})


def test_later_copies_of_a_response_count_as_not_scored_where_asked(rewards: Rewards, run: Run) -> None:
    tile = rewards.samples.path(rewards.samples.tiles[0])
    table = read_tile(tile, SAMPLES)[0]
    tile.unlink()  # the second response of the first prompt, its best, becomes a copy of the first
    said = ["one-0" if text == "one-1" else text for text in table["response"].to_pylist()]
    write_tile(tile, table.set_column(2, SAMPLES.field("response"), pa.array(said)), {"set_aside": {}})
    kept = select(rewards, PositionPair(chosen="max", rejected="min"), False, run)
    without = select(rewards, PositionPair(chosen="max", rejected="min"), True, run)
    assert (kept.ignored, without.ignored) == (0, 1)
    assert kept.key != without.key
    assert kept.table["chosen_index"].to_pylist() == [1, 0]
    assert without.table["chosen_index"].to_pylist() == [2, 0]  # 0.5, NaN, 1: the best that is left
    assert without.table["chosen_z"].to_pylist()[0] == pytest.approx(math.sqrt(0.5))


DPO_CONFIG = to_config(tiny.dpo(dtype="float32", max_tokens=64, max_prompt_tokens=32))


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


def probed(rewards: Rewards, model: Model) -> None:
    """The pool gets the probe of the model that would have sampled it."""
    probe = dataclasses.asdict(Probe.of(model, load_tokenizer(model)))
    (rewards.samples.folder / "probe.json").write_text(json.dumps(probe))


@pytest.mark.slow
def test_a_reference_free_loss_computes_no_reference_and_keeps_none_in_its_key(
    rewards: Rewards, run: Run, tiny_model: Model, tmp_path: Path
) -> None:
    probed(rewards, tiny_model)
    pairs = select(rewards, PositionPair(chosen="max", rejected="min"), False, run)
    settings = tiny.dpo(loss="simpo", gamma=0.5, epochs=1)
    other = tiny_model.at(tiny.save_policy(tmp_path / "other", seed=5))
    made = [train(pairs, tiny_model, model, settings, tiny.deepspeed(), {}, run) for model in (tiny_model, other)]
    assert [(stage.name, stage.made) for stage in run.stages] == [("select", 1), ("train", 1), ("train", 0)]
    assert made[0].key == made[1].key
    assert not (run.store.root / "logprobs").exists()
    assert made[0].history[0]["rewards/chosen"] < 0
    assert steps(run) == [row["step"] for row in made[0].history] != []
    other_run = dataclasses.replace(run, folder=tmp_path / "other run", log=Logs({"kept": Kept()}), stages=[], began=[])
    reused = train(pairs, tiny_model, tiny_model, settings, tiny.deepspeed(), {}, other_run)
    assert [stage.made for stage in other_run.stages] == [0]
    assert [row for row in kept(other_run) if "step" in row] == reused.history == made[0].history


@pytest.mark.slow
def test_each_round_of_a_run_has_the_log_probabilities_of_its_own_responses(
    rewards: Rewards, run: Run, tiny_model: Model, tmp_path: Path
) -> None:
    """A run asks for them once a round, under one title: the second must not get those that the first asked for."""
    probed(rewards, tiny_model)
    dpo, first = build(DPO_CONFIG), rewards.samples.prompt_ids[0]
    other = tiny_model.at(tiny.save_policy(tmp_path / "other", seed=5))
    for model, index in ((tiny_model, 0), (other, 1)):
        places = {(first, index)}
        assert log_probabilities(rewards.samples, places, model, dpo, run, "reference").keys() == places


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


def test_the_error_of_sampled_log_probabilities_is_told_in_nats_a_response() -> None:
    """Differences -0.5, 0.25 and 0."""
    found = sampler_error([(-10.5, -10.0), (-3.75, -4.0), (-1.0, -1.0)])
    assert found == {"responses": 3, "mean": pytest.approx(-0.25 / 3), "mean_absolute": 0.25, "largest": 0.5}
    assert sampler_error([])["responses"] == 0


def test_a_pool_without_log_probabilities_is_no_sampled_reference(
    rewards: Rewards, run: Run, tiny_model: Model
) -> None:
    pairs = select(rewards, PositionPair(chosen="max", rejected="min"), False, run)
    with pytest.raises(ValueError, match=r"dpo\.reference must be recompute .* got sampler: 4 responses have none"):
        train(pairs, tiny_model, tiny_model, tiny.dpo(reference="sampler"), tiny.deepspeed(), {}, run)


def test_the_seconds_of_a_stage_are_its_own_so_that_the_table_adds_up(run: Run) -> None:
    now = time.monotonic()
    run.did("before", "tiles", 1, 0, now - 100)  # 100 s, begun before the outer stage
    run.did("inner", "tiles", 1, 0, now - 30)
    run.did("outer", "evaluations", 1, 0, now - 50)
    assert [round(stage.seconds) for stage in run.stages] == [100, 30, 20]


@pytest.mark.slow
def test_a_sweep_of_every_n_and_pair_samples_its_largest_n_once_and_nothing_the_second_time(
    run: Run, tiny_model: Model, tiny_reward: Path
) -> None:
    """n = 2, 4, 6 x 21 pairs on 4 prompts: 6 samples a prompt are drawn and scored, where fresh pools take 12."""
    sampler, prompts = replace(TRANSFORMERS, tile_prompts=4, tile_samples=2), asked(range(4))
    reward_model = SequenceClassifier(
        path=str(tiny_reward),
        revision=None,
        dtype="float32",
        max_tokens=128,
        trust_remote_code=False,
        batch_tokens=512,
    )
    made: list[dict[str, int]] = []
    for _ in range(2):
        run.stages.clear(), run.began.clear()
        for n in (2, 4, 6):
            rewards = score(sample(prompts, tiny_model, sampler, n, run), reward_model, run)
            for chosen, rejected in paper_pairs():
                select(rewards, PositionPair(chosen=chosen, rejected=rejected), False, run)
        names = {stage.name for stage in run.stages}
        made.append({name: sum(stage.made for stage in run.stages if stage.name == name) for name in names})
    assert made == [{"sample": 3, "score": 3, "select": 63}, {"sample": 0, "score": 0, "select": 0}]
    (pool,) = (run.store.root / "samples").iterdir()
    assert sum(read_tile(tile, SAMPLES)[0].num_rows for tile in pool.glob("*.parquet")) == 4 * 6


def asked(numbers: range) -> pa.Table:
    turns = [[{"role": "user", "content": f"Say {number} in other words."}] for number in numbers]
    rows = [{"prompt_id": prompt_id(turn), "messages": turn, "source": "test"} for turn in turns]
    return pa.Table.from_pylist(rows, schema=PROMPTS)


@pytest.mark.slow
def test_overlapping_prompt_sets_and_uneven_blocks_share_one_pool(
    run: Run, tiny_model: Model, tiny_reward: Path
) -> None:
    """Prompts 0-3, then 2-5: of the second set only 4 and 5 are sampled, and each sample is scored once."""
    sampler = replace(TRANSFORMERS, tile_prompts=4)
    reward_model = SequenceClassifier(
        path=str(tiny_reward),
        revision=None,
        dtype="float32",
        max_tokens=128,
        trust_remote_code=False,
        batch_tokens=512,
    )
    first, second = asked(range(4)), asked(range(2, 6))
    a = sample(first, tiny_model, sampler, 4, run)
    b = sample(second, tiny_model, sampler, 4, run)
    assert [list(tile.rows) for tile in b.tiles] == [[0, 1], [2, 3]]
    assert b.read().num_rows == 16
    of_b = score(b, reward_model, run).matrix()
    of_a = score(a, reward_model, run).matrix()
    assert np.isfinite(of_a).all() and np.isfinite(of_b).all()
    np.testing.assert_array_equal(of_a[2:], of_b[:2])

    uneven = sample(first, tiny_model, sampler, 8, run, blocks=np.array([1, 2, 1, 2]))
    matrix = score(uneven, reward_model, run).matrix()
    assert np.isfinite(matrix).sum(axis=1).tolist() == [4, 8, 4, 8]
    np.testing.assert_array_equal(matrix[:, :4], of_a)
    even = sample(first, tiny_model, sampler, 8, run)
    assert np.isfinite(score(even, reward_model, run).matrix()).all()
    assert [(stage.name, stage.made) for stage in run.stages] == [
        ("sample", 1),  # 0-3
        ("sample", 1),  # 4, 5
        ("score", 2),  # 2, 3 and 4, 5
        ("score", 1),  # 0, 1
        ("sample", 1),  # the second block of 1 and 3
        ("score", 1),
        ("sample", 1),  # of 0 and 2
        ("score", 1),
    ]
    texts = {(row["prompt_id"], row["sample_index"]): row["response"] for row in even.read().to_pylist()}
    wanted = {(name, index) for name in even.prompt_ids[:2] for index in (0, 5)}
    assert {place: row["response"] for place, row in rows_at(even, wanted, ["response"]).items()} == {
        place: texts[place] for place in wanted
    }


def test_a_model_that_two_runs_want_is_made_by_one_and_awaited_by_the_other(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, begun, go_on = run.store.folder("models", "m"), threading.Event(), threading.Event()
    run.launch = replace(run.launch, lease_seconds=3)
    made: list[bool] = []

    def make() -> None:
        begun.set()
        assert go_on.wait(60)
        folder.mkdir()

    first, second = (threading.Thread(target=lambda: made.append(make_once(folder, make, run))) for _ in range(2))
    first.start()
    assert begun.wait(60)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    go_on.set()
    first.join(60)
    second.join(60)
    assert sorted(made) == [False, True]
    assert "waiting for" in capsys.readouterr().err
    assert not list(folder.parent.glob(".*lease*"))


def test_a_model_that_could_not_be_made_is_free_for_the_next_run(run: Run) -> None:
    folder = run.store.folder("models", "m")

    def fail() -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        make_once(folder, fail, run)
    assert make_once(folder, folder.mkdir, run)
    assert not make_once(folder, fail, run)
