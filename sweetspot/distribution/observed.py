"""How the rewards of each prompt are distributed: moments and normality.

Rewards are matrices [prompts, n], NaN or infinite = not scored. A prompt with too few finite rewards for a statistic
has NaN there and is not counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    matrix, finite = finite_part(rewards)
    n = finite.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # too few or equal rewards: NaN, as documented
        mean = matrix.sum(axis=1, where=finite) / n
        distance = np.where(finite & differ(matrix, finite)[:, None], matrix - mean[:, None], 0.0)
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

    matrix, finite = finite_part(rewards)
    varies = differ(matrix, finite)
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


def finite_part(rewards: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """The rewards with 0 where they are not finite, and where they are finite; both [prompts, n]."""
    matrix = np.asarray(rewards, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"rewards must have the shape [prompts, n_samples], got {list(matrix.shape)}")
    finite = np.isfinite(matrix)
    return np.where(finite, matrix, 0.0), finite


def differ(matrix: Floats, finite: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a prompt's finite rewards differ, [prompts]; by their range: the sd of equal ones may round above 0."""
    highest = matrix.max(axis=1, where=finite, initial=-np.inf)
    return highest > matrix.min(axis=1, where=finite, initial=np.inf)
