"""How prompts and responses are laid out for one forward pass: padded rows, or one row without padding.

The last token of a response predicts nothing that is asked for, so it is a target and never an input.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Group = tuple[list[int], list[list[int]]]  # ids of a prompt, and of the responses that continue it
Spans = tuple[tuple[int, tuple[int, ...]], ...]  # tokens of each group's prompt, and of its responses


@dataclasses.dataclass(frozen=True)
class Layout:
    """The inputs of a forward pass, and where each response token is predicted.

    Sequences are the responses, group by group.

    Attributes:
        token_ids: [rows, length], padded on the right with 0 where there are several rows.
        position_ids: [1, length] of a row of several sequences, each counting from its prompt's start; else None.
        spans: how that one row is cut, in the order of its tokens; None where each row is one sequence.
        predicting: [response tokens], the place in the flattened rows that predicts each.
        targets: [response tokens], their ids.
        owner: [response tokens], the sequence that each belongs to.
        lengths: [sequences], tokens of each response.
    """

    token_ids: Tensor
    position_ids: Tensor | None
    spans: Spans | None
    predicting: Tensor
    targets: Tensor
    owner: Tensor
    lengths: Tensor

    def to(self, device: torch.device) -> "Layout":
        """The same on a device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()
        }
        return Layout(**moved)


def padded(groups: Sequence[Group]) -> Layout:
    """One row a sequence, its prompt before it, all as long as the longest."""
    rows = [(prompt, response) for prompt, responses in groups for response in responses]
    ids = [torch.tensor((prompt + response)[:-1], dtype=torch.long) for prompt, response in rows]
    token_ids = pad_sequence(ids, batch_first=True)
    length = token_ids.shape[1]
    starts = [number * length + len(prompt) - 1 for number, (prompt, _) in enumerate(rows)]
    places = [list(range(start, start + len(response))) for start, (_, response) in zip(starts, rows, strict=True)]
    return Layout(token_ids, None, None, *_predictions(groups, places))


def packed(groups: Sequence[Group]) -> Layout:
    """All sequences one behind the other in one row, each with its own copy of the prompt."""
    return shared_prefix([(prompt, [response]) for prompt, responses in groups for response in responses])


def shared_prefix(groups: Sequence[Group]) -> Layout:
    """One row: every prompt once, its responses behind it, each of which continues the prompt alone."""
    ids: list[int] = []
    positions: list[int] = []
    places: list[list[int]] = []
    spans: list[tuple[int, tuple[int, ...]]] = []
    for prompt, responses in groups:
        last = len(ids) + len(prompt) - 1  # the prompt's last token predicts the first of every response
        ids += prompt
        positions += range(len(prompt))
        for response in responses:
            places.append([last, *range(len(ids), len(ids) + len(response) - 1)][: len(response)])
            ids += response[:-1]
            positions += range(len(prompt), len(prompt) + len(response[:-1]))
        spans.append((len(prompt), tuple(len(response[:-1]) for response in responses)))
    row, counted = torch.tensor([ids], dtype=torch.long), torch.tensor([positions], dtype=torch.long)
    return Layout(row, counted, tuple(spans), *_predictions(groups, places))


def _predictions(groups: Sequence[Group], places: list[list[int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`predicting`, `targets`, `owner` and `lengths`, given the predicting places of each sequence."""
    responses = [response for _, responses in groups for response in responses]
    lengths = torch.tensor([len(response) for response in responses])
    predicting = torch.tensor([place for sequence in places for place in sequence], dtype=torch.long)
    targets = torch.tensor([token for response in responses for token in response], dtype=torch.long)
    return predicting, targets, torch.arange(len(responses)).repeat_interleave(lengths), lengths


LAYOUTS: dict[str, Callable[[Sequence[Group]], Layout]] = {
    layout.__name__: layout for layout in (padded, packed, shared_prefix)
}
