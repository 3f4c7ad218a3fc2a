"""python experiments/benchmarks/store.py [--prompts 61000] [--n 400] [--shares 16 4 1] [--folder DIR]

What a pool of the paper's size costs before anything is made of it: the time and the peak memory of listing what is
missing and of reading the reward matrix, at 1/16, 1/4 and the full number of prompts. A synthetic pool with short texts
is written in the real format into a temporary folder (2 GB at full size) and each measurement is a process of its own.
The bars at full size: listing < 5 s, matrix < 10 s, each < 2 GB; and both grow with the number of tiles.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from sweetspot.model import Model
from sweetspot.schema import PROMPTS, REWARDS, SAMPLES
from sweetspot.stages import Rewards, Samples
from sweetspot.store import content_name, write_tile
from sweetspot.tile import Cover, Group, cut

TILE_PROMPTS, TILE_SAMPLES = 1024, 16
TOKENS = 8  # of a response
MODEL = Model(name="none", path="none", revision=None, system_prompt=None, trust_remote_code=False)


def main() -> None:
    """Print the table, or as the process of one measurement its two numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=61_000, help="prompts at full size (default: the paper's)")
    parser.add_argument("--n", type=int, default=400, help="samples per prompt")
    parser.add_argument("--shares", type=int, nargs="+", default=[16, 4, 1], help="what the prompts are divided by")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes (default: the system's)")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # what, folder, prompts
    arguments = parser.parse_args()
    if arguments.measure:
        what, folder, prompts = arguments.measure
        measure(what, Path(folder), int(prompts), arguments.n)
        return
    heads = ["prompts x n", "tiles", "written", "list", "list, cut otherwise", "matrix"]
    print("{:>14} {:>6} {:>9} {:>19} {:>19} {:>19}".format(*heads))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        for share in arguments.shares:
            prompts = arguments.prompts // share
            folder, started = Path(scratch) / str(share), time.perf_counter()
            tiles = write(folder, prompts, arguments.n)
            written = time.perf_counter() - started
            found = [_apart(what, folder, prompts, arguments.n) for what in ("list", "others", "matrix")]
            columns = " ".join(f"{seconds:8.2f} s {mb:5.0f} MB" for seconds, mb in found)  # 19 wide
            print(f"{prompts:>8} x {arguments.n} {tiles:>6} {written:>7.0f} s {columns}", flush=True)


def _apart(what: str, folder: Path, prompts: int, n: int) -> tuple[float, float]:
    """Seconds and peak MB of a measurement in a process of its own."""
    command = [sys.executable, __file__, "--n", str(n), "--measure", what, str(folder), str(prompts)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(told[0]), float(told[1])


def prompt_ids(count: int) -> list[str]:
    """Ids of the real length, the same at every size."""
    return [content_name([str(number)]) for number in range(count)]


def write(folder: Path, prompts: int, n: int) -> int:
    """A pool of samples and of rewards in the real format; returns the number of tiles of each."""
    ids, rng = prompt_ids(prompts), np.random.default_rng(0)
    groups = cut(ids, np.full(prompts, -(-n // TILE_SAMPLES)), TILE_PROMPTS, TILE_SAMPLES)
    for group in groups:
        own = [ids[row] for row in group.rows]
        samples, rewards = tables(own, group.first, rng)
        write_tile(folder / "samples" / f"{group.name}.parquet", samples, {"set_aside": {}}, own)
        write_tile(folder / "rewards" / f"{group.name}.parquet", rewards, {"truncated": 0}, own)
    return len(groups)


def tables(ids: list[str], first: int, rng: np.random.Generator) -> tuple[pa.Table, pa.Table]:
    """One tile of samples, and its rewards."""
    rows = len(ids) * TILE_SAMPLES
    tokens = rng.integers(0, 49_152, (rows, TOKENS), dtype=np.int32)
    places = {
        "prompt_id": np.repeat(np.array(ids), TILE_SAMPLES),
        "sample_index": np.tile(np.arange(first, first + TILE_SAMPLES, dtype=np.int32), len(ids)),
    }
    samples = {
        "response": [" ".join(map(str, row)) for row in tokens.tolist()],
        "token_ids": pa.ListArray.from_arrays(np.arange(0, rows * TOKENS + 1, TOKENS, dtype=np.int32), tokens.ravel()),
        "n_tokens": np.full(rows, TOKENS, dtype=np.int32),
        "finish_reason": ["stop"] * rows,
        "seed": rng.integers(0, 2**62, rows),
        "logprob": rng.standard_normal(rows, dtype=np.float32),
    }
    rewards = {"reward": rng.standard_normal(rows, dtype=np.float32), "heads": pa.nulls(rows, pa.list_(pa.float32()))}
    return pa.table({**places, **samples}, SAMPLES), pa.table({**places, **rewards}, REWARDS)


def measure(what: str, folder: Path, prompts: int, n: int) -> None:
    """Print the seconds and the peak MB of this process.

    list: what is missing of the pool, which is nothing. others: the same for the same prompts in another order, so that
    every tile is looked into. matrix: the rewards [prompts, n].
    """
    ids = prompt_ids(prompts)
    started = time.perf_counter()
    if what == "others":
        ids = ids[::-1]
    groups = cut(ids, np.full(prompts, -(-n // TILE_SAMPLES)), TILE_PROMPTS, TILE_SAMPLES)
    plan = Cover(folder / "samples").plan(ids, groups, TILE_SAMPLES, TILE_PROMPTS)
    if plan.missing:
        raise RuntimeError(f"{len(plan.missing)} tiles are missing")
    if what == "matrix":
        rewards_of(folder, ids, groups, n)
    seconds = time.perf_counter() - started
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)  # KB on Linux


def rewards_of(folder: Path, ids: list[str], groups: list[Group], n: int) -> None:
    """Read the whole matrix as a stage does."""
    prompts = pa.table({"prompt_id": ids, "messages": pa.nulls(len(ids), PROMPTS.field("messages").type)})
    plan = Cover(folder / "rewards").plan(ids, groups, TILE_SAMPLES, None)
    samples = Samples("pool", folder / "samples", prompts, folder / "prompts.parquet", plan.tiles, n, MODEL)
    matrix = Rewards("rewards", folder / "rewards", samples, plan.tiles).matrix()
    if not np.isfinite(matrix).all():
        raise RuntimeError("rewards are missing")


if __name__ == "__main__":
    main()
