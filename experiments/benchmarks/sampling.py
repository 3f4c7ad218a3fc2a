"""python experiments/benchmarks/sampling.py [--prompts 64] [--n 32] [--tokens 64] [--repeats 5] [--model FOLDER]
       [--transformers-prompts 8] [--without-tile-seeding]

What our sampling worker costs beside a bare vLLM script that makes the same requests of an engine with the same
settings, what a random stream per request costs beside one per tile, and how transformers compares. All alternate in
one process with their engines loaded and warm, and each time is divided by that of the bare script in the same round.
The bar: at most 5% over bare vLLM on 64 prompts x 32 samples x 64 tokens with the embedded model.

Ours and the bare script ask for the same samples. Seeding by tile and transformers draw others of other lengths, so it
is the time per token that is compared.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweetspot.embedded import smollm2
from sweetspot.model import Model, end_ids, load_tokenizer, prompt_ids
from sweetspot.sampler import TransformersSampler, VllmSampler, blocks_for, stream_seed
from sweetspot.sampler.worker import make_tiles
from sweetspot.schema import PROMPTS, prompt_id

Timed = tuple[float, int]  # seconds, tokens


def main() -> None:
    """Print each way's seconds, tokens per second, and ratio to the bare script with its spread over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64, help="prompts")
    parser.add_argument("--n", type=int, default=32, help="samples per prompt")
    parser.add_argument("--tokens", type=int, default=64, help="longest response")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--tile-prompts", type=int, default=64, help="prompts per tile; the embedded default has 16")
    parser.add_argument("--tile-samples", type=int, default=16, help="samples per prompt and tile")
    parser.add_argument(
        "--transformers-prompts", type=int, default=8, help="prompts that transformers samples; 0 = none"
    )
    parser.add_argument("--without-tile-seeding", action="store_true", help="leave out seeding=tile")
    parser.add_argument("--dtype", default="float32", help="of the weights")
    parser.add_argument("--model", type=Path, help="folder of the model (default: the embedded one, converted first)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or Path(scratch) / "model"
        if arguments.model is None:
            smollm2.main({"folder": str(folder)}, lambda _: None)
        model = Model(name="it", path=str(folder), revision=None, system_prompt=None, trust_remote_code=False)
        rounds = alternate(ways(arguments, model, Path(scratch)), arguments.repeats)
    size = f"{arguments.prompts} prompts x {arguments.n} x {arguments.tokens} tokens, {arguments.dtype}"
    print(f"{size}, tiles {arguments.tile_prompts} x {arguments.tile_samples}, {arguments.repeats} rounds")
    for name, line in report(rounds).items():
        print(f"{name:<24} {line}")


def ways(arguments: Any, model: Model, scratch: Path) -> dict[str, Callable[[int], Timed]]:
    """The ways to sample: each is given the number of the round, and tells its seconds and tokens."""
    common = settings(arguments)
    sampler = vllm_sampler(common)
    os.environ.update(sampler.environment())  # before vLLM is imported
    from sweetspot.sampler import vllm

    tokenizer = load_tokenizer(model)
    ends = end_ids(model, tokenizer)
    prompts = _prompts(arguments.prompts)
    pq.write_table(prompts, scratch / "prompts.parquet")
    rendered = {row["prompt_id"]: prompt_ids(model, tokenizer, row["messages"]) for row in prompts.to_pylist()}
    engine = vllm.open_engine(sampler, model)

    def ours(setting: VllmSampler, number: int) -> Timed:
        pool = scratch / f"{setting.seeding}-{number}"
        job = {
            "prompts": str(scratch / "prompts.parquet"),
            "blocks": blocks_for(arguments.n, setting),
            "folder": str(pool),
            "lease_seconds": 60,
        }
        started = time.perf_counter()
        make_tiles(job, model, setting, tokenizer, lambda: vllm.sampling(engine, setting, ends), lambda _: None)
        seconds = time.perf_counter() - started
        return seconds, sum(sum(pq.read_table(path)["n_tokens"].to_pylist()) for path in pool.glob("*.parquet"))

    found: dict[str, Callable[[int], Timed]] = {
        "bare vLLM": lambda _: bare(engine, rendered, arguments.n, sampler, ends),
        "sweetspot": lambda number: ours(sampler, number),
    }
    if not arguments.without_tile_seeding:
        found["sweetspot, seeding=tile"] = lambda number: ours(replace(sampler, seeding="tile"), number)
    if arguments.transformers_prompts:
        slow = TransformersSampler(**common, batch_size=64).load(model, ends, int(tokenizer.pad_token_id or 0))
        few = dict(list(rendered.items())[: arguments.transformers_prompts])

        def by_transformers(_: int) -> Timed:
            started = time.perf_counter()
            drawn = slow(list(few.values()), [stream_seed(0, name) for name in few], arguments.n)
            return time.perf_counter() - started, sum(len(one.token_ids) for several in drawn for one in several)

        found["transformers.generate"] = by_transformers
    return found


def settings(arguments: Any) -> dict[str, Any]:
    """The fields that both samplers have."""
    return {
        "seed": 0,
        "temperature": 0.8,
        "top_p": 1.0,
        "max_tokens": arguments.tokens,
        "max_prompt_tokens": 192,
        "dtype": arguments.dtype,
        "tile_prompts": arguments.tile_prompts,
        "tile_samples": arguments.tile_samples,
        "budget": "uniform",
        "pilot_samples": 16,
        "mean_samples": None,
        "gain_threshold": 0.0,
        "tail": "upper",
    }


def vllm_sampler(common: dict[str, Any]) -> VllmSampler:
    """Our sampler as it is measured; the bare script has its engine."""
    return VllmSampler(
        **common,
        seeding="request",
        quantization=None,
        kv_cache_dtype="auto",
        adapter=None,
        max_num_seqs=256,
        gpu_memory_utilization=0.9,
        kv_cache_gb=2,
        prefix_caching=True,
        chunked_prefill=None,
        enforce_eager=True,
        tensor_parallel=1,
    )


def _prompts(count: int) -> pa.Table:
    turns = [[{"role": "user", "content": f"Tell me {number + 2} things about the sea."}] for number in range(count)]
    rows = [{"prompt_id": prompt_id(turn), "messages": turn, "source": "benchmark"} for turn in turns]
    return pa.Table.from_pylist(rows, schema=PROMPTS)


def bare(engine: Any, rendered: dict[str, list[int]], n: int, sampler: VllmSampler, ends: list[int]) -> Timed:
    """The requests as a script would make them: all in one call, nothing written."""
    from vllm import SamplingParams

    engine.reset_prefix_cache()
    started = time.perf_counter()
    settings = [
        SamplingParams(
            n=n,
            seed=stream_seed(sampler.seed, name),
            temperature=sampler.temperature,
            top_p=sampler.top_p,
            max_tokens=sampler.max_tokens,
            stop_token_ids=ends,
            logprobs=0,
        )
        for name in rendered
    ]
    results = engine.generate([{"prompt_token_ids": ids} for ids in rendered.values()], settings, use_tqdm=False)
    tokens = sum(len(output.token_ids) for result in results for output in result.outputs)
    return time.perf_counter() - started, tokens


def alternate(found: dict[str, Callable[[int], Timed]], repeats: int) -> dict[str, list[Timed]]:
    """Every way once a round, after a round that warms them up and does not count."""
    rounds: dict[str, list[Timed]] = {name: [] for name in found}
    for number in range(-1, repeats):
        for name, way in found.items():
            timed = way(number)
            if number >= 0:
                rounds[name].append(timed)
                print(f"round {number} {name}: {timed[0]:.2f} s, {timed[1]} tokens", flush=True)
    return rounds


def report(rounds: dict[str, list[Timed]]) -> dict[str, str]:
    """A line for each way: median seconds, tokens/s, and the time per token over the bare script's, with its range."""
    lines: dict[str, str] = {}
    for name, timed in rounds.items():
        ratios = [(s / t) / (s0 / t0) for (s, t), (s0, t0) in zip(timed, rounds["bare vLLM"], strict=True)]
        rate = statistics.median(tokens / seconds for seconds, tokens in timed)
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        seconds = statistics.median(seconds for seconds, _ in timed)
        lines[name] = f"{seconds:7.2f} s {rate:7.0f} tokens/s, time per token / bare {spread}"
    return lines


if __name__ == "__main__":
    main()
