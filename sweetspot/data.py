"""Data: prompts as messages, one part to train on and one part held out, never mixed."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from sweetspot.component import component, runtime
from sweetspot.schema import PROMPTS, prompt_id
from sweetspot.visible import encodable, halves

IMPORTED_BLOCK = 64  # samples per prompt in a tile of an imported pool
IMPORTED_PROMPTS = "prompts.parquet"  # beside the tiles of an imported pool: its prompts, in the tiles' order
ROLES = ("system", "user", "assistant")


class Row(NamedTuple):
    """A prompt as it was read. halves: its texts that held half a surrogate pair and were changed."""

    source: str
    messages: list[dict[str, str]]
    halves: int = 0


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts of a run.

    Attributes:
        train: PROMPTS table that pairs are made of.
        held_out: PROMPTS table that only evaluation sees.
        duplicates: rows left out because an earlier row, or a held-out one, has the same messages.
        pool: key of the imported pool that holds the samples of `train`; None where they are to be drawn.
        halves: texts of the rows that held half a surrogate pair, which stands there as its escape.
    """

    train: pa.Table
    held_out: pa.Table
    duplicates: int
    pool: str | None = None
    halves: int = 0


@runtime_checkable
class Data(Protocol):
    """Where prompts come from."""

    def load(self) -> Prompts:
        """The prompts, in an order that does not depend on the limits."""
        ...


@component
class Embedded:
    """The package's own short everyday instructions, which a 135M model can attempt."""

    version: ClassVar[int] = 1
    limit: int | None = Field(ge=1)
    held_out_limit: int | None = Field(ge=1)

    def load(self) -> Prompts:
        """The prompts of `embedded/prompts.jsonl`; the held-out part is fixed there."""
        lines = (Path(__file__).parent / "embedded" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        parts: dict[str, list[Row]] = {"train": [], "held_out": []}
        for number, row in enumerate(rows, start=1):
            parts[row["split"]].append(Row(f"embedded:{number}", [{"role": "user", "content": row["prompt"]}]))
        return _prompts(parts["train"], parts["held_out"], self.limit, self.held_out_limit)


@component
class LocalFile:
    """Prompts of a local JSONL or Parquet file.

    A row has `messages` (a list of {role, content}, the last turn the user's) or `prompt` (text, or such a list).
    Where no second file is given, a fixed share is held out by the hash of the messages: adding rows moves no prompt
    to the other part.
    """

    version: ClassVar[int] = 1
    path: str = Field(min_length=1)
    held_out_path: str | None
    held_out_share: float = Field(ge=0, lt=1)
    limit: int | None = Field(ge=1)
    held_out_limit: int | None = Field(ge=1)

    def load(self) -> Prompts:
        """The prompts of the file or files.

        Raises:
            ValueError: for a missing file, an unknown ending, or a bad row, which is named by its line.
        """
        train, held_out = _parts(list(_read(self.path, "data.path")), self.held_out_path, self.held_out_share)
        return _prompts(train, held_out, self.limit, self.held_out_limit)


@component
class Imported:
    """The prompts of a pool that `python -m sweetspot.store import` made; its responses are the run's samples.

    The held-out part is a second file, or a fixed share of the pool's prompts, whose responses are then not used.
    """

    version: ClassVar[int] = 1
    store: str = runtime(min_length=1)
    pool: str = Field(min_length=1)
    held_out_path: str | None
    held_out_share: float = Field(ge=0, lt=1)
    limit: int | None = Field(ge=1)
    held_out_limit: int | None = Field(ge=1)

    def load(self) -> Prompts:
        """The prompts of the pool.

        Raises:
            ValueError: when the store has no such imported pool.
        """
        file = Path(self.store) / "samples" / self.pool / IMPORTED_PROMPTS
        if not file.is_file():
            raise ValueError(
                f"data.pool must be the key of an imported pool, which `python -m sweetspot.store --store {self.store} "
                f"ls` lists, got {self.pool}"
            )
        rows = [Row(row["source"], row["messages"]) for row in pq.read_table(file, schema=PROMPTS).to_pylist()]
        train, held_out = _parts(rows, self.held_out_path, self.held_out_share)
        return dataclasses.replace(_prompts(train, held_out, self.limit, self.held_out_limit), pool=self.pool)


@component
class UltraFeedback:
    """The paper's prompts: `chosen` of HuggingFaceH4/ultrafeedback_binarized without its last turn."""

    version: ClassVar[int] = 1
    path: str = Field(min_length=1)
    revision: str | None
    split: str = Field(min_length=1)
    held_out_split: str = Field(min_length=1)
    shuffle_seed: int | None = Field(ge=0)
    limit: int | None = Field(ge=1)
    held_out_limit: int | None = Field(ge=1)

    def load(self) -> Prompts:
        """The prompts through `datasets` (hub or local cache), shuffled by `shuffle_seed` before the limit."""
        train, held_out = self._rows(self.split), self._rows(self.held_out_split)
        return _prompts(list(train), list(held_out), self.limit, self.held_out_limit)

    def _rows(self, split: str) -> Iterator[Row]:
        from datasets import load_dataset

        rows: Any = load_dataset(self.path, split=split, revision=self.revision)
        if self.shuffle_seed is not None:
            rows = rows.shuffle(seed=self.shuffle_seed)
        for number, row in enumerate(rows):
            where = f"data.path: {self.path} {split} row {number}"
            yield Row(f"{self.path}:{split}:{number}", messages_of(row["chosen"][:-1], where))


def _parts(rows: list[Row], held_out_path: str | None, held_out_share: float) -> tuple[list[Row], list[Row]]:
    """The rows to train on and those held out: a second file, or a share of the rows by the hash of the messages."""
    if held_out_path is not None:
        return rows, list(_read(held_out_path, "data.held_out_path"))
    bound = int(held_out_share * 2**64)
    held_out = [row for row in rows if int(prompt_id(row.messages), 16) < bound]
    return [row for row in rows if int(prompt_id(row.messages), 16) >= bound], held_out


def _prompts(train: Sequence[Row], held_out: Sequence[Row], limit: int | None, held_out_limit: int | None) -> Prompts:
    """Both parts without duplicates, the held-out one having the first right to a prompt, then cut to their limits."""
    seen: set[str] = set()
    held = _table(held_out, seen)
    kept = _table(train, seen)
    if kept.num_rows == 0:
        found = f"{len(train) + len(held_out)} rows, {held.num_rows} of them held out"
        raise ValueError(f"data: the data set must hold a prompt to train on, got {found}")
    duplicates = len(train) + len(held_out) - kept.num_rows - held.num_rows
    changed = sum(row.halves for row in (*train, *held_out))
    return Prompts(kept.slice(0, limit), held.slice(0, held_out_limit), duplicates, halves=changed)


def _table(rows: Iterable[Row], seen: set[str]) -> pa.Table:
    kept: list[dict[str, Any]] = []
    for source, messages, _ in rows:
        name = prompt_id(messages)
        if name not in seen:
            seen.add(name)
            kept.append({"prompt_id": name, "messages": messages, "source": source})
    return pa.Table.from_pylist(kept, schema=PROMPTS)


def _read(path: str, at: str) -> Iterator[Row]:
    """The prompts of a JSONL or Parquet file with their messages checked, halves of surrogate pairs as escapes."""
    for number, row in read_rows(path, at):
        where = f"{at}: {path} line {number}"
        if not isinstance(row, dict) or not ({"messages", "prompt"} & row.keys()):
            raise ValueError(f"{where} must be an object with `messages` or `prompt`, got {str(row)[:80]}")
        given = row.get("prompt") if row.get("messages") is None else row["messages"]
        yield Row(f"{Path(path).name}:{number}", messages_of(encodable(given), where), halves(given))


def read_rows(path: str, at: str) -> Iterator[tuple[int, Any]]:
    """The rows of a JSONL or Parquet file with their line numbers, which start at 1; `at` names the config key."""
    readers: dict[str, Callable[[Path, str], Iterator[tuple[int, Any]]]] = {".jsonl": _jsonl, ".parquet": _parquet}
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{at} must be an existing file, got {path}")
    if file.suffix not in readers:
        raise ValueError(f"{at} must end in {' or '.join(readers)}, got {path}")
    yield from readers[file.suffix](file, at)


def _jsonl(file: Path, at: str) -> Iterator[tuple[int, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")  # some editors put a mark before line 1
                row = json.loads(text) if text.strip() else None
            except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
                raise ValueError(f"{at}: {file} line {number} must be JSON in UTF-8, got {error}") from None
            if text.strip():
                yield number, row


def _parquet(file: Path, at: str) -> Iterator[tuple[int, Any]]:
    try:
        rows = pq.read_table(file).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{at}: {file} is not a Parquet file ({str(error).splitlines()[0]})") from None
    yield from enumerate(rows, start=1)


def messages_of(value: Any, where: str) -> list[dict[str, str]]:
    """The messages of a row's prompt; plain text is one turn of the user."""
    turns = turns_of([{"role": "user", "content": value}] if isinstance(value, str) else value, where)
    if turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
        raise ValueError(f"{where}: the last message must be the user's and not empty, got {str(turns[-1])[:80]}")
    return turns


def turns_of(turns: Any, where: str) -> list[dict[str, str]]:
    """The turns of a conversation as plain messages, checked one by one."""
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: the prompt must be text or a list of messages, got {str(turns)[:80]}")
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise ValueError(
                f"{where}: a message must have a role of {', '.join(ROLES)} and text, got {str(turn)[:80]}"
            )
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]
