"""PURE: what can be said of figures that were measured on the same prompts.

The unit is the prompt. A comparison of two policies is the difference of their figures prompt by prompt, so what the
prompts have in common cancels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
BATCH = 2_000_000  # numbers drawn at once
PERMUTATIONS = 10_000  # of signs: the smallest p-value stays below 5% after a correction over hundreds

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over prompts with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int


def as_floats(values: Any) -> Floats:
    """The values as float64, None as NaN."""
    return np.asarray(values, dtype=np.float64)


def bootstrap_mean(values: np.ndarray, resamples: int, seed: int) -> Interval:
    """The mean over prompts with its percentile-bootstrap interval.

    Args:
        values: one figure a prompt [prompts]; NaN (a prompt without responses) is left out. For two policies, the
            difference of each prompt's two figures, which makes the interval a paired one.
        resamples: bootstrap draws of prompts.
        seed: of the draws.

    Returns:
        NaN limits when fewer than two prompts are left.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    from scipy import stats

    kept = np.asarray(values, dtype=np.float64)
    kept = kept[np.isfinite(kept)]
    if len(kept) < 2:
        return Interval(float(kept.mean()) if len(kept) else float("nan"), float("nan"), float("nan"), len(kept))
    if np.ptp(kept) == 0:
        return Interval(float(kept[0]), float(kept[0]), float(kept[0]), len(kept))
    drawn = stats.bootstrap(
        (kept,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, BATCH // len(kept)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(kept.mean()), float(drawn.low), float(drawn.high), len(kept))


def bootstrap_ratio(numerators: Floats, denominators: Floats, resamples: int, seed: int) -> Interval:
    """Sum over sum, over prompts, with its percentile-bootstrap interval: a mean of prompts that count differently.

    Args:
        numerators, denominators: one of each a prompt [prompts]; the denominators are positive.
    """
    rng, n, unknown = np.random.default_rng(seed), len(numerators), float("nan")
    if n < 2:
        return Interval(float(numerators.sum() / denominators.sum()) if n else unknown, unknown, unknown, n)
    drawn = [rng.integers(0, n, size=(size, n)) for size in blocks(resamples, max(1, BATCH // n))]
    ratios = np.concatenate([numerators[rows].sum(axis=1) / denominators[rows].sum(axis=1) for rows in drawn])
    low, high = np.quantile(ratios, (ALPHA / 2, 1 - ALPHA / 2))
    return Interval(float(numerators.sum() / denominators.sum()), float(low), float(high), n)


def sign_flip_p(differences: np.ndarray, permutations: int, seed: int) -> float:
    """The two-sided p-value of a mean difference of zero: how often the differences with random signs lie as far out.

    Args:
        differences: one a prompt [prompts], finite. Under the null hypothesis the two policies could be swapped for
            any prompt, which turns the sign of its difference.
        permutations: draws of all signs; the p-value is at least 1 / (permutations + 1).
        seed: of the draws.

    Source: Phipson and Smyth 2010 (the + 1); Dror et al. 2018, section 3.3 (paired permutation test).
    """
    rng = np.random.default_rng(seed)
    observed, beyond = abs(float(differences.sum())), 0
    for size in blocks(permutations, max(1, BATCH // max(len(differences), 1))):
        signs = rng.integers(0, 2, size=(size, len(differences)), dtype=np.int8) * 2 - 1
        beyond += int(np.count_nonzero(np.abs(signs @ differences) >= observed * (1 - 1e-12)))
    return (beyond + 1) / (permutations + 1)


def blocks(total: int, most: int) -> list[int]:
    """`total` in parts of at most `most`."""
    return [min(most, total - start) for start in range(0, total, most)]


def holm(p_values: Sequence[float]) -> Floats:
    """Adjusted p-values that bound the chance of any false finding among the family (Holm 1979)."""
    values = as_floats(p_values)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return _placed(steps, order)


def benjamini_hochberg(p_values: Sequence[float]) -> Floats:
    """Adjusted p-values that bound the expected share of false ones among the findings (Benjamini, Hochberg 1995)."""
    values = as_floats(p_values)
    order = np.argsort(values, kind="stable")[::-1]  # the largest first
    steps = np.minimum.accumulate(values[order] * len(values) / np.arange(len(values), 0, -1))
    return _placed(steps, order)


def _placed(steps: Floats, order: np.ndarray) -> Floats:
    adjusted = np.empty_like(steps)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def detectable(standard_error: float, power: float) -> float:
    """The smallest true difference that a two-sided 5% test finds with this power.

    Args:
        standard_error: of the mean difference, in the figure's unit; it shrinks with the root of the prompts.
        power: between 0.5 and 1, such as 0.8.

    Source: the normal approximation, (z(1 - alpha/2) + z(power)) x standard error (Card et al. 2020, 2010.06595).
    """
    from scipy.special import ndtri

    return float((ndtri(1 - ALPHA / 2) + ndtri(power)) * standard_error)


def power_of(effect: float, standard_error: float) -> float:
    """How often a two-sided 5% test finds a true difference of `effect`, by the normal approximation."""
    from scipy.special import ndtr, ndtri

    if standard_error == 0:
        return 1.0 if effect else ALPHA
    shift, bound = abs(effect) / standard_error, ndtri(1 - ALPHA / 2)
    return float(ndtr(shift - bound) + ndtr(-shift - bound))


def at_planned(standard_error: float, n: int, planned: int) -> float:
    """The standard error that `planned` prompts of the same kind would give, from that of n prompts."""
    return standard_error * (n / planned) ** 0.5
