"""The embedded reward: mean-pooled middle layers of the frozen base model, and a linear head.

Layers above the last one that the head reads are not computed. A prompt is computed once and shared by its responses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoModel, DynamicCache

from sweetspot.model import Model, load_tokenizer, prompt_ids
from sweetspot.reward_model import HEADS, Conversation, EmbeddedReward, Scores, shorten


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
        self.model, self.layers, self.batch_tokens = model, list(layers), batch_tokens
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
        self.network = network.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def ids(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Prompt and response as token ids: as sampled, or the text followed by the end-of-turn token."""
        prompt = prompt_ids(self.model, self.tokenizer, conversation.messages)
        if conversation.token_ids is not None:
            return prompt, conversation.token_ids
        text = self.tokenizer(conversation.response, add_special_tokens=False)["input_ids"]
        return prompt, [*text, self.tokenizer.eos_token_id]

    def features(self, rows: Sequence[tuple[list[int], list[int]]], progress: Callable[[int], None]) -> np.ndarray:
        """Hidden states, averaged over the response's tokens.  # [rows, layers, width], float32

        Args:
            rows: prompt and response of each row as token ids; equal prompts are computed once a batch.
            progress: told how many rows each batch had.
        """
        found = np.empty((len(rows), len(self.layers), self.network.config.hidden_size), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda row: (len(rows[row][0]), rows[row][0], len(rows[row][1])))
        for batch in _runs(order, [len(prompt) + len(response) for prompt, response in rows], self.batch_tokens):
            found[batch] = self._batch([rows[row] for row in batch])
            progress(len(batch))
        return found

    @torch.inference_mode()
    def _batch(self, rows: list[tuple[list[int], list[int]]]) -> np.ndarray:
        prompts = list(dict.fromkeys(tuple(prompt) for prompt, _ in rows))
        owner = torch.tensor([prompts.index(tuple(prompt)) for prompt, _ in rows], device=self.network.device)
        prompt_tokens, prompt_mask = self._pad([list(prompt) for prompt in prompts])  # [prompts, P]
        tokens, mask = self._pad([response for _, response in rows])  # [rows, R]
        cache: Any = DynamicCache()
        self.network(prompt_tokens, attention_mask=prompt_mask, past_key_values=cache, use_cache=True)
        cache.reorder_cache(owner)
        states = self.network(
            tokens,
            attention_mask=torch.cat([prompt_mask[owner], mask], dim=1),  # the hole between a prompt and P stays masked
            position_ids=prompt_mask.sum(1)[owner, None] + torch.arange(tokens.shape[1], device=tokens.device),
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        ).hidden_states
        share = (mask / mask.sum(1, keepdim=True)).unsqueeze(1)  # [rows, 1, R]
        means = [(share @ states[layer].float()).squeeze(1) for layer in self.layers]
        return torch.stack(means, dim=1).cpu().numpy()

    def _pad(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(ids) for ids in rows)
        tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids in rows])
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in rows])
        return tokens.to(self.network.device), mask.to(self.network.device)


def _runs(order: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Consecutive rows of `order` in batches of at most batch_tokens tokens, padding counted."""
    runs: list[list[int]] = []
    widest = 0
    for row in order:
        widest = max(widest, lengths[row])
        if not runs or widest * (len(runs[-1]) + 1) > batch_tokens:
            runs.append([])
            widest = lengths[row]
        runs[-1].append(row)
    return runs


def load(reward_model: EmbeddedReward) -> "EmbeddedScorer":
    """The scorer with the backbone in memory.

    Raises:
        ValueError: when the backbone's width or depth is not that of the heads.
    """
    head = read_head(reward_model.head)
    backbone = Backbone(reward_model.backbone, head.layers, reward_model.dtype, reward_model.batch_tokens)
    network = backbone.network.config
    if network.hidden_size != head.weight.shape[1] or network.num_hidden_layers < max(head.layers):
        raise ValueError(
            f"reward_model.backbone must be the model of the heads ({head.weight.shape[1]} wide, at least "
            f"{max(head.layers)} layers), got {network.hidden_size} and {network.num_hidden_layers}"
        )
    return EmbeddedScorer(backbone, head, reward_model.max_tokens)


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
        return Scores(self.head(self.backbone.features(fitting, progress)), None, truncated)
