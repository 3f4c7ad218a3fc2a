"""The conversations that SFT learns from: which of their tokens are the assistant's, and how they are laid out."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import torch
from torch.nn.utils.rnn import pad_sequence

from sweetspot.logprob.layout import Group, Layout
from sweetspot.model import (
    CONVERSATION,
    Model,
    Probe,
    TemplateError,
    check_probe,
    conversation,
    end_ids,
    read_tokenizer,
    render,
)
from sweetspot.sft import SFT

TWO_TURNS = (*CONVERSATION, {"role": "user", "content": "And another?"}, {"role": "assistant", "content": "Blue."})
TOLD = 500  # conversations between two looks at the progress
Turns = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Conversation:
    """One conversation as it is learned: its ids, and where its answers begin and end in them."""

    ids: list[int]
    answers: list[tuple[int, int]]  # the place of an answer's first id, and the one behind its end-of-turn token

    def tokens(self) -> int:
        """All its tokens."""
        return len(self.ids)

    def lengths(self) -> tuple[int, tuple[int, ...]]:
        """All its tokens: nothing in it stands beside another."""
        return len(self.ids), ()

    def targets(self) -> int:
        """The tokens that are learned."""
        return sum(stop - start for start, stop in self.answers)

    def group(self) -> Group:
        """Its first prompt, and all that follows as if it were one response."""
        start = self.answers[0][0]
        return self.ids[:start], [self.ids[start:]]


def chat_tokenizer(base: Model, sft: SFT) -> Any:
    """The base model's tokenizer with the chat template and the end-of-turn token of the SFT.

    Raises:
        ValueError: when there is no template, or the token is none of the vocabulary.
        TemplateError: when the template does not agree with itself, with the base's use of BOS, or with the end-of-turn
            token.
    """
    tokenizer = read_tokenizer(base)
    if sft.chat_template is not None:
        tokenizer.chat_template = sft.template()
    if not tokenizer.chat_template:
        raise ValueError(f"model.sft.chat_template must be given for {base.name}, whose tokenizer has none, got null")
    if sft.eos_token is not None:
        if sft.eos_token not in tokenizer.get_vocab():
            raise ValueError(f"model.sft.eos_token must be a token of {base.name}, got {sft.eos_token!r}")
        tokenizer.eos_token = sft.eos_token
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model.sft.eos_token must be given for {base.name}, whose tokenizer has none, got null")
    try:
        examine(base, tokenizer)
    except jinja2.TemplateError as error:
        raise TemplateError(f"model.sft.chat_template must be a Jinja text, got {error}") from None
    return tokenizer


def examine(base: Model, tokenizer: Any) -> None:
    """The template doctor for a template that is to be learned.

    Raises:
        TemplateError: also for a conversation that does not begin with exactly one BOS where the base begins every text
            with one, for an answer that does not end in the tokenizer's EOS, and when the answers of a conversation of
            two turns cannot be told from the rest.
    """
    probe = Probe.of(base, tokenizer)
    check_probe(probe)
    plain = tokenizer("a")["input_ids"]
    if probe.bos is not None and plain[0] == probe.bos and probe.whole[0] != probe.bos:
        raise TemplateError(
            f"template: the base begins every text with BOS (id {probe.bos}), and the template does not: put "
            "{{ bos_token }} first"
        )
    ids, answers = tokens_of(tokenizer, conversation(base, TWO_TURNS), probe.ends)
    for start, stop in answers:
        if ids[stop - 1] != tokenizer.eos_token_id:
            raise TemplateError(
                f"template: an answer must end in the tokenizer's EOS (id {tokenizer.eos_token_id}), it is closed by "
                f"{ids[start:stop]}; model.sft.eos_token names the token that the template puts there"
            )


def tokens_of(
    tokenizer: Any, turns: list[dict[str, str]], ends: Sequence[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of a conversation as the template renders it, up to the end of its last answer, and its answers' places.

    An answer is what follows the opening that sampling continues, to the last token at which sampling ends (`ends`)
    before the next turn. What the template puts behind that token is read and not learned.

    Raises:
        TemplateError: when the conversation so far is not the beginning of the whole one, in ids.
    """
    whole = render(tokenizer, turns, add_generation_prompt=False)
    answers: list[tuple[int, int]] = []
    for place in (place for place, turn in enumerate(turns) if turn["role"] == "assistant"):
        prompt = render(tokenizer, turns[:place], add_generation_prompt=True)
        closed = render(tokenizer, turns[: place + 1], add_generation_prompt=False)
        if whole[: len(prompt)] != prompt or whole[: len(closed)] != closed:
            raise TemplateError(
                "template: the assistant's tokens cannot be found, because a conversation does not begin as it did "
                f"before its turn {place + 1} was answered"
            )
        found = [at for at in range(len(prompt), len(closed)) if closed[at] in ends]
        if not found:
            raise TemplateError(f"template: turn {place + 1} is not closed by a token that ends sampling ({ends})")
        answers.append((len(prompt), found[-1] + 1))
    return whole[: answers[-1][1]], answers


def training_conversations(
    rows: Sequence[Turns], base: Model, tokenizer: Any, sft: SFT, show: Callable[[int], None] = lambda _: None
) -> tuple[list[Conversation], dict[str, int]]:
    """The conversations that are learned, in their order, and how many were changed or left out.

    `shortened` lost their last turns to `sft.max_tokens`; `too_long` have no answer that fits and were dropped; so were
    those `unclear`, in which tokens of an answer run together with what stands before it.

    Args:
        show: told how many were read, from time to time.

    Raises:
        ValueError: when none is left.
    """
    kept: list[Conversation] = []
    counts, ends = {"shortened": 0, "too_long": 0, "unclear": 0}, end_ids(base, tokenizer)
    for number, messages in enumerate(rows):
        if number % TOLD == 0:
            show(number)
        try:
            ids, answers = tokens_of(tokenizer, conversation(base, messages), ends)
        except TemplateError:
            counts["unclear"] += 1
            continue
        fitting = [answer for answer in answers if answer[1] <= sft.max_tokens]
        if not fitting:
            counts["too_long"] += 1
            continue
        counts["shortened"] += len(fitting) < len(answers)
        kept.append(Conversation(ids[: fitting[-1][1]], fitting))
    if not kept:
        raise ValueError(
            f"model.sft.data: none of the {len(rows)} conversations can be learned ({counts['too_long']} have a first "
            f"answer beyond model.sft.max_tokens = {sft.max_tokens}, {counts['unclear']} have no clear answer)"
        )
    return kept, counts


def lay_out(conversations: Sequence[Conversation], batching: str) -> Layout:
    """The conversations as the inputs of a forward pass: a row each, padded, or one behind the other in one row.

    The targets are the answers' ids; a sequence of the layout is a conversation. The last id predicts nothing.
    """
    inputs = [torch.tensor(conversation.ids[:-1], dtype=torch.long) for conversation in conversations]
    lengths = [len(ids) for ids in inputs]
    if batching == "padded":
        token_ids = pad_sequence(inputs, batch_first=True)
        starts, position_ids, spans = [row * max(lengths) for row in range(len(inputs))], None, None
    else:
        token_ids = torch.cat(inputs)[None]
        starts = [0, *itertools.accumulate(lengths)][:-1]
        position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
        spans = tuple((length, ()) for length in lengths)
    learned = [
        [place for start, stop in conversation.answers for place in range(start, stop)]
        for conversation in conversations
    ]
    counted = torch.tensor([len(places) for places in learned])
    return Layout(
        token_ids=token_ids,
        position_ids=position_ids,
        spans=spans,
        predicting=torch.tensor(
            [first + place - 1 for first, places in zip(starts, learned, strict=True) for place in places]
        ),
        targets=torch.tensor(
            [one.ids[place] for one, places in zip(conversations, learned, strict=True) for place in places]
        ),
        owner=torch.arange(len(inputs)).repeat_interleave(counted),
        lengths=counted,
    )
