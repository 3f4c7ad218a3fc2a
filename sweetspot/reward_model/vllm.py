"""Sequence classifiers in vLLM: pooling of the last token, raw logits, the prompt cached over its responses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweetspot.reward_model import Conversation, Scorer, Scores, VllmClassifier
from sweetspot.reward_model.rendering import render_all, tokenizer_of
from sweetspot.reward_model.selftest import checked
from sweetspot.sampler.vllm import check_machine

CPU_BATCH_TOKENS = 16384
BLOCK = 32  # tokens of a cache block on a processor: 128 by default, where a short prompt is never shared


def load(reward_model: VllmClassifier) -> Scorer:
    """The scorer with the engine in memory.

    Raises:
        RuntimeError: when vLLM cannot run on this machine, or a reward depends on its batch.
        ValueError: when the path has no chat template, or is no decoder classifier with one logit.
    """
    check_machine("reward_model", "run with reward_model=sequence_classifier")
    import torch
    from transformers import AutoConfig
    from vllm import LLM
    from vllm.config import PoolerConfig

    place = {"revision": reward_model.revision, "trust_remote_code": reward_model.trust_remote_code}
    tokenizer = tokenizer_of(reward_model.path, **place)
    config = AutoConfig.from_pretrained(reward_model.path, **place)
    check_classifier(reward_model.path, config)
    room = max(CPU_BATCH_TOKENS, reward_model.max_tokens)
    cpu: dict[str, Any] = {} if torch.cuda.is_available() else {"block_size": BLOCK, "max_num_batched_tokens": room}
    engine = LLM(
        model=reward_model.path,
        runner="pooling",
        pooler_config=PoolerConfig(use_activation=False),  # the logit itself, not its sigmoid
        load_format="safetensors",
        dtype=reward_model.dtype,
        max_model_len=reward_model.max_tokens,
        max_num_seqs=reward_model.max_num_seqs,
        gpu_memory_utilization=reward_model.gpu_memory_utilization,
        enforce_eager=reward_model.enforce_eager,
        tensor_parallel_size=reward_model.tensor_parallel,
        enable_prefix_caching=True,
        **place,
        **cpu,
    )
    pad = config.get_text_config().pad_token_id
    return checked(VllmScorer(engine, tokenizer, pad, reward_model.max_tokens), reward_model.dtype)


def check_classifier(path: str, config: Any) -> None:
    """Refuse what vLLM would turn into a classifier without a trained head, and a classifier of classes.

    Raises:
        ValueError: naming the architecture, or how many labels it has.
    """
    names = ", ".join(config.architectures or ["nothing"])
    if not names.endswith("ForSequenceClassification"):
        raise ValueError(f"reward_model.path must hold a whole trained classifier, {path} holds {names}")
    if config.num_labels != 1:
        raise ValueError(f"reward_model.path must be a classifier with one logit, {path} has {config.num_labels}")


@dataclass(frozen=True)
class VllmScorer:
    """Conversations rendered as the sequence classifier renders them; the reward is the raw logit."""

    engine: Any
    renderer: Any
    pad: int | None
    max_tokens: int
    tokenizer = None  # it reads text

    def __call__(self, conversations: Sequence[Conversation], progress: Callable[[int], None]) -> Scores:
        """The rewards; see `Scorer`.

        Raises:
            RuntimeError: when vLLM changed the token ids.
        """
        self.engine.reset_prefix_cache()  # rewards must not depend on the tiles before
        rows, truncated = render_all(self.renderer, conversations, self.max_tokens, self.pad)
        asked = [{"prompt_token_ids": ids} for ids in rows]
        results = self.engine.classify(asked, use_tqdm=False) if asked else []
        for ids, result in zip(rows, results, strict=True):
            if list(result.prompt_token_ids) != ids:
                raise RuntimeError("reward_model: vLLM changed the conversation's token ids")
        progress(len(rows))
        return Scores(np.array([result.outputs.probs[0] for result in results], dtype=np.float32), None, truncated)
