"""Sequence classifiers with one logit (Skywork-Reward and its kind)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from sweetspot.reward_model import Conversation, Scores, SequenceClassifier, batches, shorten


def load(reward_model: SequenceClassifier) -> "ClassifierScorer":
    """The scorer with the classifier in memory.

    Raises:
        ValueError: when it has no chat template, not exactly one logit, or no trained head.
    """
    place = {"revision": reward_model.revision, "trust_remote_code": reward_model.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(reward_model.path, **place)
    if not tokenizer.chat_template:
        raise ValueError(f"reward_model.path must have a tokenizer with a chat template, {reward_model.path} has none")
    logits = AutoConfig.from_pretrained(reward_model.path, **place).num_labels
    if logits != 1:
        raise ValueError(f"reward_model.path must be a classifier with one logit, {reward_model.path} has {logits}")
    network, report = AutoModelForSequenceClassification.from_pretrained(
        reward_model.path,
        dtype=getattr(torch, reward_model.dtype),
        output_loading_info=True,
        use_safetensors=True,
        **place,
    )
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise ValueError(f"reward_model.path must hold a whole trained classifier, {reward_model.path} lacks {missing}")
    network = network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    pad = network.config.get_text_config().pad_token_id
    return ClassifierScorer(network, tokenizer, pad, reward_model.max_tokens, reward_model.batch_tokens)


@dataclass(frozen=True)
class ClassifierScorer:
    """Conversations rendered by the classifier's own template; the reward is the raw logit."""

    network: Any
    tokenizer: Any
    pad: int | None
    max_tokens: int
    batch_tokens: int

    def __call__(self, conversations: Sequence[Conversation], progress: Callable[[int], None]) -> Scores:
        """The rewards; see `Scorer`."""
        whole = [self._render(conversation) for conversation in conversations]
        rows = [shorten(ids, [], self.max_tokens)[0] for ids in whole]
        rewards = np.empty(len(rows), dtype=np.float32)
        for batch in batches([len(ids) for ids in rows], self.batch_tokens):
            rewards[batch] = self._batch([rows[row] for row in batch])
            progress(len(batch))
        return Scores(rewards, None, sum(len(ids) > self.max_tokens for ids in whole))

    def _render(self, conversation: Conversation) -> list[int]:
        """The ids of the conversation with its answer, by the chat template alone, so that nothing adds a second BOS.

        Raises:
            ValueError: when the template itself doubles it.
        """
        turns = [*conversation.messages, {"role": "assistant", "content": conversation.response}]
        ids = self.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        if self.tokenizer.bos_token_id is not None and ids[:2] == [self.tokenizer.bos_token_id] * 2:
            raise ValueError("reward_model.path: the chat template starts a conversation with two BOS tokens")
        return [int(token) for token in ids]

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
