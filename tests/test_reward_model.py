"""Reward models: the numbers do not depend on how they are computed, and faults are named."""

import json
import random
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sweetspot.component import key, to_config
from sweetspot.model import Model, Probe, TemplateError, load_tokenizer, prompt_ids
from sweetspot.reward_model import (
    Conversation,
    EmbeddedReward,
    RewardModel,
    Scores,
    SequenceClassifier,
    batches,
    shorten,
)
from sweetspot.schema import PROMPTS, REWARDS, SAMPLES, prompt_id
from sweetspot.store import read_tile, write_tile
from tests import tiny

torch = pytest.importorskip("torch")

from sweetspot.reward_model import worker  # noqa: E402 - needs torch
from sweetspot.reward_model.embedded import Backbone, EmbeddedScorer, Head, read_head  # noqa: E402

ASKED = ["Why do cats sleep?", "Write a note to a friend about the rain.", "A good garden?", "Hi"]


def silent(told: object) -> None:
    del told


def classifier(folder: Path, **changes: Any) -> SequenceClassifier:
    settings: dict[str, Any] = {
        "path": str(folder),
        "revision": None,
        "dtype": "float32",
        "max_tokens": 400,
        "trust_remote_code": False,
        "batch_tokens": 600,
    }
    return SequenceClassifier(**{**settings, **changes})


def copy_of(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def answered(n: int) -> list[Conversation]:
    """n conversations of mixed length, several to a prompt, with a system prompt and earlier turns here and there."""
    draw = random.Random(0)
    words = " ".join(tiny.TEXT).split()
    found: list[Conversation] = []
    for number in range(n):
        messages = [{"role": "user", "content": ASKED[number % 4]}]
        if number % 4 == 2:
            messages = [{"role": "system", "content": "Be kind."}, *messages, {"role": "assistant", "content": "Yes."}]
            messages.append({"role": "user", "content": "And then?"})
        found.append(Conversation(messages, " ".join(draw.choices(words, k=draw.randrange(1, 30))), None))
    return found


def tiny_scorer(model: Model, batch_tokens: int = 600, max_tokens: int = 400) -> EmbeddedScorer:
    weight = np.random.default_rng(0).normal(size=(2, 64)) / 16
    return EmbeddedScorer(Backbone(model, [1, 2], "float32", batch_tokens), Head([1, 2], weight, 0.5), max_tokens)


def test_batches_take_the_longest_first_and_count_padding() -> None:
    assert list(batches([3, 10, 4, 9, 1], batch_tokens=20)) == [[1, 3], [2, 0, 4]]
    assert list(batches([30, 2], batch_tokens=20)) == [[0], [1]]
    assert list(batches([], batch_tokens=20)) == []


def test_a_long_prompt_loses_what_follows_its_first_token_and_the_response_stays_whole() -> None:
    assert shorten([1, 2, 3, 4], [5, 6], max_tokens=6) == ([1, 2, 3, 4], [5, 6])
    assert shorten([1, 2, 3, 4], [5, 6], max_tokens=4) == ([1, 4], [5, 6])
    assert shorten([1, 2], [5, 6, 7, 8], max_tokens=3) == ([1], [7, 8])


def test_features_are_the_means_of_the_hidden_states_of_each_row_alone(tiny_model: Model) -> None:
    from transformers import AutoModelForCausalLM

    backbone = Backbone(tiny_model, [1, 2], "float32", 600)
    rows = [backbone.ids(conversation) for conversation in answered(23)]
    features = backbone.features(rows, ["row"] * len(rows), silent)
    network = AutoModelForCausalLM.from_pretrained(tiny_model.path, dtype=torch.float32).eval()
    network.model.norm = torch.nn.Identity()
    for (prompt, response), found in zip(rows, features, strict=True):
        with torch.inference_mode():
            states = network(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states
        for place, layer in enumerate((1, 2)):
            np.testing.assert_allclose(found[place], states[layer][0, len(prompt) :].mean(0), atol=2e-5)


def test_embedded_rewards_are_the_same_in_batches_of_1_to_17_and_in_any_order(tiny_model: Model) -> None:
    conversations = answered(17)
    rows = tiny_scorer(tiny_model)
    alone = np.array([rows([conversation], silent).rewards[0] for conversation in conversations])
    assert np.ptp(alone) > 0.1
    for size in range(1, 18):
        np.testing.assert_allclose(rows(conversations[:size], silent).rewards, alone[:size], atol=1e-5)
    for batch_tokens in (1, 150, 10_000):
        scorer = tiny_scorer(tiny_model, batch_tokens)
        np.testing.assert_allclose(scorer(conversations, silent).rewards, alone, atol=1e-5)
        np.testing.assert_allclose(scorer(conversations[::-1], silent).rewards[::-1], alone, atol=1e-5)


def test_classifier_rewards_are_the_logits_of_each_conversation_alone(tiny_reward: Path, tiny_model: Model) -> None:
    from transformers import AutoModelForSequenceClassification

    conversations = answered(17)
    scorer = classifier(tiny_reward).scorer()
    network = AutoModelForSequenceClassification.from_pretrained(tiny_reward, dtype=torch.float32).eval()
    found = scorer(conversations, silent)
    assert found.rewards.dtype == np.float32 and found.heads is None and found.truncated == 0
    for conversation, reward in zip(conversations, found.rewards, strict=True):
        turns = [*conversation.messages, {"role": "assistant", "content": conversation.response}]
        ids = load_tokenizer(tiny_model).apply_chat_template(turns, return_dict=False)
        with torch.inference_mode():
            assert network(torch.tensor([ids])).logits.item() == pytest.approx(reward, abs=1e-5)


@pytest.mark.parametrize("pad", ["of the tokenizer", "none"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_classifier_rewards_do_not_depend_on_batch_order_or_padding(
    side: str, pad: str, tiny_reward: Path, tmp_path: Path
) -> None:
    conversations = answered(17)
    alone = classifier(tiny_reward, batch_tokens=1).scorer()(conversations, silent).rewards
    assert np.ptp(alone) > 0.1
    folder = copy_of(tiny_reward, tmp_path / "reward")
    edit(folder / "tokenizer_config.json", padding_side=side)
    if pad == "none":
        edit(folder / "config.json", pad_token_id=None)
    scorer = classifier(folder, batch_tokens=10_000).scorer()
    for size in range(1, 18):
        np.testing.assert_allclose(scorer(conversations[:size], silent).rewards, alone[:size], atol=1e-5)
    np.testing.assert_allclose(scorer(conversations[::-1], silent).rewards[::-1], alone, atol=1e-5)


def test_bfloat16_rewards_agree_loosely_whatever_the_batch(tiny_reward: Path) -> None:
    conversations = answered(9)
    alone = classifier(tiny_reward, dtype="bfloat16", batch_tokens=1).scorer()(conversations, silent).rewards
    together = classifier(tiny_reward, dtype="bfloat16", batch_tokens=9999).scorer()(conversations, silent).rewards
    np.testing.assert_allclose(together, alone, atol=0.05 * float(np.ptp(alone)))


def test_what_was_sampled_is_what_is_scored_end_of_turn_included(tiny_model: Model) -> None:
    backbone = Backbone(tiny_model, [1], "float32", 600)
    messages = [{"role": "user", "content": "Hi"}]
    letters = [backbone.tokenizer.convert_tokens_to_ids(letter) for letter in "rain"]
    whole = backbone.tokenizer("rain")["input_ids"]
    assert whole != letters  # the sampler may write a word in other tokens than the tokenizer would
    prompt, response = backbone.ids(Conversation(messages, "rain", [*letters, 2]))
    assert prompt == prompt_ids(tiny_model, backbone.tokenizer, messages) and response == [*letters, 2]
    assert backbone.ids(Conversation(messages, "rain", None)) == (prompt, [*whole, 2])


def test_a_conversation_that_is_too_long_is_shortened_and_counted(tiny_model: Model, tiny_reward: Path) -> None:
    long = Conversation([{"role": "user", "content": "rain " * 60}], "Yes.", None)
    short = Conversation([{"role": "user", "content": "Hi"}], "Yes.", None)
    for scorer in (tiny_scorer(tiny_model, max_tokens=40), classifier(tiny_reward, max_tokens=40).scorer()):
        scores = scorer([long, short], silent)
        assert scores.truncated == 1 and np.isfinite(scores.rewards).all()


def test_a_classifier_that_cannot_give_one_trained_reward_is_refused(
    tiny_reward: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    two = copy_of(tiny_reward, tmp_path / "two")
    edit(two / "config.json", id2label={"0": "bad", "1": "good"}, label2id={"bad": 0, "good": 1})
    with pytest.raises(ValueError, match=r"reward_model\.path must be a classifier with one logit, .* has 2"):
        classifier(two).scorer()
    untrained = copy_of(tiny_policy, tmp_path / "untrained")
    edit(untrained / "config.json", id2label={"0": "reward"}, label2id={"reward": 0})
    with pytest.raises(ValueError, match=r"must hold a whole trained classifier, .* lacks score\.weight"):
        classifier(untrained).scorer()
    mute = copy_of(tiny_reward, tmp_path / "mute")
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="chat template"):
        classifier(mute).scorer()


def test_a_template_that_doubles_the_bos_is_refused(tiny_reward: Path, tmp_path: Path) -> None:
    doubled = copy_of(tiny_reward, tmp_path / "doubled")
    (doubled / "chat_template.jinja").write_text("{{ bos_token }}" + tiny.CHATML)
    with pytest.raises(ValueError, match="two BOS"):
        classifier(doubled).scorer()(answered(1), silent)


def test_a_backbone_that_does_not_fit_the_heads_is_refused(tiny_model: Model) -> None:
    reward_model = EmbeddedReward(head="select", backbone=tiny_model, max_tokens=64, dtype="float32", batch_tokens=256)
    with pytest.raises(ValueError, match=r"reward_model\.backbone must be the model of the heads"):
        reward_model.scorer()


def test_the_key_of_a_reward_model_is_its_content_and_not_its_place_or_speed(
    tiny_reward: Path, tiny_model: Model, tmp_path: Path
) -> None:
    here = classifier(tiny_reward)
    assert isinstance(here, RewardModel)
    assert key(here) == key(classifier(copy_of(tiny_reward, tmp_path / "moved"), batch_tokens=7))
    assert key(here) != key(classifier(tiny_reward, max_tokens=399))
    select = EmbeddedReward(head="select", backbone=tiny_model, max_tokens=64, dtype="float32", batch_tokens=256)
    assert key(select) == key(replace(select, batch_tokens=1))
    assert key(select) != key(replace(select, head="gold"))
    assert key(select) != key(replace(select, backbone=tiny_model.at(tiny_reward)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_names_its_sample(bad: float) -> None:
    rows = [{"prompt_id": "aa", "sample_index": 0}, {"prompt_id": "bb", "sample_index": 7}]
    scores = Scores(np.array([0.5, bad], dtype=np.float32), None, 0)
    with pytest.raises(ValueError, match=r"must be finite, got .* for prompt_id bb, sample_index 7"):
        worker.rewards_table(rows, scores)
    with pytest.raises(ValueError, match="prompt_id aa, sample_index 0"):
        worker.rewards_table(rows, Scores(np.zeros(2, np.float32), np.array([[1, bad], [0, 0]], np.float32), 0))


def test_several_objectives_are_kept_beside_the_reward() -> None:
    rows = [{"prompt_id": "aa", "sample_index": 0}]
    table = worker.rewards_table(rows, Scores(np.array([0.5], np.float32), np.array([[1, 2]], np.float32), 0))
    assert table.to_pylist() == [{"prompt_id": "aa", "sample_index": 0, "reward": 0.5, "heads": [1.0, 2.0]}]


def pool(model: Model, folder: Path, n: int = 3) -> tuple[Path, list[dict[str, Any]]]:
    """Two prompts with n samples each, in two tiles of samples; returns the prompts file and the tiles."""
    tokenizer = load_tokenizer(model)
    conversations = [[{"role": "user", "content": text}] for text in ASKED[:2]]
    prompts = [{"prompt_id": prompt_id(turns), "messages": turns, "source": "test"} for turns in conversations]
    write_tile(folder / "prompts.parquet", pa.Table.from_pylist(prompts, schema=PROMPTS), {})
    tiles: list[dict[str, Any]] = []
    for number, prompt in enumerate(prompts):
        rows: list[dict[str, Any]] = []
        for index in range(n):
            text = " ".join(tiny.TEXT[: index + 1])
            ids = [*tokenizer(text)["input_ids"], 2]
            rows.append({"prompt_id": prompt["prompt_id"], "sample_index": index, "response": text, "token_ids": ids})
            rows[-1] |= {"n_tokens": len(ids), "finish_reason": "stop", "seed": index, "logprob": -1.0}
        path = folder / "samples" / f"tile{number}.parquet"
        write_tile(path, pa.Table.from_pylist(rows, schema=SAMPLES), {})
        rewards = folder / "rewards" / f"tile{number}.parquet"
        tiles.append({"samples": str(path), "rewards": str(rewards), "prompt_ids": None})
    return folder / "prompts.parquet", tiles


def test_the_worker_scores_the_missing_tiles_row_by_row_and_leaves_the_others(
    tiny_model: Model, tiny_reward: Path, tmp_path: Path
) -> None:
    prompts, tiles = pool(tiny_model, tmp_path)
    probe = asdict(Probe.of(tiny_model, load_tokenizer(tiny_model)))
    job: dict[str, Any] = {
        "reward_model": to_config(classifier(tiny_reward)),
        "model": to_config(tiny_model),
        "probe": probe,
        "prompts": str(prompts),
        "tiles": tiles,
        "lease_seconds": 60,
    }
    events: list[dict[str, Any]] = []
    worker.main(job, events.append)
    table, facts = read_tile(Path(tiles[1]["rewards"]), REWARDS)
    samples = read_tile(Path(tiles[1]["samples"]), SAMPLES)[0]
    assert table.select(["prompt_id", "sample_index"]).equals(samples.select(["prompt_id", "sample_index"]))
    turns = [{"role": "user", "content": ASKED[1]}]
    expected = classifier(tiny_reward).scorer()(
        [Conversation(turns, text, None) for text in samples["response"].to_pylist()], silent
    )
    np.testing.assert_allclose(table["reward"].to_numpy(), expected.rewards, atol=1e-5)
    assert facts == {"truncated": 0}
    assert events[-1]["progress"]["done"] == events[-1]["progress"]["total"] == 6

    before = Path(tiles[0]["rewards"]).read_bytes()
    Path(tiles[1]["rewards"]).unlink()
    worker.main(job, events.append)
    assert Path(tiles[0]["rewards"]).read_bytes() == before
    assert read_tile(Path(tiles[1]["rewards"]), REWARDS)[0].equals(table)

    job["reward_model"] = to_config(classifier(tmp_path / "nowhere"))
    worker.main(job, events.append)  # nothing is missing, so nothing is loaded


def test_the_policys_system_prompt_is_part_of_what_is_scored(
    tiny_model: Model, tiny_reward: Path, tmp_path: Path
) -> None:
    rewards: list[list[float]] = []
    for number, policy in enumerate((tiny_model, replace(tiny_model, system_prompt="Be kind."))):
        prompts, tiles = pool(tiny_model, tmp_path / str(number))
        job = {"reward_model": to_config(classifier(tiny_reward)), "model": to_config(policy), "probe": None}
        worker.main({**job, "prompts": str(prompts), "tiles": tiles, "lease_seconds": 60}, silent)
        rewards.append(read_tile(Path(tiles[0]["rewards"]), REWARDS)[0]["reward"].to_pylist())
    assert rewards[0] != rewards[1]


def test_an_imported_pool_without_a_policy_is_scored_as_text(
    tiny_model: Model, tiny_reward: Path, tmp_path: Path
) -> None:
    prompts, tiles = pool(tiny_model, tmp_path)
    job = {"reward_model": to_config(classifier(tiny_reward)), "model": None, "probe": None, "prompts": str(prompts)}
    worker.main({**job, "tiles": tiles, "lease_seconds": 60}, silent)
    assert read_tile(Path(tiles[0]["rewards"]), REWARDS)[0].num_rows == 3


def test_sampled_ids_are_used_only_where_tokenizer_and_template_are_the_policys(
    tiny_model: Model, tiny_policy: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    probe = asdict(Probe.of(tiny_model, tokenizer))
    padded = load_tokenizer(tiny_model)
    padded(["a", "a longer text"], padding=True, truncation=True, max_length=4)  # leaves traces in the tokenizer
    assert worker.shares_tokens(tiny_model, probe, padded)
    other = copy_of(tiny_policy, tmp_path / "other")
    (other / "chat_template.jinja").write_text(tiny.CHATML.replace("\n", " "))
    assert not worker.shares_tokens(tiny_model, probe, load_tokenizer(tiny_model.at(other)))
    with pytest.raises(TemplateError, match="scoring and sampling"):
        worker.shares_tokens(replace(tiny_model, system_prompt="Be kind."), probe, tokenizer)


def test_both_shipped_heads_fit_the_backbone_and_differ() -> None:
    select, gold = read_head("select"), read_head("gold")
    for head in (select, gold):
        assert head.weight.shape == (len(head.layers), 576) and min(head.layers) >= 1 and max(head.layers) <= 30
        assert np.isfinite(head.weight).all() and np.isfinite(head.bias)
    assert not np.allclose(select.weight, gold.weight)
