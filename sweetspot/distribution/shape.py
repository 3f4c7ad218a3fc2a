"""The shape of the prompts' reward distributions as n grows, beside that of a normal pool, and what length has to do
with reward."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sweetspot.distribution.normal_pool import mean_sd, order_statistics, tail_share
from sweetspot.distribution.observed import finite_part, moments, normality
from sweetspot.statistics import Interval, bootstrap_mean, bootstrap_ratio
from sweetspot.strategy import Floats

TAIL = 2.0  # standard deviations
ALPHA = 0.05  # of a test of normality


@dataclass(frozen=True)
class Shape:
    """The shape of the first n rewards of every prompt.

    n: the most that a prompt has. shapiro, lilliefors: the share of the tested prompts that look normal at 5% by each
    test alone, with intervals over prompts: 95% in a normal pool. shapiro_adjusted, lilliefors_adjusted: the same by
    Benjamini-Hochberg, nearly all in a normal pool. skew, kurtosis: means over prompts. below, above: the share of all
    rewards with z < -2 and z > 2. normal_tail: that of either in a normal pool.
    """

    n: int
    shapiro: Interval
    shapiro_adjusted: float
    lilliefors: Interval
    lilliefors_adjusted: float
    skew: Interval
    kurtosis: Interval
    below: Interval
    above: Interval
    normal_tail: float


def shape_by_n(rewards: ArrayLike, n: Sequence[int], resamples: int = 1000, seed: int = 0) -> list[Shape]:
    """The shape of the first n rewards of every prompt, for each n.

    A test of normality rejects more the more rewards it sees: a share that falls with n tells of small departures too.
    Skew and kurtosis of n rewards are biased towards 0 at small n.

    Args:
        rewards: [prompts, n], reward-model units; NaN or infinite = not scored.
        n: the numbers of samples.
        resamples, seed: of the bootstrap over prompts.
    """
    return [_shape(np.asarray(rewards, dtype=np.float64)[:, :size], resamples, seed) for size in n]


def _shape(rewards: Floats, resamples: int, seed: int) -> Shape:
    of, looks = moments(rewards), normality(rewards)
    z = of.z(rewards)

    def share(found: np.ndarray, counted: np.ndarray) -> Interval:
        total, many = (np.atleast_2d(part.T).sum(axis=0) for part in (found & counted, counted))
        return bootstrap_mean(np.where(many > 0, total / np.maximum(many, 1), np.nan), resamples, seed)

    return Shape(
        n=rewards.shape[1],
        shapiro=share(looks.shapiro >= ALPHA, np.isfinite(looks.shapiro)),
        shapiro_adjusted=looks.shapiro_share_adjusted,
        lilliefors=share(looks.lilliefors >= ALPHA, np.isfinite(looks.lilliefors)),
        lilliefors_adjusted=looks.lilliefors_share_adjusted,
        skew=bootstrap_mean(of.skew, resamples, seed),
        kurtosis=bootstrap_mean(of.kurtosis, resamples, seed),
        below=share(z < -TAIL, np.isfinite(z)),
        above=share(z > TAIL, np.isfinite(z)),
        normal_tail=tail_share(TAIL, rewards.shape[1]),
    )


def ranked_z(rewards: ArrayLike) -> tuple[Floats, Floats]:
    """Observed and predicted order statistics: each prompt's z in ascending order [prompts, n], and their expectation
    in a normal pool [n].

    A z divides by the prompt's own standard deviation, which is independent of it in a normal pool (Basu), so that its
    expectation is that of the order statistic over E[sd].

    Args:
        rewards: [prompts, n]; a prompt whose rewards are not all finite, or all equal, is NaN.
    """
    matrix = np.asarray(rewards, dtype=np.float64)
    n = matrix.shape[1]
    z = np.sort(moments(matrix).z(matrix), axis=1)
    complete = np.isfinite(z).all(axis=1, keepdims=True)
    return np.where(complete, z, np.nan), order_statistics(n) / mean_sd(n)


def length_slope(rewards: ArrayLike, tokens: ArrayLike, resamples: int = 1000, seed: int = 0) -> Interval:
    """The reward that a further token goes with, within a prompt, and its bootstrap interval over prompts.

    The least-squares slope with a mean of its own for every prompt, so that prompts with long answers and high rewards
    count for nothing: sum of cov(tokens, reward) over sum of var(tokens). `n` of the result is the prompts whose
    responses differ in length.

    Args:
        rewards: [prompts, n], in any unit: z within the prompt gives standard deviations a token.
        tokens: [prompts, n], lengths; a response without a finite reward is left out.
    """
    matrix, finite = finite_part(rewards)
    many = np.maximum(finite.sum(axis=1, keepdims=True), 1)

    def distance(values: Floats) -> Floats:
        return np.where(finite, values - values.sum(axis=1, keepdims=True, where=finite) / many, 0.0)

    length = distance(np.asarray(tokens, dtype=np.float64))
    squares = (length**2).sum(axis=1)
    varies = squares > 0
    return bootstrap_ratio((length * distance(matrix)).sum(axis=1)[varies], squares[varies], resamples, seed)
