"""How the rewards of each prompt are distributed: moments, normality, and the best and worst of k.

Rewards are matrices [prompts, n], NaN or infinite = not scored. A prompt with too few finite rewards for a statistic
has NaN there and is not counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from sweetspot.strategy import Floats, Indices


@dataclass(frozen=True)
class Moments:
    """Per-prompt moments of the finite rewards, all [prompts].

    n: finite rewards. mean: reward-model units, NaN without rewards. sd: the same units, divided by n - ddof, NaN where
    that is not positive. skew, kurtosis: m3 / m2^1.5 and m4 / m2^2 - 3 (excess) of the central moments (both 0 for a
    normal distribution), NaN where all rewards are equal.
    """

    n: Indices
    mean: Floats
    sd: Floats
    skew: Floats
    kurtosis: Floats

    def z(self, rewards: NDArray[np.floating]) -> Floats:
        """Each of the rewards [prompts, n] from its prompt's mean, in its standard deviations; NaN where that is 0."""
        return (rewards - self.mean[:, None]) / np.where(self.sd > 0, self.sd, np.nan)[:, None]


def moments(rewards: ArrayLike, ddof: int = 1) -> Moments:
    """The mean, standard deviation, skew and excess kurtosis of every prompt's rewards.

    Args:
        rewards: [prompts, n], reward-model units.
        ddof: the standard deviation divides by the number of finite rewards minus this.

    Raises:
        ValueError: `rewards` is not two-dimensional.
    """
    matrix, finite = _finite(rewards)
    n = finite.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # too few or equal rewards: NaN, as documented
        mean = matrix.sum(axis=1, where=finite) / n
        distance = np.where(finite & _varies(matrix, finite)[:, None], matrix - mean[:, None], 0.0)
        squares = (distance**2).sum(axis=1)
        sd = np.sqrt(squares / np.where(n > ddof, n - ddof, np.nan))
        m2 = squares / n
        skew = (distance**3).sum(axis=1) / n / m2**1.5
        kurtosis = (distance**4).sum(axis=1) / n / m2**2 - 3
    return Moments(n, mean, sd, skew, kurtosis)


@dataclass(frozen=True)
class Normality:
    """Whether rewards look normal, prompt by prompt.

    shapiro, lilliefors: p-values [prompts], NaN where a prompt cannot be tested. adjusted: by Benjamini-Hochberg over
    the tested prompts. share: of the tested prompts, those that are not rejected at alpha; NaN where none is tested.
    """

    shapiro: Floats
    shapiro_adjusted: Floats
    shapiro_share: float
    shapiro_share_adjusted: float
    lilliefors: Floats
    lilliefors_adjusted: Floats
    lilliefors_share: float
    lilliefors_share_adjusted: float


def normality(rewards: ArrayLike, alpha: float = 0.05) -> Normality:
    """Shapiro-Wilk and Lilliefors p-values of every prompt, and the share of prompts that look normal.

    Both tests know that mean and sd are fitted to the same rewards; a plain Kolmogorov-Smirnov test would nearly always
    accept. Lilliefors p-values come from a table that spans .001 to .2. Equal rewards are not tested, nor fewer than
    three (Shapiro) or four (Lilliefors).

    Args:
        rewards: [prompts, n], reward-model units.
        alpha: false-positive rate of one test, and false discovery rate of the adjusted p-values.

    Raises:
        ValueError: `rewards` is not two-dimensional.
    """
    from scipy.stats import shapiro  # half a second to import, statsmodels a whole one: only who tests pays for it
    from statsmodels.stats.diagnostic import lilliefors

    matrix, finite = _finite(rewards)
    varies = _varies(matrix, finite)
    rows = [row[keep] if ok else row[:0] for row, keep, ok in zip(matrix, finite, varies, strict=True)]
    return Normality(
        *_test(rows, 3, lambda row: float(shapiro(row).pvalue), alpha),
        *_test(rows, 4, lambda row: float(lilliefors(row)[1]), alpha),
    )


def _test(
    rows: Sequence[Floats], least: int, p_value: Callable[[Floats], float], alpha: float
) -> tuple[Floats, Floats, float, float]:
    """p-values of the rows with at least `least` rewards, adjusted ones, and the share that passes by each."""
    from scipy.stats import false_discovery_control

    p = np.array([p_value((row - row.mean()) / row.std()) if len(row) >= least else np.nan for row in rows])
    adjusted, tested = np.full(len(rows), np.nan), ~np.isnan(p)
    if not tested.any():
        return p, adjusted, np.nan, np.nan
    adjusted[tested] = false_discovery_control(p[tested], method="bh")
    return p, adjusted, float((p[tested] >= alpha).mean()), float((adjusted[tested] >= alpha).mean())


@dataclass(frozen=True)
class Curve:
    """The expected best, or worst, of k responses over k; all [k], reward-model units.

    mean: over the prompts that have k finite rewards or more. low, high: the percentile bootstrap band over prompts.
    prompts: how many they are.
    """

    k: Indices
    mean: Floats
    low: Floats
    high: Floats
    prompts: Indices


def max_of_k_curve(
    rewards: ArrayLike,
    k: Sequence[int],
    seed: int | np.random.Generator = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Curve:
    """The unbiased estimate of E[max of k], averaged over prompts, with a bootstrap band over prompts.

    The mean over all subsets of k of a prompt's m rewards, as a sum over order statistics: the i-th smallest is the
    maximum of C(i-1, k-1) of the C(m, k) subsets.

    Args:
        rewards: [prompts, n], reward-model units. A prompt counts for every k up to its own number of finite rewards.
        k: the numbers of responses, each from 1 to n.
        seed: of the bootstrap.
        resamples: bootstrap draws of all prompts; a tenth of a second per 1,000 draws of 6,000 prompts.
        confidence: the share of bootstrap means inside the band.

    Raises:
        ValueError: a k below 1 or above n, or above the finite rewards of every prompt.
    """
    matrix, finite = _finite(rewards)
    ks = np.asarray(k, dtype=np.intp)
    most = int(finite.sum(axis=1).max(initial=0))
    if len(ks) == 0 or ks.min() < 1 or ks.max() > most:
        raise ValueError(f"k must be from 1 to the {most} finite rewards that a prompt has, got {ks.tolist()}")
    estimates = _max_of_k(matrix, finite, ks)  # [prompts, k]
    counted = ~np.isnan(estimates)
    mean = estimates.sum(axis=0, where=counted) / counted.sum(axis=0)
    low, high = _bootstrap_band(estimates, counted, np.random.default_rng(seed), resamples, confidence)
    return Curve(ks, mean, low, high, counted.sum(axis=0))


def min_of_k_curve(
    rewards: ArrayLike,
    k: Sequence[int],
    seed: int | np.random.Generator = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Curve:
    """The unbiased estimate of E[min of k]: `max_of_k_curve` of the negated rewards, negated; the same arguments."""
    curve = max_of_k_curve(-np.asarray(rewards, dtype=np.float64), k, seed, resamples, confidence)
    return Curve(curve.k, -curve.mean, -curve.high, -curve.low, curve.prompts)


def _max_of_k(matrix: Floats, finite: NDArray[np.bool_], ks: Indices) -> Floats:
    """The unbiased estimate of E[max of k] of every prompt, [prompts, k]; NaN where it has fewer than k rewards."""
    ordered = np.sort(np.where(finite, matrix, np.inf), axis=1)
    counts = finite.sum(axis=1)
    estimates = np.full((len(matrix), len(ks)), np.nan)
    for m in np.unique(counts[counts > 0]).tolist():
        rows = counts == m
        possible = ks <= m
        estimates[np.ix_(rows, possible)] = ordered[rows, :m] @ _share_of_subsets(m, ks[possible])
    return estimates


def _share_of_subsets(m: int, ks: Indices) -> Floats:
    """C(i-1, k-1) / C(m, k) for the i-th smallest of m, [m, k]. In logarithms: C(400, 200) has 119 digits."""
    i = np.arange(1, m + 1)[:, None]
    below = np.where(i >= ks, i - ks, 0)
    log_subsets = gammaln(i) - gammaln(ks) - gammaln(below + 1)
    log_all = gammaln(m + 1) - gammaln(ks + 1) - gammaln(m - ks + 1)
    shares = np.where(i >= ks, np.exp(log_subsets - log_all), 0.0)
    return shares / shares.sum(axis=0)  # they sum to 1 but for rounding


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
    low, high = np.nanquantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def _finite(rewards: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """The rewards with 0 where they are not finite, and where they are finite; both [prompts, n]."""
    matrix = np.asarray(rewards, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"rewards must have the shape [prompts, n_samples], got {list(matrix.shape)}")
    finite = np.isfinite(matrix)
    return np.where(finite, matrix, 0.0), finite


def _varies(matrix: Floats, finite: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a prompt's finite rewards differ, [prompts]; by their range: the sd of equal ones may round above 0."""
    highest = matrix.max(axis=1, where=finite, initial=-np.inf)
    return highest > matrix.min(axis=1, where=finite, initial=np.inf)
