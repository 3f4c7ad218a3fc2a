"""Many conversations through a causal network: what they share is computed once, the rest in batches of like length."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import DynamicCache

from sweetspot.reward_model import batches

Row = tuple[list[int], list[int]]  # a beginning that other rows may share, and the rest; neither is empty
Read = Callable[[torch.Tensor, Any, torch.Tensor], torch.Tensor]
Made = TypeVar("Made")


class Budget:
    """How many tokens are computed together, padding counted. It halves when memory ends, and stays halved.

    Attributes:
        tokens: the budget of the next batch.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def batches(
        self, widths: Sequence[int], names: Sequence[str], work: Callable[[list[int]], Made]
    ) -> Iterator[tuple[list[int], Made]]:
        """Batches of rows, longest first, with what `work` made of each.

        Args:
            widths: tokens of each row.
            names: of the rows, for the error.
            work: computes one batch; tried again with half of the tokens when memory ends.

        Raises:
            MemoryError: when a row alone does not fit, naming it.
        """
        waiting = list(range(len(widths)))
        while waiting:
            batch = [waiting[place] for place in next(batches([widths[row] for row in waiting], self.tokens))]
            try:
                made = work(batch)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                made = None
            if made is None:  # not within `except`, whose traceback holds the tensors
                self._shrink(len(batch), widths[batch[0]], names[batch[0]])
                continue
            yield batch, made
            done = set(batch)
            waiting = [row for row in waiting if row not in done]

    def _shrink(self, rows: int, widest: int, name: str) -> None:
        if rows == 1:
            raise MemoryError(f"reward_model.max_tokens must leave room in memory: {name} has {widest} tokens alone")
        self.tokens = widest * rows // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ended: CUDA's own error, Python's, or the unnamed one of torch's allocator on processors."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


@dataclass(frozen=True)
class _Prefix:
    """Keys and values of every layer [beginnings, heads, P, width], mask [beginnings, P], last states [beginnings,
    hidden]."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    mask: torch.Tensor
    ends: torch.Tensor


class Decoder:
    """Hidden states of rows by a causal network whose layers all see the whole past.

    Args:
        network: without a head, on its device.
        batch_tokens: tokens computed at once, padding counted.
        every_layer: whether the readers need the states of every layer and not only the last.
    """

    def __init__(self, network: Any, batch_tokens: int, every_layer: bool) -> None:
        self.network, self.budget, self.every_layer = network, Budget(batch_tokens), every_layer

    def __call__(
        self, rows: Sequence[Row], names: Sequence[str], read: Read, progress: Callable[[int], None]
    ) -> np.ndarray:
        """What `read` makes of each row.  # [rows, k], float32; [0, 1] of no rows

        Args:
            rows: token ids; equal beginnings are computed once.
            names: of the rows, for the error of one that does not fit into memory.
            read: of a batch, (the last state of its beginnings [batch, hidden], the network's outputs over the rest,
                the lengths of the rest [batch]) -> [batch, k].
            progress: told how many rows each batch had.
        """
        members: dict[tuple[int, ...], list[int]] = {}
        for row, (beginning, _) in enumerate(rows):
            members.setdefault(tuple(beginning), []).append(row)
        beginnings = list(members)
        widths, firsts = list(map(len, beginnings)), [names[several[0]] for several in members.values()]
        found: dict[int, np.ndarray] = {}
        for some, prefix in self.budget.batches(
            widths, firsts, lambda some: self._begin([beginnings[number] for number in some])
        ):
            of_some = [(row, owner) for owner, number in enumerate(some) for row in members[beginnings[number]]]
            for batch, values in self._rests(prefix, rows, names, of_some, read):
                found |= zip(batch, values, strict=True)
                progress(len(batch))
        return np.stack([found[row] for row in range(len(rows))]) if rows else np.empty((0, 1), np.float32)

    def _rests(
        self, prefix: _Prefix, rows: Sequence[Row], names: Sequence[str], members: list[tuple[int, int]], read: Read
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """The rows of one prefix in batches; `members` are rows and the places of their beginnings in the prefix."""

        def work(batch: list[int]) -> np.ndarray:
            return self._batch(prefix, [members[m][1] for m in batch], [rows[members[m][0]][1] for m in batch], read)

        widths = [prefix.mask.shape[1] + len(rows[row][1]) for row, _ in members]
        for batch, values in self.budget.batches(widths, [names[row] for row, _ in members], work):
            yield [members[member][0] for member in batch], values

    @torch.inference_mode()
    def _begin(self, beginnings: list[tuple[int, ...]]) -> _Prefix:
        tokens, mask = padded(beginnings, self.network.device)  # [beginnings, P]
        cache: Any = DynamicCache()
        outputs = self.network(tokens, attention_mask=mask, past_key_values=cache, use_cache=True)
        ends = last(outputs.last_hidden_state, mask.sum(1))
        return _Prefix([(layer.keys, layer.values) for layer in cache.layers], mask, ends)

    @torch.inference_mode()
    def _batch(self, prefix: _Prefix, owners: list[int], rests: list[list[int]], read: Read) -> np.ndarray:
        owner = torch.tensor(owners, device=self.network.device)
        mask_before = prefix.mask[owner]  # [batch, P]
        tokens, mask = padded(rests, self.network.device)  # [batch, R]
        outputs = self.network(
            tokens,
            attention_mask=torch.cat([mask_before, mask], dim=1),  # the hole between a beginning and P stays masked
            position_ids=mask_before.sum(1, keepdim=True) + torch.arange(tokens.shape[1], device=tokens.device),
            past_key_values=DynamicCache([(keys[owner], values[owner]) for keys, values in prefix.layers]),
            use_cache=True,
            output_hidden_states=self.every_layer,
        )
        return read(prefix.ends[owner], outputs, mask.sum(1)).float().cpu().numpy()


def last(states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The state of each row's last token.  # [rows, width] of [rows, T, width] and [rows]"""
    return states[torch.arange(len(states), device=states.device), lengths - 1]


def padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows as one tensor, filled up on the right, and the mask of what is theirs.  # both [rows, longest]"""
    width = max(len(ids) for ids in rows)
    tokens = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in rows], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in rows], device=device)
    return tokens, mask


def split(rows: Sequence[list[int]], groups: Sequence[Hashable]) -> list[Row]:
    """Each row cut after the beginning that all rows of its group share: at least one token, and not the last."""
    members: dict[Hashable, list[list[int]]] = {}
    for ids, group in zip(rows, groups, strict=True):
        members.setdefault(group, []).append(ids)
    cuts = {group: _shared(several) if len(several) > 1 else 1 for group, several in members.items()}
    return [(ids[: cuts[group]], ids[cuts[group] :]) for ids, group in zip(rows, groups, strict=True)]


def _shared(rows: list[list[int]]) -> int:
    first, latest = min(rows), max(rows)  # in dictionary order, so that what these two share all share
    common = next((place for place, (a, b) in enumerate(zip(first, latest, strict=False)) if a != b), len(first))
    return max(1, min(common, min(map(len, rows)) - 1))


def sees_the_whole_past(config: Any) -> bool:
    """Whether every layer attends to all that was before, so that a cache of the beginning is all it needs."""
    text = config.get_text_config()
    types = getattr(text, "layer_types", None)
    if types is not None:
        return set(types) == {"full_attention"}
    return getattr(text, "sliding_window", None) is None
