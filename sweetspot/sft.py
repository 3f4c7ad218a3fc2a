"""The settings of supervised fine-tuning (SFT), which makes a start model of a base model. `sweetspot.trainer.sft` runs
them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from sweetspot.component import component, field_identity, identity, runtime
from sweetspot.data import read_rows, turns_of
from sweetspot.dpo import check_steps, keeping_memory
from sweetspot.logger import warn
from sweetspot.model import Model
from sweetspot.visible import encodable, halves, halves_told

FILES = (".jsonl", ".parquet")
Messages = list[dict[str, str]]


@component
class Conversations:
    """Conversations to learn from: a JSONL or Parquet file, or a data set of the hub, with a column `messages`.

    It is a list of {role, content}; the assistant's turns are learned, the others are read.
    """

    version: ClassVar[int] = 1
    path: str = Field(min_length=1)
    revision: str | None
    split: str = Field(min_length=1)
    limit: int | None = Field(ge=1)

    @property
    def is_file(self) -> bool:
        """Whether the path is that of a file, so that `revision` and `split` say nothing."""
        return Path(self.path).suffix in FILES

    def identity(self) -> dict[str, Any]:
        """The content of the file, wherever it lies, or the data set, its revision and its part; and the limit."""
        plain, file = field_identity(self), Path(self.path).expanduser()
        if file.exists() and not (self.is_file and file.is_file()):
            raise ValueError(
                f"model.sft.data.path must be a file ending in {' or '.join(FILES)}, or a hub id, got {self.path}"
            )
        if not self.is_file:
            return plain
        if not file.exists():
            raise ValueError(f"model.sft.data.path must be an existing file or a hub id, got {self.path}")
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        return {"class": plain["class"], "version": plain["version"], "content": content, "limit": self.limit}

    def load(self) -> list[Messages]:
        """The conversations in the order of the rows, each with an answer of the assistant.

        Raises:
            ValueError: when there is none, or for a bad row, which is named by its number.
        """
        found: list[Messages] = []
        changed = 0
        for row, where in self._rows():
            found.append(conversation_of(encodable(row), where))
            changed += halves(row)
        for line in halves_told("model.sft.data", changed):
            warn(line)
        if not found:
            raise ValueError(f"model.sft.data.path must hold a conversation to learn from, {self.path} has no row")
        return found

    def _rows(self) -> Iterator[tuple[Any, str]]:
        read = read_rows(self.path, "model.sft.data.path") if self.is_file else self._hub_rows()
        for count, (number, row) in enumerate(read):
            if count == self.limit:
                return
            yield row, f"model.sft.data.path: {self.path} {'line' if self.is_file else 'row'} {number}"

    def _hub_rows(self) -> Iterator[tuple[int, Any]]:
        from datasets import load_dataset

        rows: Any = load_dataset(self.path, split=self.split, revision=self.revision)
        yield from enumerate(rows)


def conversation_of(row: Any, where: str) -> Messages:
    """The messages of a row up to the last answer of the assistant.

    Raises:
        ValueError: naming the row, when it has no messages or no answer to learn.
    """
    if not isinstance(row, dict) or row.get("messages") is None:
        raise ValueError(f"{where} must be an object with `messages`, got {str(row)[:80]}")
    turns = turns_of(row["messages"], where)
    last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is None or turns[0]["role"] == "assistant":
        roles = ", ".join(turn["role"] for turn in turns)
        raise ValueError(f"{where} must have an assistant's turn after another's, got turns of {roles}"[:400])
    return turns[: last + 1]


@component
class SFT:
    """Supervised fine-tuning with AdamW: the negative log-likelihood of the assistant's turns, end of turn included,
    as a mean over these tokens in an optimizer step.

    A turn is never cut: a conversation longer than `max_tokens` loses its last turns, and is dropped where its first
    answer does not fit. `chat_template` (Jinja, as text or in a file; null = the tokenizer's own) and `eos_token`
    (which the template puts after an answer; null = the tokenizer's own) are written into the tokenizer that is saved.
    """

    version: ClassVar[int] = 1
    data: Conversations
    chat_template: str | None
    eos_token: str | None
    learning_rate: float = Field(gt=0)
    schedule: Literal["linear", "cosine"]
    warmup_ratio: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    max_tokens: int = Field(ge=2)
    dtype: Literal["float64", "float32", "bfloat16"]
    autocast: Literal["bfloat16"] | None
    seed: int = Field(ge=0)
    batching: Literal["auto", "padded", "packed"] = runtime()
    matmul: Literal["auto", "onednn", "torch"] = runtime()
    device_batch_size: int = runtime(ge=1)
    gradient_checkpointing: bool = runtime()
    save_every: int = runtime(ge=1)
    save_total_limit: int = runtime(ge=1)

    def __post_init__(self) -> None:
        check_steps(self.batch_size, self.device_batch_size, self.dtype, self.autocast)
        self.template()

    def identity(self) -> dict[str, Any]:
        """The fields, a chat template by its text."""
        return {**field_identity(self), "chat_template": self.template()}

    def template(self) -> str | None:
        """The text of the chat template, or None where the tokenizer's own is kept.

        Raises:
            ValueError: when it is neither a Jinja text nor a file.
        """
        if self.chat_template is None or "{{" in self.chat_template or "{%" in self.chat_template:
            return self.chat_template
        file = Path(self.chat_template).expanduser()
        if not file.is_file():
            raise ValueError(f"chat_template must be a Jinja text or an existing file, got {self.chat_template!r}")
        return file.read_text(encoding="utf-8")

    def environment(self) -> dict[str, str]:
        """What a training worker needs in its environment."""
        return keeping_memory()


@component
class SftModel(Model):
    """A base model and the SFT that makes a model of it, which takes its place before anything is sampled."""

    sft: SFT

    def identity(self) -> dict[str, Any]:
        """The base model's, and the SFT."""
        return {**Model.identity(self), "sft": identity(self.sft)}

    def base(self) -> Model:
        """The base model alone."""
        names: Sequence[str] = ("name", "path", "revision", "system_prompt", "trust_remote_code")
        return Model(**{name: getattr(self, name) for name in names})

    def at(self, path: Path, name: str | None = None) -> Model:
        """The model that the SFT made, from its folder."""
        return self.base().at(path, name)
