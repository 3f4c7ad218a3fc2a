"""python experiments/benchmarks/reuse.py [--prompts 61000] [--tokens 450]

What the paper's sweep draws from one pool, and what it would draw with a pool for each n: 6 sample counts, 21 pairs of
positions. A forecast by the code that cuts pools into tiles; tests/test_stages.py counts the same at toy size.
"""

import argparse

import numpy as np
from hydra import compose, initialize
from hydra.utils import instantiate

from sweetspot.sampler import Sampler, blocks_for
from sweetspot.strategy import PositionPair, paper_pairs

COUNTS = (5, 20, 60, 100, 200, 400)  # of the paper


def forecast(sampler: Sampler, counts: tuple[int, ...]) -> tuple[int, int]:
    """Samples per prompt that a sweep over the counts draws: from one pool, and with a fresh pool for each count."""
    drawn = [blocks_for(n, sampler) * sampler.tile_samples for n in counts]
    return max(drawn), sum(drawn)


def referenced(n: int, prompts: int = 1000, seed: int = 0) -> tuple[float, int]:
    """Responses per prompt whose reference log-probabilities the 21 pairs need at n samples: the mean, and the most.

    Rewards are drawn from a normal distribution; without sharing it would be two for each pair.
    """
    rewards = np.random.default_rng(seed).standard_normal((prompts, n))
    needed: list[set[int]] = [set() for _ in range(prompts)]
    for chosen, rejected in paper_pairs():
        selection = PositionPair(chosen=chosen, rejected=rejected)(rewards)
        for row, *ends in zip(selection.prompt, selection.chosen, selection.rejected, strict=True):
            needed[row].update(ends)
    counts = [len(one) for one in needed]
    return sum(counts) / prompts, max(counts)


def main() -> None:
    """Print the forecast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=61_000, help="prompts of the data set")
    parser.add_argument("--tokens", type=int, default=450, help="mean length of a response, an assumption")
    arguments = parser.parse_args()
    with initialize("../../conf", version_base="1.3"):
        sampler = instantiate(compose("config", ["experiment=paper_point"]).sampler)
    shared, fresh = forecast(sampler, COUNTS)
    pairs = len(COUNTS) * len(paper_pairs())
    print(f"n in {COUNTS} x {len(paper_pairs())} pairs of positions = {pairs} preference data sets")
    blocks = f"in whole blocks of {sampler.tile_samples}, {sum(COUNTS)} without"
    print(f"one pool for all      {shared:>5} samples a prompt")
    print(f"a fresh pool for each {fresh:>5} samples a prompt {blocks}")
    print(f"ratio                 {fresh / shared:.2f} ({sum(COUNTS) / max(COUNTS):.2f} without blocks)")
    saved = (fresh - shared) * arguments.prompts * arguments.tokens
    print(
        f"saved                 {saved:.2e} tokens for {arguments.prompts:,} prompts of {arguments.tokens} tokens each"
    )
    print("a second run          0 samples")
    unshared = 2 * len(paper_pairs())
    for n in COUNTS:
        mean, most = referenced(n)
        print(
            f"reference forwards    {mean:.2f} a prompt, {most} at most, for all pairs at n = {n}; {unshared} unshared"
        )


if __name__ == "__main__":
    main()
