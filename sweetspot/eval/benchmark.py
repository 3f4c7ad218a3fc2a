"""What the benchmarks have in common."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from sweetspot.component import component, runtime
from sweetspot.eval.judge import Judge
from sweetspot.sampler import Sampler
from sweetspot.schema import prompt_id


@component
class Judged:
    """One response to each prompt, compared with a baseline's by a judge."""

    judge: Any  # a Judge
    sampler: Sampler
    limit: int | None = Field(ge=1)
    resamples: int = Field(ge=1000)
    max_cost: float | None = runtime(ge=0)

    def __post_init__(self) -> None:
        if not isinstance(self.judge, Judge):
            raise ValueError(f"judge must be a judge, got {type(self.judge).__name__}")


@dataclass(frozen=True)
class Baseline:
    """The prompts of a benchmark with the baseline's responses, in the benchmark's order."""

    generator: str
    instructions: list[str]
    outputs: list[str]
    whole: int  # prompts of the benchmark; fewer here is a part of it
    halves: int = 0  # texts that held half a surrogate pair, which stands there as its escape

    @property
    def prompt_ids(self) -> list[str]:
        """The prompts' ids."""
        return [prompt_id([{"role": "user", "content": text}]) for text in self.instructions]


def text_of(path: str | Path, at: str) -> str:
    """The text of a file, gunzipped where its name ends in .gz; `at` is the key that names it.

    Raises:
        ValueError: one line for a missing or unreadable file.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{at} must be an existing file, got {path}")
    try:
        content = file.read_bytes()
        return (gzip.decompress(content) if file.suffix == ".gz" else content).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{at} must be a text file, maybe gzipped, got {path} ({error})") from None
