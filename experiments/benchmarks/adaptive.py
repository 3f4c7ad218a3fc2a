"""python experiments/benchmarks/adaptive.py [--matrix FILE.npy | --store STORE --rewards KEY] [--block 16]

What an adaptive budget saves, simulated from rewards that are all there: the mean chosen (best) reward of adaptive
sampling at several means of samples per prompt, beside the uniform n that reaches the same. The bar: as good as uniform
n = 64 with at most 65% of its samples. Without data the rewards are synthetic: `--shape normal` or `skewed`, with
log-normal sigmas.

A prompt's samples are exchangeable, so each figure is the mean over many random orders of its columns, and the uniform
curve is exact over all subsets. Intervals are 95% bootstrap intervals over prompts, of the adaptive and the uniform
result of the same prompts.
"""

import argparse
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.special import ndtr, polygamma, psi

from sweetspot.budget import Adaptive, allocate, drawn
from sweetspot.budget.gain import GRID, Tail, beliefs, best_of
from sweetspot.distribution import max_of_k_curve, moments

Floats = NDArray[np.float64]
UNIFORM = (16, 32, 48, 64, 96, 128)
MEANS = (24, 32, 40, 44, 48, 52, 56, 64)


@dataclass(frozen=True)
class Result:
    """Adaptive sampling at one mean number of samples: per prompt [prompts], averaged over the orders.

    chosen: the best reward drawn. counts: samples. rounds: the mean number of rounds. promised, realised: the expected
    and the true gain of all blocks after the pilot. excess: of the samples' variance over that of all, as a share.
    """

    chosen: Floats
    counts: Floats
    rounds: float
    promised: float
    realised: float
    excess: float


def main() -> None:
    """Print the uniform curve, the adaptive one and what it saves."""
    arguments = parsed()
    rewards = loaded(arguments)
    rewards = rewards[np.isfinite(rewards).all(axis=1)]
    prompts, n = rewards.shape
    sd = rewards.std(axis=1, ddof=1)
    print(f"rewards   {prompts} prompts x {n}; sd {sd.mean():.3f}, spread of log sd {np.log(sd[sd > 0]).std():.2f}")
    curve = best_of_subsets(rewards)  # [prompts, n]
    for k in (k for k in UNIFORM if k <= n):
        print(f"uniform   n {k:4d}  chosen {curve[:, k - 1].mean():+.4f}")
    means = [mean for mean in MEANS if mean >= arguments.pilot]
    results = [simulated(rewards, mean, arguments) for mean in means]
    resamples = np.random.default_rng(arguments.seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=2000)
    weights = np.vstack([np.ones(prompts), resamples]) / prompts  # [1 + 2000, prompts]; the first row is the estimate
    for result in results:
        used, equal = weights @ result.counts, equal_n(weights @ result.chosen, weights @ curve)
        print(
            f"adaptive  n {used[0]:6.1f}  chosen {result.chosen.mean():+.4f}  as uniform n {interval(equal, '.1f')}  "
            f"samples {interval(used / equal, '.1%')}  rounds {result.rounds:.1f}  "
            f"promised/realised gain {result.promised / result.realised:.2f}  bias of variance {result.excess:+.1%}"
        )
    print(f"uniform n {arguments.target} is reached with {interval(needed(results, curve, weights, arguments.target))}")
    least = bound(arguments.block, arguments.most, arguments.target)
    print(f"equal normal prompts, known beforehand, would need {least:.1%}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrix", type=Path, help="rewards [prompts, n], saved with np.save")
    parser.add_argument("--store", type=Path, help="a store that holds a complete pool")
    parser.add_argument("--rewards", help="key of the pool's rewards in the store (a folder of STORE/rewards)")
    parser.add_argument("--shape", choices=("normal", "skewed"), default="normal", help="of synthetic rewards")
    parser.add_argument("--prompts", type=int, default=1000, help="synthetic prompts")
    parser.add_argument("--spread", type=float, default=0.3, help="sd of log sigma of the synthetic prompts")
    parser.add_argument("--pilot", type=int, default=16, help="samples of every prompt")
    parser.add_argument("--block", type=int, default=16, help="samples per block (tile_samples)")
    parser.add_argument("--most", type=int, default=128, help="the most samples of one prompt")
    parser.add_argument("--tail", choices=("normal", "upper"), default="upper", help="model of high rewards")
    parser.add_argument("--target", type=int, default=64, help="the uniform n to be reached")
    parser.add_argument("--orders", type=int, default=50, help="random orders of the columns")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def loaded(arguments: argparse.Namespace) -> Floats:
    """The rewards [prompts, n] that the command line names; NaN where there is none."""
    if arguments.matrix:
        return np.load(arguments.matrix).astype(np.float64)
    if arguments.store:
        return from_store(arguments.store / "rewards" / arguments.rewards)
    rng = np.random.default_rng(arguments.seed)
    shape = (arguments.prompts, 2 * arguments.most)
    z = rng.standard_normal(shape)
    if arguments.shape == "skewed":  # the logarithm of a gamma variable: skew -.69, excess kurtosis .84 at k = 2.5
        z = (np.log(rng.gamma(2.5, size=shape)) - psi(2.5)) / np.sqrt(polygamma(1, 2.5))
    return rng.normal(size=(len(z), 1)) + np.exp(arguments.spread * rng.standard_normal((len(z), 1))) * z


def from_store(folder: Path) -> Floats:
    """The rewards of all tiles of a folder, prompts in the order of their ids."""
    tiles = [pq.read_table(path, columns=["prompt_id", "sample_index", "reward"]) for path in folder.glob("*.parquet")]
    table = pa.concat_tables(tiles)
    _, rows = np.unique(table["prompt_id"].to_numpy(), return_inverse=True)
    columns = table["sample_index"].to_numpy()
    matrix = np.full((rows.max() + 1, columns.max() + 1), np.nan)
    matrix[rows, columns] = table["reward"].to_numpy()
    return matrix


def best_of_subsets(rewards: Floats) -> Floats:
    """E[best of k] over all subsets of k of a prompt's rewards, for k = 1 .. n: [prompts, n]."""
    every = range(1, rewards.shape[1] + 1)
    return np.stack([max_of_k_curve(row[None], every, resamples=1).mean for row in rewards])


def simulated(rewards: Floats, mean: int, arguments: argparse.Namespace) -> Result:
    """Adaptive sampling from the complete rewards, averaged over random orders of each prompt's columns."""
    tail: Tail = arguments.tail
    most = min(arguments.most, rewards.shape[1] // arguments.block * arguments.block)
    budget = Adaptive(pilot=arguments.pilot, mean_samples=mean, max_samples=most, threshold=0.0, tail=tail)
    rng = np.random.default_rng(arguments.seed)
    found: list[tuple[Floats, Floats, int, float, float, float]] = []
    for _ in range(arguments.orders):
        shuffled = rng.permuted(rewards, axis=1)
        found.append(one_order(shuffled, budget, arguments.block))
    chosen, counts, rounds, promised, realised, excess = zip(*found, strict=True)
    return Result(
        np.mean(chosen, axis=0),
        np.mean(counts, axis=0),
        float(np.mean(rounds)),
        float(np.sum(promised)),
        float(np.sum(realised)),
        float(np.mean(excess)),
    )


def one_order(rewards: Floats, budget: Adaptive, block: int) -> tuple[Floats, Floats, int, float, float, float]:
    """Best reward and count of each prompt, rounds, promised and realised gain, excess of the variance."""
    history: list[NDArray[np.intp]] = []

    def read(counts: NDArray[np.intp]) -> Floats:
        history.append(counts)
        return rewards

    counts, rounds = allocate(budget, read, len(rewards), block, "max")
    promised = realised = 0.0
    for before, after in pairwise(history):
        known, more = drawn(rewards, before), after > before
        promised += beliefs(known, budget.tail, budget.max_samples).gain(block)[more].sum()
        rise = np.nanmax(drawn(rewards, after), axis=1) - np.nanmax(known, axis=1)
        realised += rise[more].sum()
    seen, complete = drawn(rewards, counts), moments(rewards).sd
    ratio = (moments(seen).sd / complete)[complete > 0] ** 2
    return np.nanmax(seen, axis=1), counts.astype(float), rounds, promised, realised, float(ratio.mean() - 1)


def bound(block: int, most: int, target: int) -> float:
    """The fewest samples, as a share of the target, that reach its E[max] with equal normal prompts, known beforehand.

    Such a prompt is drawn from until its best passes a level, the best rule there is; `level` runs over GRID. A prompt
    that never passes it ends with the best of `most`, given that this is below the level.
    """
    cdf, blocks = ndtr(GRID), most // block
    passes, excess = best_of(cdf, block)
    ends, never = np.clip(passes, 1e-300, 1 - 1e-12), cdf**most
    ended = -np.expm1(blocks * np.log1p(-ends))  # the probability that one of the blocks passes
    below = GRID * never - np.append(
        0.0, np.cumsum((never[1:] + never[:-1]) / 2 * np.diff(GRID))
    )  # E[best; best < level]
    chosen = (GRID + excess / ends) * ended + below
    samples = block * ended / ends
    goal = GRID[0] + best_of(cdf, target)[1][0]
    return float(samples[chosen >= goal].min()) / target


def equal_n(chosen: Floats, curve: Floats) -> Floats:
    """The uniform n at which each curve [resamples, n] reaches the chosen reward [resamples]."""
    n = np.arange(1, curve.shape[1] + 1)
    return np.array([np.interp(reward, row, n) for reward, row in zip(chosen, curve, strict=True)])


def needed(results: list[Result], curve: Floats, weights: Floats, target: int) -> Floats:
    """The share of the target's samples with which adaptive sampling reaches its chosen reward, [resamples].

    NaN where no mean of the list reaches it.
    """
    chosen = np.stack([weights @ result.chosen for result in results], axis=1)  # [resamples, means]
    used = np.stack([weights @ result.counts for result in results], axis=1)
    goals = weights @ curve[:, target - 1]
    found = [np.interp(goal, *row, right=np.nan) for goal, *row in zip(goals, chosen, used, strict=True)]
    return np.array(found) / target


def interval(values: Floats, form: str = ".1%") -> str:
    """The estimate (the first value) and the central 95% of the others."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return f"{values[0]:{form}} ({low:{form}} to {high:{form}})"


if __name__ == "__main__":
    main()
