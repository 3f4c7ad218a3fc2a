"""Conversations as token ids of a reward model's own tokenizer and template."""

from collections.abc import Sequence
from typing import Any

from sweetspot.reward_model import Conversation, shorten


def tokenizer_of(path: str, **place: Any) -> Any:
    """The reward model's tokenizer.

    Args:
        path: hub id or folder.
        place: revision and trust_remote_code.

    Raises:
        ValueError: when it has no chat template.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, **place)
    if not tokenizer.chat_template:
        raise ValueError(f"reward_model.path must have a tokenizer with a chat template, {path} has none")
    return tokenizer


def render(tokenizer: Any, conversation: Conversation) -> list[int]:
    """The ids of the conversation with its answer, by the chat template alone, so that nothing adds a second BOS.

    Raises:
        ValueError: when the template itself doubles it.
    """
    turns = [*conversation.messages, {"role": "assistant", "content": conversation.response}]
    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        raise ValueError("reward_model.path: the chat template starts a conversation with two BOS tokens")
    return [int(token) for token in ids]


def render_all(
    tokenizer: Any, conversations: Sequence[Conversation], max_tokens: int, pad: int | None
) -> tuple[list[list[int]], int]:
    """The ids of each conversation, at most max_tokens of them, and how many conversations were longer.

    A conversation that is too long loses what follows its first token. Padding ids at its end are left out: a decoder
    classifier of transformers reads the logit at the rightmost id that is not `config.pad_token_id`, and what follows
    does not reach it.
    """
    whole = [render(tokenizer, conversation) for conversation in conversations]
    rows = [shorten(ids, [], max_tokens)[0] for ids in whole]
    return [_without_end(ids, pad) for ids in rows], sum(len(ids) > max_tokens for ids in whole)


def asked(conversations: Sequence[Conversation]) -> list[tuple[tuple[str, str], ...]]:
    """What each conversation answers, as something that equal prompts have equal."""
    return [tuple((turn["role"], turn["content"]) for turn in each.messages) for each in conversations]


def names(conversations: Sequence[Conversation]) -> list[str]:
    """What an error calls each conversation."""
    return [f"the answer {each.response[:40]!r} to {each.messages[-1]['content'][:40]!r}" for each in conversations]


def _without_end(ids: list[int], pad: int | None) -> list[int]:
    end = len(ids)
    while pad is not None and end > 2 and ids[end - 1] == pad:
        end -= 1
    return ids[:end]
