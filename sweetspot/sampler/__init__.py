"""Samplers: from prompts to samples, tile by tile, each in its own process.

A tile is `tile_prompts` prompts x `tile_samples` samples and one engine call, so that its batch, and with it its text,
can be made again. Sample i of prompt p has the seed H(seed, prompt_id) + i: any cut into tiles gives the same seeds, a
pool of 400 holds the pool of 64, and two top-ups never overlap.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field

from sweetspot.component import component, runtime
from sweetspot.model import Model

SEED_BITS = 62  # seed + sample_index stays within int64


@dataclass(frozen=True)
class Response:
    """One sampled response: its ids (end-of-turn included), why it ended, and its untempered log-probability in
    nats."""

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    logprob: float


class Engine(Protocol):
    """A loaded model that samples."""

    def __call__(self, prompts: list[list[int]], seeds: list[int], n: int) -> list[list[Response]]:
        """The n responses of each prompt.

        Args:
            prompts: token ids of each prompt.
            seeds: of the first response of each prompt; response i takes seed + i.
            n: responses per prompt.
        """
        ...


@component
class Sampler:
    """What decides the samples, whatever engine draws them."""

    version: ClassVar[int] = 1
    seed: int = Field(ge=0)
    temperature: float
    top_p: float = Field(gt=0, le=1)
    max_tokens: int = Field(ge=1)
    max_prompt_tokens: int = Field(ge=1)
    dtype: Literal["bfloat16", "float16", "float32"]
    tile_prompts: int = Field(ge=1)
    tile_samples: int = Field(ge=1)

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be > 0 to draw distinct responses, got {self.temperature:g}")

    def environment(self) -> dict[str, str]:
        """What the worker needs in its environment before the engine is imported."""
        return {}

    def load(self, model: Model, ends: list[int], pad: int) -> Engine:
        """The model, loaded and ready to sample. Called in the worker only."""
        raise NotImplementedError


@component
class VllmSampler(Sampler):
    """vLLM, on GPUs and (its CPU build) on processors."""

    max_num_seqs: int = runtime(ge=1)
    gpu_memory_utilization: float = runtime(gt=0, le=1)
    kv_cache_gb: int = runtime(ge=1)
    enforce_eager: bool = runtime()
    tensor_parallel: int = runtime(ge=1)

    def environment(self) -> dict[str, str]:
        """That of every vLLM engine here."""
        return vllm_environment(self.kv_cache_gb)

    def load(self, model: Model, ends: list[int], pad: int) -> Engine:  # noqa: ARG002 - vLLM pads nothing
        """The vLLM engine.

        Raises:
            RuntimeError: when vLLM cannot run on this machine, naming the way out.
        """
        from sweetspot.sampler import vllm

        return vllm.load(self, model, ends)


def vllm_environment(kv_cache_gb: int) -> dict[str, str]:
    """What a vLLM engine runs in: one process, all given threads, kv_cache_gb of cache on processors, no call home."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gb),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }


@component
class TransformersSampler(Sampler):
    """`transformers` with per-sample random streams: slower, and it runs wherever torch does."""

    batch_size: int = runtime(ge=1)

    def load(self, model: Model, ends: list[int], pad: int) -> Engine:
        """The model in transformers."""
        from sweetspot.sampler import transformers

        return transformers.load(self, model, ends, pad)


@dataclass(frozen=True)
class Tile:
    """Rows [start, stop) of the prompts and samples [first, first + n) of each: one file, one engine call."""

    name: str
    start: int
    stop: int
    first: int
    n: int


def tiles(prompt_ids: Sequence[str], n_samples: int, sampler: Sampler) -> list[Tile]:
    """The tiles that hold the first n_samples of each prompt, the first block of all prompts before the second.

    A tile's name is made of the content of its prompt ids and its first sample, so that a smaller prompt set that
    begins alike shares tiles. The last block is made whole: its samples beyond n_samples wait for a larger n.
    """
    blocks = range(0, n_samples, sampler.tile_samples)
    return [tile for first in blocks for tile in _row_of_tiles(prompt_ids, first, sampler)]


def _row_of_tiles(prompt_ids: Sequence[str], first: int, sampler: Sampler) -> Iterator[Tile]:
    for start in range(0, len(prompt_ids), sampler.tile_prompts):
        stop = min(start + sampler.tile_prompts, len(prompt_ids))
        content = hashlib.sha256(",".join(prompt_ids[start:stop]).encode()).hexdigest()[:16]
        yield Tile(f"{content}-{first:05d}", start, stop, first, sampler.tile_samples)


def stream_seed(seed: int, prompt_id: str) -> int:
    """H(seed, prompt_id): the seed of a prompt's sample 0; sample i has this + i."""
    digest = hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def tile_config(tile: Tile, path: str) -> dict[str, Any]:
    """The tile as plain JSON for the worker's job."""
    return {"path": path, "start": tile.start, "stop": tile.stop, "first": tile.first, "n": tile.n}
