"""Rows of files made elsewhere: where prompt, responses and rewards stand, and what is wrong with a row.

Known shapes, all of them one JSON object (or Parquet row) for each prompt unless said otherwise:

    prompt       all_generated_responses  all_rm_scores   SimPO's on_policy_data_gen
    instruction  output                   scores          sample_ultra.py and reward_batch.py of DPO_Pair, the authors'
                                                          *_sample sets; the prompt is rendered by a chat template
    instruction  generations              ratings         distilabel (UltraFeedback task)
    messages     (its last turn)          score           open-instruct's rejection sampling: one row for each response
    prompt or messages  responses         rewards or scores
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sweetspot.schema import prompt_id
from sweetspot.visible import encodable, halves

LAST_TURN = "messages[-1]"  # stands for a responses field: the assistant's last turn of each row
LARGEST = float(np.finfo(np.float32).max)  # rewards are stored as float32; NaN is not below it either
BATCH = 256  # Parquet rows in memory at once

Messages = list[dict[str, str]]
ReadPrompt = Callable[[Any, str], Messages]  # the messages of a prompt's value; the text says where it stands


@dataclass(frozen=True)
class Fields:
    """The columns of a file. `rewards` is None where there are none; "a.b" is field b of the object in field a."""

    prompt: str
    responses: str
    rewards: str | None


SHAPES = (
    Fields("prompt", "all_generated_responses", "all_rm_scores"),
    Fields("instruction", "output", "scores"),
    Fields("instruction", "generations", "ratings"),
    *(Fields(prompt, "responses", rewards) for prompt in ("prompt", "messages") for rewards in ("rewards", "scores")),
    Fields("messages", LAST_TURN, "score"),
)


@dataclass(frozen=True)
class Row:
    """One prompt with its responses, in the file's order. rewards: one for each response, or None. halves: its texts
    that held half a surrogate pair, which stands there as its escape."""

    source: str
    prompt_id: str
    messages: Messages
    responses: list[str]
    rewards: list[float] | None
    halves: int = 0


@dataclass(frozen=True)
class Unreadable:
    """What stands where a row should, and is none."""

    reason: str


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be imported: where it stands, and why, in one line."""

    line: str


def fields_of(files: Sequence[Path], asked: dict[str, str | None]) -> Fields:
    """The columns of the files: those that were asked for, the others by the first known shape of the first row.

    Args:
        asked: "prompt", "responses" and "rewards", each a column or None.

    Raises:
        ValueError: naming the columns that there are, when no known shape fits.
    """
    first = next((row for _, row in read(files) if isinstance(row, dict)), None)
    if first is None:
        raise ValueError(f"import: no row of {', '.join(map(str, files))} is an object with named fields")
    known = [shape for shape in SHAPES if _fits(shape, first, asked)]
    if not known and not (asked["prompt"] and asked["responses"]):
        raise ValueError(
            f"import: the fields {', '.join(first)} are of no known shape; name them with --prompt-field and "
            "--responses-field (and --rewards-field)"
        )
    guess = min(known, key=lambda shape: not _has(first, shape.rewards)) if known else Fields("", "", None)
    rewards = guess.rewards if _has(first, guess.rewards) else None
    return Fields(asked["prompt"] or guess.prompt, asked["responses"] or guess.responses, asked["rewards"] or rewards)


def _fits(shape: Fields, row: dict[str, Any], asked: dict[str, str | None]) -> bool:
    if shape.responses == LAST_TURN:
        turns = row.get("messages")
        return isinstance(turns, list) and bool(turns) and _role(turns[-1]) == "assistant"
    return (bool(asked["prompt"]) or shape.prompt in row) and (bool(asked["responses"]) or shape.responses in row)


def _role(turn: Any) -> Any:
    return turn.get("role") if isinstance(turn, dict) else None


def _has(row: dict[str, Any], name: str | None) -> bool:
    return name is not None and _value(row, name) is not None


def _value(row: dict[str, Any], name: str) -> Any:
    """Field `name`, or field b of the object in field a for the name "a.b"; None where there is none."""
    outer, _, inner = name.partition(".")
    nested = row.get(outer)
    return row[name] if name in row else nested.get(inner) if isinstance(nested, dict) else None


def rows_of(files: Sequence[Path], fields: Fields, read_prompt: ReadPrompt) -> Iterator[Row | BadRow]:
    """The rows of the files in their order, each whole or with what is wrong with it.

    A prompt that comes again is wrong: which of its responses belong together is not for an import to guess. Rows of
    one response each are joined while they follow one another.
    """
    seen: dict[str, str] = {}
    parsed = (_parsed(where, row, fields, read_prompt) for where, row in read(files))
    for row in _joined(parsed) if fields.responses == LAST_TURN else parsed:
        if isinstance(row, Row):
            before = seen.setdefault(row.prompt_id, row.source)
            if before != row.source:
                yield BadRow(f"{row.source}: its prompt is that of {before}; a prompt must come once")
                continue
        yield row


def _parsed(where: str, row: Any, fields: Fields, read_prompt: ReadPrompt) -> Row | BadRow:
    try:
        if isinstance(row, Unreadable):
            raise ValueError(f"{where}: {row.reason}")
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a row must be an object with named fields, got {_short(row)}")
        if fields.responses == LAST_TURN:
            prompt, responses = _last_turn(where, row)
        else:
            prompt, responses = _value(row, fields.prompt), _value(row, fields.responses)
        messages = read_prompt(encodable(prompt), where)
        texts = _texts(where, fields.responses, encodable(responses))
        rewards = None if fields.rewards is None else _rewards(where, fields, _value(row, fields.rewards), len(texts))
        return Row(where, prompt_id(messages), messages, texts, rewards, halves([prompt, responses]))
    except ValueError as error:
        return BadRow(" ".join(str(error).split()))


def _last_turn(where: str, row: dict[str, Any]) -> tuple[Any, Any]:
    turns = row.get("messages")
    if not isinstance(turns, list) or len(turns) < 2 or _role(turns[-1]) != "assistant":
        raise ValueError(f"{where}: messages must end with the assistant's turn, got {_short(turns)}")
    return turns[:-1], [turns[-1].get("content")]


def _texts(where: str, name: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: {name} must be a list of texts, got {_short(value)}")
    if not value:
        raise ValueError(f"{where}: {name} must hold a response, got an empty list")
    for place, text in enumerate(value):
        if not isinstance(text, str):
            raise ValueError(f"{where}: {name}[{place}] must be text, got {_short(text)}")
    return value


def _rewards(where: str, fields: Fields, value: Any, responses: int) -> list[float]:
    name = fields.rewards
    if fields.responses == LAST_TURN:
        if isinstance(value, dict) and len(value) != 1:
            raise ValueError(f"{where}: {name} holds {len(value)} scores; choose one: --rewards-field {name}.NAME")
        value = list(value.values()) if isinstance(value, dict) else [value]
    if not isinstance(value, list):
        raise ValueError(f"{where}: {name} must be a list of numbers, got {_short(value)}")
    if len(value) != responses:
        raise ValueError(f"{where}: {name} must be as many as the {responses} responses, got {len(value)}")
    for place, number in enumerate(value):
        if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= LARGEST:
            raise ValueError(f"{where}: {name}[{place}] must be a finite number, got {_short(number)}")
    return [float(number) for number in value]


def _joined(rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
    """Neighbouring rows of one prompt as one row."""
    numbered = enumerate(rows)
    groups = itertools.groupby(numbered, lambda pair: pair[1].prompt_id if isinstance(pair[1], Row) else pair[0])
    for _, group in groups:
        together = [row for _, row in group]
        kept = [row for row in together if isinstance(row, Row)]
        if not kept:
            yield from together
            continue
        responses = [text for row in kept for text in row.responses]
        rewards = [number for row in kept for number in row.rewards or []]
        yield Row(
            kept[0].source,
            kept[0].prompt_id,
            kept[0].messages,
            responses,
            rewards if kept[0].rewards is not None else None,
            sum(row.halves for row in kept),
        )


def read(files: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """(where, row) of every row, numbered from 1 in each file; what is no JSON comes as `Unreadable`.

    Raises:
        ValueError: for a missing file, an unknown ending, or a file that is not of its kind.
    """
    readers = {".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}
    for file in files:
        if not file.is_file():
            raise ValueError(f"import: FILE must be an existing file, got {file}")
        if file.suffix not in readers:
            raise ValueError(f"import: FILE must end in {', '.join(readers)}, got {file}")
        for number, row in readers[file.suffix](file):
            yield f"{file.name} row {number}", row


def _json(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        rows = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"import: {file} is not JSON ({error})") from None
    if not isinstance(rows, list):
        raise ValueError(f"import: {file} must hold a list of objects, got {_short(rows)}")
    yield from enumerate(rows, start=1)


def _jsonl(file: Path) -> Iterator[tuple[int, Any]]:
    """The rows of the lines that are not empty, with the number of the line."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    row = Unreadable(f"the line is not JSON ({error})")
                yield number, row


def _parquet(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        with pq.ParquetFile(file) as rows:
            yield from enumerate((row for batch in rows.iter_batches(BATCH) for row in batch.to_pylist()), start=1)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"import: {file} is not a Parquet file ({str(error).splitlines()[0]})") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
