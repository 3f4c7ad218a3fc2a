"""Sequence classifiers with one logit (Skywork-Reward and its kind)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.modeling_layers import GenericForSequenceClassification

from sweetspot.reward_model import Conversation, Scorer, Scores, SequenceClassifier
from sweetspot.reward_model.decoder import Budget, Decoder, last, sees_the_whole_past, split
from sweetspot.reward_model.rendering import asked, names, render_all, tokenizer_of
from sweetspot.reward_model.selftest import checked


def load(reward_model: SequenceClassifier) -> Scorer:
    """The scorer with the classifier in memory.

    Raises:
        ValueError: when it has no chat template, not exactly one logit, or no trained head.
        RuntimeError: when a reward depends on its batch.
    """
    place = {"revision": reward_model.revision, "trust_remote_code": reward_model.trust_remote_code}
    tokenizer = tokenizer_of(reward_model.path, **place)
    check_one_logit(reward_model.path, AutoConfig.from_pretrained(reward_model.path, **place))
    network: Any
    network, report = AutoModelForSequenceClassification.from_pretrained(
        reward_model.path,
        dtype=getattr(torch, reward_model.dtype),
        use_safetensors=True,  # a .bin file can run code
        output_loading_info=True,
        **place,
    )
    check_whole(reward_model.path, report["missing_keys"])
    network = network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    kind = DecoderScorer if decodes(network) else PaddedScorer
    pad = network.config.get_text_config().pad_token_id
    return checked(
        kind(network, tokenizer, pad, reward_model.max_tokens, reward_model.batch_tokens), reward_model.dtype
    )


def decodes(network: Any) -> bool:
    """Whether a classifier is a decoder of transformers' own pattern, whose prompts can be computed once."""
    return isinstance(network, GenericForSequenceClassification) and sees_the_whole_past(network.config)  # pyright: ignore


def check_one_logit(path: str, config: Any) -> None:
    """Refuse a classifier of classes.

    Raises:
        ValueError: when the config names more than one label.
    """
    if config.num_labels != 1:
        raise ValueError(f"reward_model.path must be a classifier with one logit, {path} has {config.num_labels}")


def check_whole(path: str, missing: Sequence[str]) -> None:
    """Refuse weights with a part that was never trained.

    Raises:
        ValueError: naming what is missing.
    """
    if missing:
        raise ValueError(
            f"reward_model.path must hold a whole trained classifier, {path} lacks {', '.join(sorted(missing))}"
        )


class DecoderScorer:
    """Conversations rendered by the classifier's own template, the prompt computed once for all its responses; the
    reward is the raw logit."""

    tokenizer = None  # it reads text

    def __init__(self, network: Any, renderer: Any, pad: int | None, max_tokens: int, batch_tokens: int) -> None:
        self.network, self.renderer, self.pad, self.max_tokens = network, renderer, pad, max_tokens
        self.decoder = Decoder(network.base_model, batch_tokens, every_layer=False)

    def __call__(self, conversations: Sequence[Conversation], progress: Callable[[int], None]) -> Scores:
        """The rewards; see `Scorer`."""
        ids, truncated = render_all(self.renderer, conversations, self.max_tokens, self.pad)
        rows = split(ids, asked(conversations))
        logits = self.decoder(rows, names(conversations), self._read, progress)  # [rows, 1]
        return Scores(logits[:, 0], None, truncated)

    def _read(self, ends: torch.Tensor, outputs: Any, lengths: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - no gate
        return self.network.score(last(outputs.last_hidden_state, lengths))


@dataclass(frozen=True)
class PaddedScorer:
    """The same for any other classifier (encoders, sliding windows): whole conversations in batches of like length."""

    network: Any
    renderer: Any
    pad: int | None
    max_tokens: int
    batch_tokens: int
    tokenizer = None  # it reads text

    def __call__(self, conversations: Sequence[Conversation], progress: Callable[[int], None]) -> Scores:
        """The rewards; see `Scorer`."""
        rows, truncated = render_all(self.renderer, conversations, self.max_tokens, None)
        rewards = np.empty(len(rows), dtype=np.float32)
        budget = Budget(self.batch_tokens)
        widths = list(map(len, rows))
        for batch, logits in budget.batches(
            widths, names(conversations), lambda some: self._batch([rows[row] for row in some])
        ):
            rewards[batch] = logits
            progress(len(batch))
        return Scores(rewards, None, truncated)

    @torch.inference_mode()
    def _batch(self, rows: list[list[int]]) -> np.ndarray:
        width, pad = max(len(ids) for ids in rows), self._padding(rows)
        tokens = torch.tensor([ids + [pad] * (width - len(ids)) for ids in rows], device=self.network.device)
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in rows], device=self.network.device)
        return self.network(tokens, attention_mask=mask).logits[:, 0].float().cpu().numpy()

    def _padding(self, rows: list[list[int]]) -> int:
        """The id that fills a batch: the classifier's own, else the first one at which no row ends.

        Decoder classifiers of transformers read the logit at the rightmost id that differs from `config.pad_token_id`,
        and refuse a batch without one. An id at which no row ends leaves that the last token, as for a row alone.
        """
        if self.pad is not None:
            return self.pad
        ends = {ids[-1] for ids in rows}
        pad = next(token for token in range(len(ends) + 1) if token not in ends)
        self.network.config.get_text_config().pad_token_id = pad
        return pad
