"""The tables, column by column: the only place where a column is named.

Rows are joined by (prompt_id, sample_index), never by position, text or listing order.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sweetspot.component import canonical_json

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

PROMPTS = pa.schema(
    [
        ("prompt_id", pa.string()),  # first 16 hex digits of SHA-256 of the messages' canonical JSON
        ("messages", MESSAGES),  # the conversation so far; the last turn is the user's
        ("source", pa.string()),  # the data set and row it came from
    ]
)

SAMPLES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),  # 0 .. n-1; a pool of 400 contains the pool of 64 as its first 64
        ("response", pa.string()),  # decoded text without special tokens
        ("token_ids", pa.list_(pa.int32())),  # as sampled, the end-of-turn token included where there is one
        ("n_tokens", pa.int32()),  # length of token_ids
        ("finish_reason", pa.string()),  # "stop" (the end token was sampled) or "length" (cut at max_tokens)
        ("seed", pa.int64()),  # of this sample: H(seed, prompt_id) + sample_index; null where the response was imported
        ("logprob", pa.float32()),  # sum over the response, nats, untempered; null where the response was imported
    ]
)

REWARDS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("reward", pa.float32()),  # reward-model units; finite
        ("heads", pa.list_(pa.float32())),  # every objective where the model has several, else null
    ]
)

LOGPROBS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("logprob", pa.float64()),  # sum over the response's tokens given the prompt, nats
        ("n_tokens", pa.int32()),  # tokens summed over
    ]
)

PAIRS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("pair_index", pa.int32()),  # 0, 1, .. where a strategy gives several pairs for a prompt
        ("messages", MESSAGES),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("chosen_index", pa.int32()),  # sample_index of the chosen response
        ("rejected_index", pa.int32()),
        ("chosen_reward", pa.float32()),
        ("rejected_reward", pa.float32()),
        ("chosen_z", pa.float32()),  # (reward - mu) / sigma within the prompt's n rewards
        ("rejected_z", pa.float32()),
    ]
)

PAIRINGS = pa.schema(  # two responses to one prompt that a judge is to compare
    [
        ("prompt_id", pa.string()),
        ("instruction", pa.string()),  # the prompt's one turn
        ("response", pa.string()),  # of the policy
        ("baseline", pa.string()),
        ("preference", pa.float64()),  # for the policy's, where a reward model judged; else null
    ]
)

ORDERS = pa.list_(  # an order that a judge was shown two responses in
    pa.struct(
        [
            ("policy_first", pa.bool_()),
            ("preference", pa.float64()),  # for the policy's, 0 to 1
            ("weight", pa.float64()),  # of the verdict: 1, or what the benchmark gives a strong one
        ]
    )
)

SCORES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),  # policy and start are compared sample by sample, same seed
        ("response", pa.string()),  # of the policy
        ("baseline", pa.string()),  # of the start, or of the benchmark's baseline
        ("preference", pa.float64()),  # of the judge for the policy's response, 0 to 1: the weighted mean over orders
        ("orders", ORDERS),  # those it was shown in; null for a draw without asking, and for a reward model
        ("equal_length", pa.float64()),  # preference predicted at equal length, where LC is defined; else null
        ("reward", pa.float64()),  # of the policy's response, where the judge is a reward model; else null
        ("baseline_reward", pa.float64()),
    ]
)


CHECKED = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("response", pa.string()),
        ("instructions", pa.list_(pa.string())),  # that the prompt gives, by the checker's name
        ("strict", pa.list_(pa.bool_())),  # whether each is followed
        ("loose", pa.list_(pa.bool_())),  # the same without the first or last line, or asterisks
    ]
)


AGREEMENT = pa.schema(  # a reward model beside somebody's preference
    [
        ("source", pa.string()),  # of the preference
        ("prompt", pa.string()),
        ("chosen_reward", pa.float64()),
        ("rejected_reward", pa.float64()),
    ]
)


ACADEMIC = pa.schema(
    [
        ("task", pa.string()),  # by lm-eval's name
        ("metric", pa.string()),  # the first that the task lists, with its filter
        ("value", pa.float64()),
        ("standard_error", pa.float64()),  # as lm-eval gives it; null where it gives none
        ("fewshot", pa.int32()),  # solved documents before each
        ("n", pa.int32()),  # documents
    ]
)


def prompt_id(messages: Sequence[Mapping[str, Any]]) -> str:
    """The identity of a conversation: equal messages, equal id, whatever file or order they came in."""
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()[:16]
