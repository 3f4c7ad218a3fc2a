"""python experiments/benchmarks/sharing.py [--workers 4] [--prompts 32] [--n 32] [--tokens 32] [--model FOLDER]

Several worker processes that are started together on an empty pool, beside one alone: how often each tile is made,
whether the bytes are the same, and the wall time over the work divided by the cores. Work is the processor time that
all of them took, loading the model included; each has one thread. The bar: below 1.25.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweetspot.component import to_config
from sweetspot.embedded import smollm2
from sweetspot.model import Model
from sweetspot.sampler import TransformersSampler, blocks_for
from sweetspot.schema import PROMPTS, prompt_id


def main() -> None:
    """Print what the workers made, in which time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4, help="processes")
    parser.add_argument("--prompts", type=int, default=32, help="prompts")
    parser.add_argument("--n", type=int, default=32, help="samples per prompt")
    parser.add_argument("--tokens", type=int, default=16, help="longest response")
    parser.add_argument("--model", type=Path, help="folder of the model (default: the embedded one, converted first)")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or Path(scratch) / "model"
        if arguments.model is None:
            smollm2.main({"folder": str(folder)}, lambda _: None)
        turns = [[{"role": "user", "content": f"Tell me {n + 2} things about tea."}] for n in range(arguments.prompts)]
        rows = [{"prompt_id": prompt_id(turn), "messages": turn, "source": "benchmark"} for turn in turns]
        pq.write_table(pa.Table.from_pylist(rows, schema=PROMPTS), Path(scratch) / "prompts.parquet")
        jobs = {count: _job(Path(scratch), folder, count, arguments) for count in (1, arguments.workers)}
        for count, job in jobs.items():
            wall, work = together(job, count)
            made = Counter(event["made"] for event in _events(job, count) if "made" in event)
            print(
                f"{count} workers: {len(made)} tiles, each made {set(made.values())} times, wall {wall:.1f} s, work "
                f"{work:.1f} s, wall / (work / {min(cores, count)} cores) {wall / work * min(cores, count):.3f}",
                flush=True,
            )
        one, several = (
            {path.name: path.read_bytes() for path in Path(job["folder"]).iterdir()} for job in jobs.values()
        )
        print(f"the same bytes: {one == several}")


def _job(scratch: Path, model: Path, count: int, arguments: Any) -> dict[str, Any]:
    sampler = TransformersSampler(
        seed=0,
        temperature=0.8,
        top_p=1.0,
        max_tokens=arguments.tokens,
        max_prompt_tokens=192,
        dtype="float32",
        tile_prompts=4,
        tile_samples=8,
        budget="uniform",
        pilot_samples=16,
        mean_samples=None,
        gain_threshold=0.0,
        tail="upper",
        batch_size=32,
    )
    policy = Model(name="it", path=str(model), revision=None, system_prompt=None, trust_remote_code=False)
    return {
        "model": to_config(policy),
        "sampler": to_config(sampler),
        "prompts": str(scratch / "prompts.parquet"),
        "blocks": blocks_for(arguments.n, sampler),
        "folder": str(scratch / f"pool-{count}"),
        "probe": str(scratch / f"probe-{count}.json"),
        "lease_seconds": 60,
    }


def together(job: dict[str, Any], count: int) -> tuple[float, float]:
    """The wall time and the processor time of so many workers, from their start to the end of the last."""
    context = multiprocessing.get_context("spawn")
    before, started = _children(), time.monotonic()
    workers = [context.Process(target=work, args=(job, number)) for number in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError(f"a worker ended with code {worker.exitcode}")
    return time.monotonic() - started, _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def work(job: dict[str, Any], number: int) -> None:
    """One worker, in a process of its own."""
    import torch

    from sweetspot.sampler import worker

    torch.set_num_threads(1)
    with Path(f"{job['folder']}-{number}.jsonl").open("w", buffering=1) as file:
        worker.main(job, lambda event: file.write(json.dumps(event) + "\n") and None)


def _events(job: dict[str, Any], count: int) -> list[dict[str, Any]]:
    paths = [Path(f"{job['folder']}-{number}.jsonl") for number in range(count)]
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
