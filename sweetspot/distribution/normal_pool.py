"""What positions are worth in a normal pool of n, and which of them n samples can tell apart: known before sampling."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from scipy.special import betainc, gammaln, log_ndtr

from sweetspot.strategy import BLOCK, POINTS, FiniteRewards, Floats, Position, PositionPair, quantile_ranks

POOL_SEED = 0
POOL_SIZE = 4_000_000  # rewards of the simulated normal pool: about 0.1 s
QUICK_POOL_SIZE = 400_000  # what a warning before a run needs
LADDER = tuple(step << power for power in range(2, 11) for step in (2, 3))  # 8, 12, 16, 24, ... 3072
TELL_APART = 1 / 3  # two positions on one response for more than this share of prompts cannot be told apart


@dataclass(frozen=True)
class Expected:
    """What a position is worth in a normal pool of n.

    z: the expected reward of its response, in true sigma from the true mean. share_min, share_max: the share of prompts
    for which this response is the minimum, or the maximum, of the n.
    """

    z: float
    share_min: float
    share_max: float


@cache
def expected_position(position: str, n: int, ddof: int = 1, pool_size: int = POOL_SIZE) -> Expected:
    """The expected z of a position's response at n samples per prompt, and how often it is the minimum or maximum.

    Exact for order statistics (min, max, min_of_k, max_of_k, random, quantiles). The response nearest to mu + k * sigma
    has no closed form: it is the mean over a simulated pool of about `pool_size` rewards, with a fixed seed.

    Raises:
        ValueError: an unknown position, or one that needs more than n samples.
    """
    parsed = Position.parse(position)
    k = parsed.minimum_samples
    if n < max(2, k):
        raise ValueError(f"n must be >= {max(2, k)} for the position {position}, got {n}")
    match parsed.kind:
        case "min":
            return Expected(_order_statistic(0, n), 1.0, 0.0)
        case "max":
            return Expected(_order_statistic(n - 1, n), 0.0, 1.0)
        case "min_of":
            return Expected(_order_statistic(0, k), k / n, 0.0)
        case "max_of":
            return Expected(_order_statistic(k - 1, k), 0.0, k / n)
        case "random":
            return Expected(0.0, 1 / n, 1 / n)
        case "quantile":
            ranks = quantile_ranks(parsed.value, n)
            z = float(np.mean([_order_statistic(rank, n) for rank in ranks]))
            return Expected(z, ranks.count(0) / len(ranks), ranks.count(n - 1) / len(ranks))
        case "sigma":
            return _simulated(parsed, n, ddof, pool_size)


@cache
def expected_pair(pair: PositionPair, n: int, pool_size: int = POOL_SIZE) -> tuple[float, float] | None:
    """Where the chosen and the rejected response lie at n samples per prompt of a normal pool: their mean z, from the
    prompt's mean in its standard deviations (ddof 1), over the prompts that give a pair, as `realised_z` tells it.

    Where every prompt gives one, that is `expected_position` over `mean_sd` (Basu: a z is independent of the sd that it
    is divided by). Else the prompts without a pair, such as those whose positions fall on one response, are left out of
    the simulated pool; what is left lies elsewhere. None where none is left.

    Raises:
        ValueError: the pair needs more than n samples.
    """
    total, kept, prompts = np.zeros(2), 0, 0
    for block in _normal_pool(n, pair.ddof, pool_size):
        found = pair(block.values)
        rewards = block.values[found.prompt, [found.chosen, found.rejected]]  # [2, pairs]
        sd = block.sigma[found.prompt, 0] * math.sqrt((n - pair.ddof) / (n - 1))
        total += ((rewards - block.mu[found.prompt, 0]) / sd).sum(axis=1)
        kept, prompts = kept + len(found.prompt), prompts + len(block.values)
    if kept == prompts and pair.chosen != "random" != pair.rejected:
        high, low = (
            expected_position(text, n, pair.ddof, pool_size).z / mean_sd(n) for text in (pair.chosen, pair.rejected)
        )
        return high, low
    return (float(total[0] / kept), float(total[1] / kept)) if kept else None


def _order_statistic(rank: int, n: int) -> float:
    """E[the reward of that rank (0 = lowest) of n standard normal ones], by quadrature of z times its density."""
    z = np.linspace(-12, 12, 24_001)
    log_orders = gammaln(n + 1) - gammaln(rank + 1) - gammaln(n - rank)
    log_density = log_orders + rank * log_ndtr(z) + (n - rank - 1) * log_ndtr(-z) - (z**2 + np.log(2 * np.pi)) / 2
    return float(np.trapezoid(z * np.exp(log_density), z))


def order_statistics(n: int) -> Floats:
    """The expected rewards of n standard normal ones in ascending order, [n]."""
    return np.array([_order_statistic(rank, n) for rank in range(n)])


def mean_sd(n: int) -> float:
    """E[sd] (ddof 1) of n >= 2 standard normal rewards."""
    return math.sqrt(2 / (n - 1)) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))


def tail_share(z: float, n: int) -> float:
    """The share of n >= 3 normal rewards that lie more than z of their own standard deviations (ddof 1) above their own
    mean: z^2 n / (n - 1)^2 is a Beta(1/2, (n - 2)/2) variable (Thompson 1935)."""
    return float(betainc((n - 2) / 2, 0.5, max(0.0, 1 - z**2 * n / (n - 1) ** 2)) / 2)


def _simulated(position: Position, n: int, ddof: int, pool_size: int) -> Expected:
    """The expectation over a simulated pool."""
    found = np.zeros(4)  # sums of z, is the minimum, is the maximum, prompts
    for block in _normal_pool(n, ddof, pool_size):
        column = position.pick(block)
        z = np.take_along_axis(block.values, column[:, None], axis=1)[:, 0]
        extremes = (column == block.values.argmin(axis=1)).sum(), (column == block.values.argmax(axis=1)).sum()
        found += z.sum(), *extremes, len(z)
    return Expected(*(float(total) for total in found[:3] / found[3]))


def _normal_pool(n: int, ddof: int, pool_size: int) -> Iterator[FiniteRewards]:
    """At least 100 prompts of n standard normal rewards, the same at every call, in blocks that stay in cache."""
    rng = np.random.default_rng(POOL_SEED)
    prompts, size = max(100, pool_size // n), max(1, BLOCK // n)
    for start in range(0, prompts, size):
        yield FiniteRewards(rng.standard_normal((min(size, prompts - start), n)), ddof)


@cache
def points_apart(n: int, ddof: int = 1, pool_size: int = POOL_SIZE) -> tuple[float, float]:
    """How many distinct responses the paper's seven points fall on at n samples per prompt of a normal pool (the mean),
    and the share of their 21 pairs that fall on one response."""
    blocks = _normal_pool(n, ddof, pool_size)
    picks = np.hstack([[Position.parse(point).pick(block) for point in POINTS] for block in blocks])  # [7, prompts]
    distinct = 1 + (np.diff(np.sort(picks, axis=0), axis=0) > 0).sum(axis=0)
    same = [(low == high).mean() for low, high in combinations(picks, 2)]
    return float(distinct.mean()), float(np.mean(same))


def indistinct(pair: PositionPair, n: int) -> str | None:
    """One line that says which position of the pair cannot be told from the minimum or maximum at n, or both from one
    another, and the n that this takes; None where nothing is to be said. Of a normal pool, before anything is sampled.

    Raises:
        ValueError: the pair needs more than n samples.
    """
    pair.check_n_samples(n)
    if pair.chosen == pair.rejected == "random":
        return None
    found = [_extreme(text, n, pair.ddof) for text in (pair.chosen, pair.rejected)]
    if not any(found):
        found = [_one_response(pair, n)]
    return "; ".join(line for line in found if line) or None


def _extreme(text: str, n: int, ddof: int) -> str | None:
    """That a position is not told apart from the minimum or the maximum at n."""
    if text in ("min", "max"):
        return None

    def shares(samples: int) -> tuple[float, float]:
        expected = expected_position(text, samples, ddof, QUICK_POOL_SIZE)
        return expected.share_min, expected.share_max

    if max(shares(n)) <= TELL_APART:
        return None
    share, extreme = max(zip(shares(n), ("minimum", "maximum"), strict=True))
    return _line(f"the response at {text} is the {extreme}", share, n, lambda samples: max(shares(samples)))


def _one_response(pair: PositionPair, n: int) -> str | None:
    """That both positions fall on one response at n."""

    def share(samples: int) -> float:
        chosen, rejected = pair.positions
        blocks = _normal_pool(samples, pair.ddof, QUICK_POOL_SIZE)
        return float(np.concatenate([chosen.pick(block) == rejected.pick(block) for block in blocks]).mean())

    return _line(f"both positions of {pair} fall on one response", share(n), n, share)


def _line(fact: str, share: float, n: int, share_at: Callable[[int], float]) -> str | None:
    """The warning with the smallest n of a ladder that keeps the share low, if it is high at n."""
    if share <= TELL_APART:
        return None
    enough = next((more for more in LADDER if more > n and share_at(more) <= TELL_APART), None)
    need = f"needs n >= {enough}" if enough else f"would need n > {LADDER[-1]}"
    return f"at n={n} {fact} for {share:.0%} of prompts of a normal pool; the study of this pair {need}"
