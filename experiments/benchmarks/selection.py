"""python experiments/benchmarks/selection.py [--rows 61000] [--n 400] [--repeats 7]

What selection costs beside one `np.sort`: the time of the paper's 21 pairs, each by its own call, and the memory that
they take above the rewards. The bar: less than 80 sorts and 1.5 GB on [61000, 400] float32.
"""

import argparse
import resource
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from sweetspot.strategy import PositionPair, paper_pairs


def main() -> None:
    """Print the ratio of every repeat's two neighbouring measurements, their median and spread, and the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=61_000, help="prompts (default: the paper's)")
    parser.add_argument("--n", type=int, default=400, help="samples per prompt")
    parser.add_argument("--repeats", type=int, default=7, help="how often sort and selection alternate")
    parser.add_argument("--missing", type=float, default=0.0, help="share of rewards that are NaN")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    rewards = rng.standard_normal((arguments.rows, arguments.n), dtype=np.float32)
    rewards[rng.random(rewards.shape, dtype=np.float32) < arguments.missing] = np.nan
    strategies = [PositionPair(chosen=chosen, rejected=rejected, ddof=1) for chosen, rejected in paper_pairs()]

    def select() -> None:
        for strategy in strategies:
            strategy(rewards)

    select()  # the first call of each function pays for its loading
    sorts, selections = [], []
    for _ in range(arguments.repeats):
        sorts.append(seconds(lambda: np.sort(rewards, axis=1)))
        selections.append(seconds(select))
    ratios = [selection / sort for selection, sort in zip(selections, sorts, strict=True)]
    print(
        f"rewards        {list(rewards.shape)} float32, {rewards.nbytes / 1e6:.0f} MB, {arguments.missing:.0%} missing"
    )
    print(f"one np.sort    {statistics.median(sorts):.4f} s ({min(sorts):.4f} to {max(sorts):.4f})")
    print(f"21 selections  {statistics.median(selections):.3f} s ({min(selections):.3f} to {max(selections):.3f})")
    print(f"ratio          {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}), bar 80")
    print(f"extra memory   {peak_bytes(select) / 1e6:.0f} MB, bar 1500 MB")
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KB on Linux
    print(f"process peak   {resident / 1e3:.0f} MB, with the rewards and one sort")


def seconds(work: Callable[[], object]) -> float:
    """The wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that Python and NumPy held at once during one call, above what they held before it."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


if __name__ == "__main__":
    main()
