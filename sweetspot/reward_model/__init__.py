"""Reward models: from samples to rewards, tile by tile, in a process of their own.

What is scored is the conversation that was sampled, the policy's system prompt included. A loaded model has passed a
self-test (selftest.py): its reward for a conversation is the same alone and in a padded batch.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field

from sweetspot.component import component, identity, runtime
from sweetspot.model import Model, content_of
from sweetspot.sampler import vllm_environment

HEADS = Path(__file__).parent.parent / "embedded" / "heads.safetensors"


@dataclass(frozen=True)
class Conversation:
    """One response to score.

    Attributes:
        messages: the turns that were answered, the system prompt included.
        response: the answer's text.
        token_ids: the answer as it was sampled, where the reward model shares the policy's tokenizer; else None.
        n_tokens: the answer's length as it was sampled (tokens of the policy), or None where nobody counted.
    """

    messages: list[dict[str, str]]
    response: str
    token_ids: list[int] | None
    n_tokens: int | None = None


@dataclass(frozen=True)
class Scores:
    """What a reward model says of n conversations, in their order.

    Attributes:
        rewards: [n] float32, reward-model units.
        heads: [n, k] float32 where the model has k objectives, else None.
        truncated: how many conversations were too long and lost the beginning of their prompt.
    """

    rewards: np.ndarray
    heads: np.ndarray | None
    truncated: int


class Scorer(Protocol):
    """A loaded reward model. Its rewards do not depend on order, batch or padding."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the sampled ids that it reads; None where it reads text."""
        ...

    def __call__(self, conversations: Sequence[Conversation], progress: Callable[[int], None]) -> Scores:
        """The rewards of the conversations; `progress` is told how many were done with each batch."""
        ...


@component
class RewardModel:
    """A component that scores; its identity is its key."""

    version: ClassVar[int] = 1

    def environment(self) -> dict[str, str]:
        """What the worker needs in its environment before anything heavy is imported."""
        return {}

    def scorer(self) -> Scorer:
        """The model, loaded, tested and ready to score. Called in the worker only."""
        raise NotImplementedError


@component
class EmbeddedReward(RewardModel):
    """A Bradley-Terry head on the frozen base model, mean-pooled over the response tokens of middle layers.

    `select` and `gold` were trained on disjoint halves of the prompts of public human preferences, so that one can
    judge what the other selected. How often they agree with people stands in experiments/results/reward_heads.md; they
    are no good judges beyond that.
    """

    head: Literal["select", "gold"]
    backbone: Model
    max_tokens: int = Field(ge=2)
    dtype: Literal["bfloat16", "float32"]
    batch_tokens: int = runtime(ge=1)

    def identity(self) -> dict[str, Any]:
        """The settings, the content of the backbone and the content of the heads."""
        return {
            "class": "sweetspot.reward_model.EmbeddedReward",
            "version": self.version,
            "head": self.head,
            "heads": hashlib.sha256(HEADS.read_bytes()).hexdigest(),
            "backbone": identity(self.backbone),
            "max_tokens": self.max_tokens,
            "dtype": self.dtype,
        }

    def scorer(self) -> Scorer:
        """The backbone's first layers and the head.

        Raises:
            ValueError: when the backbone is not the model that the heads were trained on.
        """
        from sweetspot.reward_model import embedded

        return embedded.load(self)


@component
class Classifier(RewardModel):
    """Any sequence classifier with one logit and a chat template, such as Skywork-Reward; the reward is the logit."""

    path: str = Field(min_length=1)
    revision: str | None
    dtype: Literal["bfloat16", "float32"]
    max_tokens: int = Field(ge=2)
    trust_remote_code: bool

    def identity(self) -> dict[str, Any]:
        """The settings and the content of the weights, wherever they lie."""
        return {
            "class": f"{type(self).__module__}.{type(self).__qualname__}",
            "version": self.version,
            **content_of(self.path, self.revision, "reward_model.path"),
            "dtype": self.dtype,
            "max_tokens": self.max_tokens,
            "trust_remote_code": self.trust_remote_code,
        }


@component
class SequenceClassifier(Classifier):
    """The classifier in transformers."""

    batch_tokens: int = runtime(ge=1)

    def scorer(self) -> Scorer:
        """The classifier.

        Raises:
            ValueError: when it has no chat template, not exactly one logit, or no trained head.
        """
        from sweetspot.reward_model import sequence_classifier

        return sequence_classifier.load(self)


@component
class ImportedReward(RewardModel):
    """The rewards that came with an imported pool; it can score nothing else."""

    version: ClassVar[int] = 1

    def scorer(self) -> Scorer:
        """Nothing: what lies in the store already is all there is.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "reward_model: reward_model=imported has only the rewards that came with an imported pool (data=imported, "
            "imported with rewards); choose another reward_model to score these samples"
        )


@component
class VllmClassifier(Classifier):
    """The classifier in vLLM, on GPUs and (its CPU build) on processors."""

    max_num_seqs: int = runtime(ge=1)
    gpu_memory_utilization: float = runtime(gt=0, le=1)
    kv_cache_gb: int = runtime(ge=1)
    enforce_eager: bool = runtime()
    tensor_parallel: int = runtime(ge=1)

    def environment(self) -> dict[str, str]:
        """That of every vLLM engine here."""
        return vllm_environment(self.kv_cache_gb)

    def scorer(self) -> Scorer:
        """The classifier.

        Raises:
            RuntimeError: when vLLM cannot run on this machine, naming the way out.
            ValueError: when it has no chat template or not exactly one logit.
        """
        from sweetspot.reward_model import vllm

        return vllm.load(self)


@component
class ArmoRM(RewardModel):
    """ArmoRM: 19 objectives of the last token, weighed by a gate that reads the prompt. All of them go into `heads`.

    Source: Wang et al., Interpretable Preferences via Multi-Objective Reward Modeling and Mixture-of-Experts, 2024
    (arXiv 2406.12845). No code of the checkpoint is run.
    """

    path: str = Field(min_length=1)
    revision: str | None
    dtype: Literal["bfloat16", "float32"]
    max_tokens: int = Field(ge=2)
    answer_opening: str = Field(min_length=1)
    batch_tokens: int = runtime(ge=1)

    def identity(self) -> dict[str, Any]:
        """The settings and the content of the weights, wherever they lie."""
        return {
            "class": "sweetspot.reward_model.ArmoRM",
            "version": self.version,
            **content_of(self.path, self.revision, "reward_model.path"),
            "dtype": self.dtype,
            "max_tokens": self.max_tokens,
            "answer_opening": self.answer_opening,
        }

    def scorer(self) -> Scorer:
        """The model.

        Raises:
            ValueError: when the weights are not ArmoRM's, or a conversation lacks the opening of an answer.
        """
        from sweetspot.reward_model import armorm

        return armorm.load(self)


def batches(widths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Rows, longest first, in batches of at most `batch_tokens` tokens with padding; a longer row is a batch alone."""
    batch: list[int] = []
    for row in sorted(range(len(widths)), key=lambda row: (-widths[row], row)):
        if batch and widths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def shorten(prompt: list[int], response: list[int], max_tokens: int) -> tuple[list[int], list[int]]:
    """Prompt and response of together at most max_tokens: the prompt loses what follows its first token (the BOS).

    A response of max_tokens or more keeps its last max_tokens - 1 tokens.
    """
    excess = len(prompt) + len(response) - max_tokens
    if excess <= 0:
        return prompt, response
    return prompt[:1] + prompt[1 + excess :], response[-(max_tokens - 1) :]
