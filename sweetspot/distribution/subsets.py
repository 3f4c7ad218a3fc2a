"""What fewer responses would give: estimates over all subsets of k of a prompt's n rewards, from one pool.

An estimate is unbiased for a fresh draw of k responses, because the n of a pool are exchangeable. Rewards are matrices
[prompts, n], NaN or infinite = not scored; estimates are [prompts, k], NaN where a prompt has too few finite rewards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from sweetspot.distribution.observed import finite_part
from sweetspot.strategy import FiniteRewards, Floats, Indices, Position, finite_blocks, quantile_ranks

Seed = int | np.random.Generator
SUBSETS = 200  # random subsets for a position without a closed form


@dataclass(frozen=True)
class Curve:
    """A figure over k, as the mean over prompts; all [k], in the unit of the figure.

    mean: over the prompts that have k finite rewards or more. low, high: the percentile bootstrap band over prompts.
    prompts: how many they are.
    """

    k: Indices
    mean: Floats
    low: Floats
    high: Floats
    prompts: Indices


def curve(
    estimates: Floats, k: Sequence[int] | Indices, seed: Seed = 0, resamples: int = 1000, confidence: float = 0.95
) -> Curve:
    """The mean of estimates over prompts, with a bootstrap band over prompts.

    Args:
        estimates: [prompts, k]; NaN is left out. The difference of two estimates of the same prompts has a paired band.
        k: the numbers of responses.
        seed: of the bootstrap.
        resamples: bootstrap draws of all prompts; a tenth of a second per 1,000 draws of 6,000 prompts.
        confidence: the share of bootstrap means inside the band.
    """
    counted = np.isfinite(estimates)
    many = counted.sum(axis=0)
    mean = np.where(many > 0, estimates.sum(axis=0, where=counted) / np.maximum(many, 1), np.nan)
    low, high = _bootstrap_band(estimates, counted, np.random.default_rng(seed), resamples, confidence)
    return Curve(np.asarray(k, dtype=np.intp), mean, low, high, many)


def max_of_k_curve(
    rewards: ArrayLike, k: Sequence[int], seed: Seed = 0, resamples: int = 1000, confidence: float = 0.95
) -> Curve:
    """The unbiased estimate of E[max of k] over k: `curve` of `position_of_k`, whose arguments it takes.

    Raises:
        ValueError: a k below 1 or above n, or above the finite rewards of every prompt.
    """
    return curve(position_of_k(rewards, "max", k), k, seed, resamples, confidence)


def min_of_k_curve(
    rewards: ArrayLike, k: Sequence[int], seed: Seed = 0, resamples: int = 1000, confidence: float = 0.95
) -> Curve:
    """The same of E[min of k]."""
    return curve(position_of_k(rewards, "min", k), k, seed, resamples, confidence)


def position_of_k(
    rewards: ArrayLike, position: str, k: Sequence[int], ddof: int = 1, seed: Seed = 0, subsets: int = SUBSETS
) -> Floats:
    """The expected reward of the response at a position among k of a prompt's responses, [prompts, k].

    Exact over all subsets of k for order statistics (min, max, min_of_j, max_of_j, random, quantiles): the i-th
    smallest of m rewards is the j-th smallest of C(i-1, j-1) C(m-i, k-j) of the C(m, k) subsets. The response nearest
    to mu + c * sigma, of the subset's own moments, has no closed form: it is the mean over `subsets` random ones, the
    same for every k (the first k of a random order), which is unbiased as well, and exact where k takes all.

    Args:
        rewards: [prompts, n], in any unit.
        position: as `Position.parse` reads it.
        k: the numbers of responses, each from 1 (of sigma positions 2) to n. A prompt counts for every k up to its own
            number of finite rewards, and from the j of `min_of_j` on.
        ddof: sigma divides by k - ddof.
        seed, subsets: of the random subsets.

    Raises:
        ValueError: an unknown position, or a k that no prompt can answer.
    """
    parsed, ks = Position.parse(position), _checked(rewards, k)
    j = parsed.minimum_samples
    match parsed.kind:
        case "max" | "min":
            return _over_subsets(rewards, rewards, ks, lambda size: [size if parsed.kind == "max" else 1])
        case "max_of" | "min_of":
            enough = np.where(ks >= j, 1.0, np.nan) * np.where(np.isfinite(_any_of_k(rewards, ks)), 1.0, np.nan)
            return enough * position_of_k(rewards, parsed.kind[:3], [j]) if (ks >= j).any() else enough
        case "random":
            return _any_of_k(rewards, ks)
        case "quantile":
            ranks = {int(size): [rank + 1 for rank in quantile_ranks(parsed.value, int(size))] for size in ks}
            return _over_subsets(rewards, rewards, ks, ranks.__getitem__)
        case "sigma":
            return _sigma_of_k(rewards, parsed, ks, ddof, np.random.default_rng(seed), subsets)


def best_of_k_by(
    selecting: ArrayLike, values: ArrayLike, k: Sequence[int], best: Literal["max", "min"] = "max"
) -> Floats:
    """The expected value of the response whose selecting reward is the highest (or lowest) of k, [prompts, k].

    With the rewards of a second reward model as values, the curve over k shows over-optimisation: where the selecting
    reward goes on rising and the other does not (Gao, Schulman and Hilton 2023, 2210.10760). Exact over all subsets;
    responses of equal selecting reward are chosen at random.

    Args:
        selecting, values: [prompts, n]; a response without both counts as not scored.
        k: as for `position_of_k`.
    """
    chosen, gold = np.asarray(selecting, dtype=np.float64), np.asarray(values, dtype=np.float64)
    both = np.isfinite(chosen) & np.isfinite(gold)
    chosen = np.where(both, chosen, np.nan)
    return _over_subsets(chosen, gold, _checked(chosen, k), lambda size: [size if best == "max" else 1])


def best_of_n_kl(n: ArrayLike) -> Floats:
    """log n - (n - 1) / n: the KL divergence of best-of-n from the policy that it samples, nats; an upper bound where
    responses repeat (Beirami et al. 2024, 2401.01879)."""
    many = np.asarray(n, dtype=np.float64)
    return np.log(many) - (many - 1) / many


def _checked(rewards: ArrayLike, k: Sequence[int]) -> Indices:
    ks = np.asarray(k, dtype=np.intp)
    most = int(finite_part(rewards)[1].sum(axis=1).max(initial=0))
    if len(ks) == 0 or ks.min() < 1 or ks.max() > most:
        raise ValueError(f"k must be from 1 to the {most} finite rewards that a prompt has, got {ks.tolist()}")
    return ks


def _any_of_k(rewards: ArrayLike, ks: Indices) -> Floats:
    """The expected reward of a random one of k: the prompt's mean, where it has k finite rewards, [prompts, k]."""
    matrix, finite = finite_part(rewards)
    many = finite.sum(axis=1, keepdims=True)
    return np.where(many >= ks, matrix.sum(axis=1, keepdims=True) / np.maximum(many, 1), np.nan)


def _over_subsets(
    selecting: ArrayLike, values: ArrayLike, ks: Indices, ranks: Callable[[int], Sequence[int]]
) -> Floats:
    """The expected value at a rank of the selecting reward among k, [prompts, k].

    Args:
        ranks: of k, from 1 (the lowest) to k; the mean over several.
    """
    matrix, finite = finite_part(selecting)
    gold = _sorted_by(np.where(finite, matrix, np.inf), finite_part(values)[0])
    counts, estimates = finite.sum(axis=1), np.full((len(matrix), len(ks)), np.nan)
    for m in np.unique(counts[counts > 0]).tolist():
        rows, possible = counts == m, ks <= m
        if possible.any():
            shares = [
                np.mean([_share_of_subsets(m, int(k), rank) for rank in ranks(int(k))], axis=0) for k in ks[possible]
            ]
            estimates[np.ix_(rows, possible)] = gold[rows, :m] @ np.stack(shares, axis=1)
    return estimates


def _sorted_by(selecting: Floats, values: Floats) -> Floats:
    """The values by ascending selecting reward; where that is equal, they are replaced by their mean."""
    order = np.argsort(selecting, axis=1, kind="stable")
    ordered, gold = (np.take_along_axis(part, order, axis=1) for part in (selecting, values))
    begins = np.ones(ordered.shape, dtype=bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = np.cumsum(begins) - 1
    means = np.bincount(group, weights=gold.ravel()) / np.maximum(np.bincount(group), 1) if gold.size else gold.ravel()
    return means[group].reshape(gold.shape)


def _share_of_subsets(m: int, k: int, rank: int) -> Floats:
    """C(i-1, rank-1) C(m-i, k-rank) / C(m, k) for the i-th smallest of m, [m]; C(400, 200) has 119 digits."""
    i = np.arange(1, m + 1)
    possible = (i >= rank) & (m - i >= k - rank)
    at = np.where(possible, i, rank)  # any that does not overflow; masked below

    def log_choose(n: NDArray[np.intp] | int, r: int) -> NDArray[np.float64]:
        return gammaln(np.asarray(n) + 1.0) - gammaln(r + 1.0) - gammaln(np.asarray(n) - r + 1.0)

    shares = np.where(
        possible, np.exp(log_choose(at - 1, rank - 1) + log_choose(m - at, k - rank) - log_choose(m, k)), 0.0
    )
    return shares / shares.sum()  # they sum to 1 but for rounding


def _sigma_of_k(
    rewards: ArrayLike, position: Position, ks: Indices, ddof: int, rng: np.random.Generator, subsets: int
) -> Floats:
    """The mean over random subsets of the reward nearest to mu + c * sigma of the subset, [prompts, k]."""
    matrix = np.asarray(rewards, dtype=np.float64)
    estimates = np.full((len(matrix), len(ks)), np.nan)
    for rows, _, finite in finite_blocks(matrix, 2):
        possible = np.flatnonzero((ks >= 2) & (ks <= finite.shape[1]))
        totals = np.zeros((len(rows), len(possible)))
        for _draw in range(subsets):
            shuffled = rng.permuted(finite, axis=1)
            for column, k in enumerate(ks[possible].tolist()):
                some = FiniteRewards(shuffled[:, :k], ddof)
                totals[:, column] += np.take_along_axis(some.values, position.pick(some)[:, None], axis=1)[:, 0]
        estimates[np.ix_(rows, possible)] = totals / subsets
    return estimates


def _bootstrap_band(
    estimates: Floats, counted: NDArray[np.bool_], rng: np.random.Generator, resamples: int, confidence: float
) -> tuple[Floats, Floats]:
    """The central `confidence` of the means of `resamples` draws of all prompts with replacement, two [k]."""
    prompts = len(estimates)
    values = np.hstack([np.where(counted, estimates, 0.0), counted])  # sums and how many there are of each
    means = np.empty((resamples, estimates.shape[1]))
    for resample in range(resamples):
        drawn = np.bincount(rng.integers(prompts, size=prompts), minlength=prompts)
        sums, numbers = np.split(drawn @ values, 2)
        means[resample] = np.divide(sums, numbers, out=np.full_like(sums, np.nan), where=numbers > 0)
    band = np.full((2, estimates.shape[1]), np.nan)
    some = counted.any(axis=0)
    band[:, some] = np.nanquantile(means[:, some], [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return band[0], band[1]
