"""Samplers: from prompts to samples, tile by tile, each in its own process.

A tile is `tile_prompts` prompts x `tile_samples` samples and one engine call, so that its batch, and with it its text,
can be made again. Sample i of prompt p has the seed H(seed, prompt_id) + i: any cut into tiles gives the same seeds, a
pool of 400 holds the pool of 64, and two top-ups never overlap. (`VllmSampler.seeding` can trade this for speed.)
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field

from sweetspot.budget import Adaptive
from sweetspot.budget.gain import Tail
from sweetspot.component import component, field_identity, runtime
from sweetspot.model import Model, folder_digest
from sweetspot.store import tile_name
from sweetspot.tile import Group, cut

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
            seeds: of the first response of each prompt, as `Sampler.seeds` gives them.
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
    budget: Literal["uniform", "adaptive"] = runtime()  # which samples are drawn, not what they are
    pilot_samples: int = runtime(ge=2)
    mean_samples: int | None = runtime(ge=2)
    gain_threshold: float = runtime(ge=0)
    tail: Tail = runtime()

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be > 0 to draw distinct responses, got {self.temperature:g}")

    def allocation(self, n_samples: int, chosen: str) -> Adaptive | None:
        """Who gets how many of at most n_samples, for strategies that choose the response at `chosen`; None = all get
        n_samples.

        Raises:
            ValueError: naming the setting that does not go with the others.
        """
        if self.budget == "uniform":
            return None
        if self.mean_samples is None or not self.pilot_samples <= self.mean_samples <= n_samples:
            raise ValueError(
                "sampler.mean_samples must lie between sampler.pilot_samples and n_samples with "
                f"sampler.budget=adaptive, got {self.mean_samples}, not in {self.pilot_samples} to {n_samples}"
            )
        adaptive = Adaptive(
            pilot=self.pilot_samples,
            mean_samples=self.mean_samples,
            max_samples=n_samples,
            threshold=self.gain_threshold,
            tail=self.tail,
        )
        adaptive.check(self.tile_samples, chosen)
        return adaptive

    @property
    def group(self) -> int:
        """GPUs that share one copy of the model."""
        return 1

    def environment(self) -> dict[str, str]:
        """What the worker needs in its environment before the engine is imported."""
        return {}

    def seeds(self, prompt_ids: Sequence[str], first: int, n: int) -> list[list[int]]:
        """The seeds of samples [first, first + n) of each prompt."""
        starts = [stream_seed(self.seed, prompt) + first for prompt in prompt_ids]
        return [list(range(start, start + n)) for start in starts]

    def load(self, model: Model, ends: list[int], pad: int) -> Engine:
        """The model, loaded and ready to sample. Called in the worker only."""
        raise NotImplementedError


@component
class VllmSampler(Sampler):
    """vLLM, on GPUs and (its CPU build) on processors.

    `seeding` says how samples are made repeatable. With `request` each has a random stream of its own, so it depends on
    its seed and, beyond rounding, on nothing else. With `tile` one stream serves the whole engine call, seeded by the
    tile: the tile comes out the same again, but a sample changes with what it is sampled beside. vLLM draws the noise
    of requests with streams of their own one after the other, of the others in one call, so `tile` is the faster, the
    more so the larger the batch and vocabulary; experiments/benchmarks/sampling.py measures by how much.
    """

    seeding: Literal["request", "tile"]
    quantization: str | None
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"]
    adapter: str | None
    max_num_seqs: int = runtime(ge=1)
    gpu_memory_utilization: float = runtime(gt=0, le=1)
    kv_cache_gb: int = runtime(ge=1)
    prefix_caching: bool = runtime()
    chunked_prefill: bool | None = runtime()
    enforce_eager: bool = runtime()
    tensor_parallel: int = runtime(ge=1)

    def identity(self) -> dict[str, Any]:
        """The fields, an adapter by the content of its weights."""
        if self.adapter is not None and not Path(self.adapter).is_dir():
            raise ValueError(f"sampler.adapter must be the folder of a LoRA adapter, got {self.adapter}")
        adapter = None if self.adapter is None else folder_digest(Path(self.adapter), "sampler.adapter")
        return {**field_identity(self), "adapter": adapter}

    @property
    def group(self) -> int:
        """GPUs that share one copy of the model."""
        return self.tensor_parallel

    def seeds(self, prompt_ids: Sequence[str], first: int, n: int) -> list[list[int]]:
        """The seeds of samples [first, first + n) of each prompt; with seeding=tile that of the tile for all."""
        if self.seeding == "request":
            return Sampler.seeds(self, prompt_ids, first, n)
        return [[stream_seed(self.seed, tile_name(prompt_ids, first))] * n] * len(prompt_ids)

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


def wanted(prompt_ids: Sequence[str], blocks: int | np.ndarray, sampler: Sampler) -> list[Group]:
    """What the tiles hold that make up a pool.

    Args:
        prompt_ids: of the prompts, in their order.
        blocks: of `tile_samples` samples, for each prompt [prompts] or the same for all.
    """
    uneven = np.broadcast_to(np.asarray(blocks), len(prompt_ids))
    return cut(prompt_ids, uneven, sampler.tile_prompts, sampler.tile_samples)


def blocks_for(n_samples: int, sampler: Sampler) -> int:
    """The blocks that hold the first n_samples. The last is made whole: what is beyond waits for a larger n."""
    return -(-n_samples // sampler.tile_samples)


def stream_seed(seed: int, prompt_id: str) -> int:
    """H(seed, prompt_id): the seed of a prompt's sample 0; sample i has this + i."""
    digest = hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)
