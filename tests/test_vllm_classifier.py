"""Classifiers in vLLM give the rewards of transformers: the same ids, the raw logit, in any order."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweetspot import launch
from sweetspot.component import key, to_config
from sweetspot.model import Model
from sweetspot.reward_model import Conversation, VllmClassifier
from sweetspot.schema import REWARDS
from sweetspot.store import read_tile
from tests import tiny
from tests.test_reward_model import answered, classifier, copy_of, edit, pool, silent

pytest.importorskip("torch")


def in_vllm(folder: Path, **changes: Any) -> VllmClassifier:
    settings: dict[str, Any] = {
        "path": str(folder),
        "revision": None,
        "dtype": "float32",
        "max_tokens": 400,
        "trust_remote_code": False,
        "max_num_seqs": 64,
        "gpu_memory_utilization": 0.5,
        "kv_cache_gb": 1,
        "enforce_eager": True,
        "tensor_parallel": 1,
    }
    return VllmClassifier(**{**settings, **changes})


@pytest.mark.slow
def test_vllm_and_transformers_agree_to_1e_4_on_200_responses(
    tiny_reward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    reward_model = in_vllm(tiny_reward)
    for name, value in reward_model.environment().items():
        monkeypatch.setenv(name, value)
    long = Conversation([{"role": "user", "content": "Tell me of the rain. " * 40}], "It rains.", None)
    conversations = [*answered(198), long, long]
    by_transformers = classifier(tiny_reward).scorer()(conversations, silent)
    scorer: Any = reward_model.scorer()
    by_vllm = scorer(conversations, silent)
    assert by_vllm.rewards.dtype == np.float32 and by_vllm.truncated == by_transformers.truncated == 2
    assert np.ptp(by_transformers.rewards) > 1 and by_transformers.rewards.min() < 0  # no sigmoid
    assert np.abs(by_vllm.rewards - by_transformers.rewards).max() < 1e-4
    assert scorer([], silent).rewards.shape == (0,)
    backwards = scorer(conversations[::-1], silent).rewards[::-1]
    assert np.abs(backwards - by_transformers.rewards).max() < 1e-4


@pytest.mark.slow
def test_a_worker_process_scores_tiles_through_vllm(tiny_reward: Path, tiny_model: Model, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    prompts, tiles = pool(tiny_model, tmp_path)
    reward_model = in_vllm(tiny_reward)
    job = {"reward_model": to_config(reward_model), "model": to_config(tiny_model), "probe": None}
    environment = {
        **tiny.launch(threads=1, devices=None, lease_seconds=60).environment(),
        **reward_model.environment(),
    }
    launch.run(
        "sweetspot.reward_model.worker",
        {**job, "prompts": str(prompts), "tiles": tiles, "lease_seconds": 60},
        tmp_path / "job",
        environment,
        lambda _: None,
    )
    assert [read_tile(Path(tile["rewards"]), REWARDS)[0].num_rows for tile in tiles] == [3, 3]


@pytest.mark.slow
def test_what_vllm_would_make_a_classifier_of_is_refused(tiny_reward: Path, tiny_policy: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    with pytest.raises(ValueError, match=r"must hold a whole trained classifier, .* holds LlamaForCausalLM"):
        in_vllm(tiny_policy).scorer()
    two = copy_of(tiny_reward, tmp_path / "two")
    edit(two / "config.json", id2label={"0": "bad", "1": "good"}, label2id={"bad": 0, "good": 1})
    with pytest.raises(ValueError, match=r"must be a classifier with one logit, .* has 2"):
        in_vllm(two).scorer()


def test_fields_that_change_speed_only_stay_out_of_the_key(tiny_reward: Path) -> None:
    here = in_vllm(tiny_reward)
    quick = {"max_num_seqs": 7, "gpu_memory_utilization": 0.9, "kv_cache_gb": 3, "tensor_parallel": 2}
    assert key(here) == key(in_vllm(tiny_reward, enforce_eager=False, **quick))
    assert key(here) != key(in_vllm(tiny_reward, max_tokens=399))
    assert key(here) != key(in_vllm(tiny_reward, trust_remote_code=True))
    assert re.fullmatch("[0-9a-f]{16}", key(here)) and key(here) != key(classifier(tiny_reward))
