"""The embedded reward: mean-pooled middle layers of the frozen base model, and a linear head.

Layers above the last one that the head reads are not computed. A prompt is computed once and shared by its responses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoModel

from sweetspot.model import Model, load_tokenizer, prompt_ids
from sweetspot.reward_model import HEADS, Conversation, EmbeddedReward, Scores, shorten
from sweetspot.reward_model.decoder import Decoder, Row
from sweetspot.reward_model.rendering import names
from sweetspot.reward_model.selftest import checked


@dataclass(frozen=True)
class Head:
    """reward = sum over layers of weight . features + bias.

    Attributes:
        layers: after how many layers of the backbone each row of features is read.
        weight: [layers, width].
        bias: a constant that puts typical responses near 0.
    """

    layers: list[int]
    weight: np.ndarray
    bias: float

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """The rewards [n] of features [n, layers, width]."""
        return (np.einsum("nlw,lw->n", features.astype(np.float64), self.weight) + self.bias).astype(np.float32)


def read_head(name: str) -> Head:
    """The shipped head of that name."""
    with safe_open(str(HEADS), framework="np") as file:
        layers = [int(layer) for layer in file.metadata()[f"{name}_layers"].split(",")]
        return Head(layers, file.get_tensor(name).astype(np.float64), float(file.get_tensor(f"{name}_bias")[0]))


class Backbone:
    """The first layers of a causal model.

    Args:
        model: the causal model.
        layers: which hidden states are read: after layer 1, 2, ...
        dtype: of weights and activations.
        batch_tokens: tokens computed at once.
    """

    def __init__(self, model: Model, layers: Sequence[int], dtype: str, batch_tokens: int) -> None:
        self.model, self.layers = model, list(layers)
        self.tokenizer = load_tokenizer(model)
        network: Any = AutoModel.from_pretrained(
            model.path,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            use_safetensors=True,
            dtype=getattr(torch, dtype),
        )
        network.layers = network.layers[: max(layers)]
        network.norm = torch.nn.Identity()  # the last state that is read is a residual stream like the others
        network = network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.decoder = Decoder(network, batch_tokens, every_layer=True)

    def ids(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Prompt and response as token ids: as sampled, or the text followed by the end-of-turn token."""
        prompt = prompt_ids(self.model, self.tokenizer, conversation.messages)
        if conversation.token_ids is not None:
            return prompt, conversation.token_ids
        text = self.tokenizer(conversation.response, add_special_tokens=False)["input_ids"]
        return prompt, [*text, self.tokenizer.eos_token_id]

    def features(self, rows: Sequence[Row], names: Sequence[str], progress: Callable[[int], None]) -> np.ndarray:
        """Hidden states, averaged over the response's tokens.  # [rows, layers, width], float32

        Args:
            rows: prompt and response of each row as token ids; equal prompts are computed once.
            names: of the rows, for an error.
            progress: told how many rows each batch had.
        """
        means = self.decoder(rows, names, self._means, progress)  # [rows, layers * width]
        return means.reshape(len(rows), len(self.layers), self.decoder.network.config.hidden_size)

    def _means(self, ends: torch.Tensor, outputs: Any, lengths: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - no gate
        states = torch.stack([outputs.hidden_states[layer] for layer in self.layers], dim=1)  # [rows, layers, R, width]
        within = torch.arange(states.shape[2], device=states.device) < lengths[:, None]  # [rows, R]
        share = (within / lengths[:, None])[:, None, None]  # [rows, 1, 1, R]
        return (share @ states.float()).flatten(1)


def load(reward_model: EmbeddedReward) -> "EmbeddedScorer":
    """The scorer with the backbone in memory.

    Raises:
        ValueError: when the backbone's width or depth is not that of the heads.
    """
    head = read_head(reward_model.head)
    backbone = Backbone(reward_model.backbone, head.layers, reward_model.dtype, reward_model.batch_tokens)
    network = backbone.decoder.network.config
    if network.hidden_size != head.weight.shape[1] or network.num_hidden_layers < max(head.layers):
        raise ValueError(
            f"reward_model.backbone must be the model of the heads ({head.weight.shape[1]} wide, at least "
            f"{max(head.layers)} layers), got {network.hidden_size} and {network.num_hidden_layers}"
        )
    return checked(EmbeddedScorer(backbone, head, reward_model.max_tokens), reward_model.dtype)


@dataclass(frozen=True)
class EmbeddedScorer:
    """The head on top of the backbone."""

    backbone: Backbone
    head: Head
    max_tokens: int

    @property
    def tokenizer(self) -> Any:
        """Of the backbone."""
        return self.backbone.tokenizer

    def __call__(self, conversations: Sequence[Conversation], progress: Callable[[int], None]) -> Scores:
        """The rewards; see `Scorer`."""
        rows = [self.backbone.ids(conversation) for conversation in conversations]
        fitting = [shorten(prompt, response, self.max_tokens) for prompt, response in rows]
        truncated = sum(one != other for one, other in zip(rows, fitting, strict=True))
        features = self.backbone.features(fitting, names(conversations), progress)
        return Scores(self.head(features), None, truncated)
