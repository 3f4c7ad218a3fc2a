"""The pairs that are trained on, and how a step's pairs are cut into forward passes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from sweetspot.dpo import DPO
from sweetspot.logprob.layout import Group
from sweetspot.model import Model, prompt_ids


class Row(Protocol):
    """What a step is made of, a pair say, as far as its size goes."""

    def tokens(self) -> int:
        """The tokens of its sequences, a prompt counted in each."""
        ...

    def lengths(self) -> tuple[int, tuple[int, ...]]:
        """The tokens of what stands first, and of each response that continues it by itself."""
        ...

    def targets(self) -> int:
        """The tokens whose log-probabilities the loss reads."""
        ...


AnyRow = TypeVar("AnyRow", bound=Row)


@dataclass(frozen=True)
class TrainingPair:
    """One pair as it is trained on: ids as sampled, reference log-probabilities in nats (NaN without a reference)."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    reference_chosen: float
    reference_rejected: float

    def group(self) -> Group:
        """The pair as a prompt with its two responses, the chosen one first."""
        return self.prompt, [self.chosen, self.rejected]

    def tokens(self) -> int:
        """The tokens of its two sequences, the prompt counted in each."""
        return 2 * len(self.prompt) + self.targets()

    def lengths(self) -> tuple[int, tuple[int, int]]:
        """The tokens of the prompt, and of the chosen and the rejected response."""
        return len(self.prompt), (len(self.chosen), len(self.rejected))

    def targets(self) -> int:
        """The tokens of both responses."""
        return len(self.chosen) + len(self.rejected)


def split(rows: Sequence[Mapping[str, Any]], dpo: DPO) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The rows to train on, and those that `dpo.held_out_share` holds out, prompt by prompt.

    Raises:
        ValueError: when nothing is left to train on.
    """
    held_out = [row for row in rows if dpo.holds_out(row["prompt_id"])]
    kept = [row for row in rows if not dpo.holds_out(row["prompt_id"])]
    if rows and not kept:
        raise ValueError(
            f"dpo.held_out_share must leave pairs to train on, got {dpo.held_out_share}: all {len(rows)} go"
        )
    return kept, held_out


def training_pairs(
    rows: Sequence[Mapping[str, Any]], model: Model, tokenizer: Any, dpo: DPO
) -> tuple[list[TrainingPair], dict[str, int]]:
    """The pairs that fit, in the order of (prompt_id, pair_index), and how many were dropped as `too_long`.

    Raises:
        ValueError: when none fits, or a pair that fits lacks finite references though the loss reads them.
    """
    kept: list[TrainingPair] = []
    for row in sorted(rows, key=lambda row: (row["prompt_id"], row["pair_index"])):
        prompt = dpo.cut(prompt_ids(model, tokenizer, row["messages"]))
        if not (dpo.fits(prompt, row["chosen_ids"]) and dpo.fits(prompt, row["rejected_ids"])):
            continue
        references = (row["reference_chosen"], row["reference_rejected"])
        if not dpo.reference_free and not all(map(math.isfinite, references)):
            name = f"({row['prompt_id']}, {row['pair_index']})"
            raise ValueError(f"pairs: reference log-probabilities must be finite, got {references} for pair {name}")
        kept.append(TrainingPair(prompt, list(row["chosen_ids"]), list(row["rejected_ids"]), *references))
    if not kept:
        raise ValueError(f"pairs: none of the {len(rows)} pairs fits into dpo.max_tokens = {dpo.max_tokens}")
    return kept, {"too_long": len(rows) - len(kept)}


def shares(sizes: Sequence[int], ranks: int) -> list[int]:
    """The sizes of a step's parts when each batch is cut over the ranks: [5, 1] over 2 is [3, 2, 1, 0]."""
    return [size // ranks + (rank < size % ranks) for size in sizes for rank in range(ranks)]


def regroup(rows: Sequence[AnyRow], sizes: Sequence[int], batching: str) -> list[list[AnyRow]]:
    """An optimizer step's rows in parts of the given sizes, one a forward pass; which rows make the step stays.

    Padding wants rows of like length together. Without padding the parts are evened out in tokens instead, so that
    memory is: the longest row first, each to the part with the fewest tokens that has room.
    """
    ordered = sorted(rows, key=lambda row: row.tokens(), reverse=True)
    if batching == "padded":
        rest = iter(ordered)
        return [list(islice(rest, size)) for size in sizes]
    parts: list[list[AnyRow]] = [[] for _ in sizes]
    for row in ordered:
        room = [part for part, size in zip(parts, sizes, strict=True) if len(part) < size]
        min(room, key=lambda part: sum(one.tokens() for one in part)).append(row)
    return parts
