"""ArmoRM: the gated reward against an independent computation, the names of its weights, and its faults."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweetspot.component import key, to_config
from sweetspot.reward_model import ArmoRM, Conversation, SequenceClassifier
from sweetspot.schema import REWARDS
from sweetspot.store import read_tile
from tests import tiny
from tests.test_reward_model import answered, copy_of, edit, pool, silent

torch = pytest.importorskip("torch")

from sweetspot.reward_model import worker  # noqa: E402 - needs torch
from sweetspot.reward_model.armorm import ArmoNetwork, fit  # noqa: E402
from tests.test_model import Model  # noqa: E402

OPENING = "<|im_end|>\n<|im_start|>assistant\n"


def armorm(folder: Path, **changes: Any) -> ArmoRM:
    settings: dict[str, Any] = {
        "path": str(folder),
        "revision": None,
        "dtype": "float32",
        "max_tokens": 400,
        "answer_opening": OPENING,
        "batch_tokens": 900,
    }
    return ArmoRM(**{**settings, **changes})


def by_hand(folder: Path, conversations: list[Conversation]) -> tuple[np.ndarray, np.ndarray]:
    """Reward [n] and objectives [n, 19] in NumPy, each conversation alone, from the hidden states of the body."""
    from safetensors.numpy import load_file
    from transformers import LlamaModel

    weights = load_file(folder / "model.safetensors")
    body = LlamaModel.from_pretrained(folder, dtype=torch.float32, key_mapping={"^model.": ""}).eval()
    tokenizer = tiny.tokenizer()
    rewards, objectives = [], []
    for each in conversations:
        turns = [*each.messages, {"role": "assistant", "content": each.response}]
        ids = tokenizer.apply_chat_template(turns, return_dict=False)
        asked = len(tokenizer.apply_chat_template(each.messages, return_dict=False))
        end_of_turn = max(place for place in range(asked) if ids[place] == 2)  # the <|im_end|> of the user
        with torch.inference_mode():
            states = body(torch.tensor([ids])).last_hidden_state[0].numpy()
        x = states[end_of_turn]
        for number in range(4):
            x = weights[f"gating.layers.{number}.weight"] @ x + weights[f"gating.layers.{number}.bias"]
            x = np.maximum(x, 0) if number < 3 else x
        gate = np.exp(x / 2) / np.exp(x / 2).sum() * 1.5  # the tiny model's temperature and scale
        found = weights["regression_layer.weight"] @ states[-1]
        objectives.append(found)
        rewards.append(
            sum(gate[j] * found[i] * weights["reward_transform_matrix"][i, j] for i in range(19) for j in range(19))
        )
    return np.array(rewards), np.array(objectives)


def test_rewards_and_objectives_are_those_of_a_computation_in_numpy(tiny_armorm: Path) -> None:
    conversations = answered(17)
    rewards, objectives = by_hand(tiny_armorm, conversations)
    assert np.ptp(rewards) > 0.1
    for batch_tokens in (1, 300, 9999):
        found = armorm(tiny_armorm, batch_tokens=batch_tokens).scorer()(conversations, silent)
        assert found.heads is not None and found.heads.shape == (17, 19) and found.truncated == 0
        np.testing.assert_allclose(found.rewards, rewards, atol=2e-5)
        np.testing.assert_allclose(found.heads, objectives, atol=2e-5)


def test_the_gate_reads_the_last_turn_of_the_user(tiny_armorm: Path) -> None:
    scorer = armorm(tiny_armorm).scorer()
    first = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    rows = [Conversation([*first, {"role": "user", "content": text}], "Yes.", None) for text in ("Why?", "How much?")]
    rewards, _ = by_hand(tiny_armorm, rows)
    np.testing.assert_allclose(scorer(rows, silent).rewards, rewards, atol=2e-5)


def test_the_network_has_the_names_and_shapes_of_the_published_weights() -> None:
    from transformers import LlamaConfig

    heads = {"num_objectives": 19, "gating_hidden_dim": 1024, "gating_n_hidden": 3, "gating_temperature": 10}
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_key_value_heads": 8}
    with torch.device("meta"):
        weights = ArmoNetwork(LlamaConfig(**shape, **heads, vocab_size=128257)).state_dict()
    found = {name: tuple(value.shape) for name, value in weights.items() if not name.startswith("model.")}
    gate = {f"gating.layers.{number}.weight": (1024, 1024) for number in (1, 2)}
    gate |= {f"gating.layers.{number}.bias": (1024,) for number in range(3)}
    assert found == {
        "regression_layer.weight": (19, 4096),
        "reward_transform_matrix": (19, 19),
        "gating.logit_scale": (1,),
        "gating.layers.0.weight": (1024, 4096),
        "gating.layers.3.weight": (19, 1024),
        "gating.layers.3.bias": (19,),
        **gate,
    }
    assert len(weights) - len(found) == 32 * 9 + 2  # nine weights a layer, the embedding and the last norm


def test_the_heads_stay_in_float32_where_the_body_is_in_bfloat16(tiny_armorm: Path) -> None:
    conversations = answered(9)
    scorer: Any = armorm(tiny_armorm, dtype="bfloat16").scorer()
    assert scorer.network.regression_layer.weight.dtype == scorer.network.gating.logit_scale.dtype == torch.float32
    assert scorer.network.model.embed_tokens.weight.dtype == torch.bfloat16
    exact = armorm(tiny_armorm).scorer()(conversations, silent).rewards
    np.testing.assert_allclose(scorer(conversations, silent).rewards, exact, atol=0.1 * float(np.ptp(exact)))


def test_a_template_without_the_opening_of_an_answer_is_named(tiny_armorm: Path) -> None:
    llama = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    with pytest.raises(ValueError, match=r"reward_model\.answer_opening must be what the chat template puts .*eot_id"):
        armorm(tiny_armorm, answer_opening=llama).scorer()


def test_other_weights_are_refused_and_armorm_is_no_plain_classifier(
    tiny_armorm: Path, tiny_reward: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"must hold the weights of an ArmoRM, .* differs in gating\.layers\.0\.bias"):
        armorm(tiny_reward).scorer()
    folder = copy_of(tiny_armorm, tmp_path / "labelled")
    edit(folder / "config.json", id2label={"0": "reward"}, label2id={"reward": 0})
    with pytest.raises(ValueError, match=r"must hold a whole trained classifier, .* lacks score\.weight"):
        SequenceClassifier(
            path=str(folder), revision=None, dtype="float32", max_tokens=64, trust_remote_code=False, batch_tokens=64
        ).scorer()


def test_a_long_answer_loses_its_end_and_a_long_prompt_its_beginning_down_to_half() -> None:
    assert fit([1, 2, 3], [4, 5], 5) == ([1, 2, 3], [4, 5])
    assert fit([1, 2, 3], [4, 5, 6, 7, 8], 6) == ([1, 2, 3], [4, 5, 6])
    assert fit([1, 2, 3, 4, 5, 6], [7, 8], 6) == ([1, 4, 5, 6], [7, 8])
    assert fit([1, 2, 3, 4, 5, 6], [7, 8, 9, 10], 6) == ([1, 5, 6], [7, 8, 9])


def test_a_conversation_that_is_too_long_is_counted_and_still_has_its_gate(tiny_armorm: Path) -> None:
    long = [Conversation([{"role": "user", "content": "Hi"}], "rain " * 80, None)]
    long.append(Conversation([{"role": "user", "content": "rain " * 80}], "Yes.", None))
    short = Conversation([{"role": "user", "content": "Hi"}], "Yes.", None)
    scores = armorm(tiny_armorm, max_tokens=60).scorer()([*long, short], silent)
    assert scores.truncated == 2 and np.isfinite(scores.rewards).all()


def test_the_objectives_go_into_the_table_and_a_nan_names_its_sample(
    tiny_armorm: Path, tiny_model: Model, tmp_path: Path
) -> None:
    prompts, tiles = pool(tiny_model, tmp_path)
    job = {"reward_model": to_config(armorm(tiny_armorm)), "model": to_config(tiny_model), "probe": None}
    job |= {"prompts": str(prompts), "tiles": tiles, "lease_seconds": 60}
    worker.main(job, silent)
    rows = read_tile(Path(tiles[0]["rewards"]), REWARDS)[0].to_pylist()
    assert [len(row["heads"]) for row in rows] == [19, 19, 19]


def test_the_key_is_content_and_settings(tiny_armorm: Path, tmp_path: Path) -> None:
    here = armorm(tiny_armorm)
    assert key(here) == key(armorm(copy_of(tiny_armorm, tmp_path / "moved"), batch_tokens=7))
    assert key(here) != key(armorm(tiny_armorm, answer_opening="<|im_end|>"))
    other = copy_of(tiny_armorm, tmp_path / "other")
    edit(other / "config.json", gating_temperature=3)
    assert key(here) != key(armorm(other))
    assert json.loads((other / "config.json").read_text())["auto_map"]  # its code was there and was not run
