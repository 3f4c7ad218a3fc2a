"""What more draws are expected to raise a prompt's best reward by, and for which prompts that is worth its price.

The rewards of prompt i are mu_i + sigma_i * z. sigma_i is learnt from the prompt and from the others, by the empirical
Bayes of Smyth (2004, Statistical Applications in Genetics and Molecular Biology 3:3, sections 3 and 6; limma):

    s_i^2 ~ sigma_i^2 chi^2(d_i) / d_i             prior: 1 / sigma_i^2 ~ chi^2(d_0) / (d_0 s_0^2)
    posterior: 1 / sigma_i^2 ~ chi^2(d_0 + d_i) / (d_0 s_0^2 + d_i s_i^2),   mu_i ~ N(m_i, sigma_i^2 / n_i)

with d_0 and s_0 matched to the mean and variance of log s_i^2. What is fitted depends on the tail:

    normal    m_i, s_i are mean and sd, d_i = n_i - 1; z is standard normal, with the distribution F = Phi
    upper     m_i is the median and s_i the root mean square distance of the d_i rewards above it (both those of the
              normal, if the rewards are normal); F is that of all standardised rewards of the pool

The upper fit is for rewards with a long lower tail (a few broken answers), which says nothing of the best ones.
Locations are not shrunken: they differ more between prompts than one of them errs. Where s_i is 0, no gain is expected.

The gain that b more draws promise a prompt whose best reward lies at a = (best - mu_i) / sigma_i:

    E[max(best, b draws)] - best = sigma_i * integral from a of 1 - F(z)^b dz,   averaged over the posterior

(for b = 1, the normal F and known mu_i and sigma_i: sigma_i * (phi(a) - a * (1 - Phi(a)))). Who draws from known
distributions and keeps the best does best by comparing this gain with one price, the same for all (Weitzman 1979,
Econometrica 47, 641-654): draw below the level at which both are equal, stop above it. The price is the one at which
the blocks still expected, a geometric number for each prompt, use up what is left of the budget; it is set anew in each
round. A round gives a block to every prompt whose gain exceeds the price, so that rounds are few. Ties go to the lowest
row.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtr, polygamma, psi

from sweetspot.distribution import moments
from sweetspot.strategy import Floats, Indices

Tail = Literal["normal", "upper"]

GRID = np.linspace(-12, 12, 4801)  # z at which distributions are tabulated; a gain errs by less than 1e-5 sigma
TAIL_SHARE = 0.05  # of the pool's z: above this quantile its distribution is exponential, with their mean excess
QUANTILES = (np.arange(15) + 0.5) / 15  # of the posterior sigma
NODES, WEIGHTS = hermegauss(5)  # of the posterior mu


@dataclass(frozen=True)
class Beliefs:
    """What is believed of each prompt's rewards, given those drawn so far; all [prompts], reward-model units.

    best: the highest reward, NaN without rewards. mu, sigma: the centre of the posterior; sigma is 0 for a prompt
    without rewards and for one whose (upper) rewards are equal. n: the rewards behind mu. d: degrees of freedom behind
    sigma. cdf: F on GRID.
    """

    best: Floats
    mu: Floats
    sigma: Floats
    n: Floats
    d: Floats
    cdf: Floats

    @property
    def place(self) -> Floats:
        """a: where the best reward lies, in sigma from mu; infinite where sigma is 0."""
        return np.divide(self.best - self.mu, self.sigma, out=np.full_like(self.mu, np.inf), where=self.sigma > 0)

    def gain(self, draws: int) -> Floats:
        """The expected rise of the best reward by that many more draws, [prompts]; 0 where sigma is."""
        known, (_, table) = self.sigma > 0, best_of(self.cdf, draws)
        place, half = self.place[known], self.d[known] / 2
        total = np.zeros(len(place))
        for quantile in QUANTILES:
            with np.errstate(invalid="ignore"):  # infinitely many degrees of freedom: sigma is known
                ratio = np.where(np.isinf(half), 1.0, np.sqrt(half / gammaincinv(half, quantile)))
            for node, weight in zip(NODES, WEIGHTS / WEIGHTS.sum(), strict=True):
                expected = interpolated(place / ratio - node / np.sqrt(self.n[known]), table)
                total += ratio * expected * weight / len(QUANTILES)
        gain = np.zeros(len(known))
        gain[known] = self.sigma[known] * total
        return gain


def best_of(cdf: Floats, draws: int) -> tuple[Floats, Floats]:
    """The probability that the best of `draws` exceeds z, and by how much it is expected to, both on GRID."""
    exceeds = 1 - cdf**draws
    strips = (exceeds[1:] + exceeds[:-1]) / 2 * np.diff(GRID)
    return exceeds, np.append(strips[::-1].cumsum()[::-1], 0.0)


def interpolated(place: Floats, gain: Floats) -> Floats:
    """The gain at any place; below the grid it rises one for one."""
    return np.interp(place, GRID, gain) + np.maximum(GRID[0] - place, 0.0)


def worth_drawing(of: Beliefs, allowed: Indices, left: int, block: int, least: float) -> NDArray[np.bool_]:
    """The prompts whose next block is expected to gain more than its price, [prompts]; at most `left` of them.

    Args:
        allowed: the blocks that each prompt may still get.
        left: the blocks that all of them may still get.
        block: samples per block.
        least: the lowest price, reward-model units per block.
    """
    gain = np.where(allowed > 0, of.gain(block), 0.0)
    low, high = max(least, 1e-9 * float(gain.max(initial=0.0))), float(gain.max(initial=0.0))
    if blocks_at(low, of, gain, allowed, block) > left:
        for _ in range(50):
            price = float(np.sqrt(low * high))
            low, high = (price, high) if blocks_at(price, of, gain, allowed, block) > left else (low, price)
    first = np.argsort(-gain, kind="stable")[: max(left, 0)]
    worth = np.zeros(len(gain), dtype=np.bool_)
    worth[first] = gain[first] > low
    return worth


def blocks_at(price: float, of: Beliefs, gain: Floats, allowed: Indices, block: int) -> float:
    """How many blocks are expected to be drawn at a price: of each prompt above it, until its best passes its level."""
    exceeds, table = best_of(of.cdf, block)
    above = gain > price
    level = np.maximum(np.interp(-price / of.sigma[above], -table, GRID), of.place[above])
    ends = np.clip(np.interp(level, GRID, exceeds), 1e-12, 1.0)  # the probability that a block is the last one
    return float(((1 - (1 - ends) ** allowed[above]) / ends).sum())


def beliefs(rewards: Floats, tail: Tail, reach: int) -> Beliefs:
    """The model of rewards [prompts, n], NaN or infinite = not drawn; `best` is of the first `reach` finite ones."""
    finite = np.isfinite(rewards)
    count = finite.sum(axis=1)
    eligible = finite & (finite.cumsum(axis=1) <= reach)
    best = np.where(count > 0, rewards.max(axis=1, where=eligible, initial=-np.inf), np.nan)
    mu, spread, d, n = normal_fit(rewards) if tail == "normal" else upper_fit(rewards)
    d_0, s_0 = prior(spread, d)
    share = np.ones(len(d)) if np.isinf(d_0) else d_0 / (d_0 + d)
    sigma = np.sqrt(share * s_0**2 + (1 - share) * np.nan_to_num(spread) ** 2)
    sigma[(count == 0) | (spread == 0)] = 0.0
    cdf = ndtr(GRID)
    if tail == "upper":
        known = sigma > 0
        z = (rewards[known] - mu[known, None]) / sigma[known, None]
        cdf = pooled_cdf(z[finite[known]])
    return Beliefs(best, mu, sigma, n, d_0 + d, cdf)


def normal_fit(rewards: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Mean, sd (NaN below two rewards), its degrees of freedom, and the rewards behind the mean; all [prompts]."""
    of = moments(rewards)
    return of.mean, of.sd, np.maximum(of.n - 1.0, 0.0), of.n.astype(np.float64)


def upper_fit(rewards: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Median, root mean square distance of the rewards above it (NaN below two rewards), the number of these, and how
    many rewards have a mean that errs as much as this median (2 / pi of all, if they are normal); all [prompts]."""
    finite = np.isfinite(rewards)
    count = finite.sum(axis=1)
    ordered = np.sort(np.where(finite, rewards, np.inf), axis=1)
    middle = np.stack([np.maximum(count - 1, 0) // 2, np.minimum(count // 2, rewards.shape[1] - 1)], axis=1)
    median = np.where(count > 0, np.take_along_axis(ordered, middle, axis=1).mean(axis=1), np.nan)
    above = finite & (rewards > median[:, None])
    number = above.sum(axis=1)
    squares = (np.where(above, rewards - median[:, None], 0.0) ** 2).sum(axis=1)
    spread = np.where(count > 1, np.sqrt(squares / np.maximum(number, 1)), np.nan)
    return median, spread, number.astype(np.float64), count * 2 / np.pi


def prior(spread: Floats, d: Floats) -> tuple[float, float]:
    """d_0 and s_0, by the mean and variance of log spread^2 over the prompts with spread above 0 (Smyth 2004, 6.2).

    d_0 is infinite where the spread differs no more than chance makes it, or where one prompt alone has one; s_0 is 0
    where none has.
    """
    known = spread > 0
    if not known.any():
        return np.inf, 0.0
    half = d[known] / 2
    logs = 2 * np.log(spread[known]) - psi(half) + np.log(half)
    excess = float(logs.var(ddof=min(1, len(logs) - 1)) - polygamma(1, half).mean())
    if excess <= 0:
        return np.inf, float(np.exp(logs.mean() / 2))
    half_prior = trigamma_inverse(excess)
    return 2 * half_prior, float(np.exp((logs.mean() + psi(half_prior) - np.log(half_prior)) / 2))


def trigamma_inverse(value: float) -> float:
    """The x > 0 whose trigamma is `value` > 0, by Newton's method on its reciprocal (Smyth 2004, appendix)."""
    x, step = 0.5 + 1 / value, np.inf
    while abs(step) > 1e-8 * x:
        trigamma = float(polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, x))
        x += step
    return x


def pooled_cdf(z: Floats) -> Floats:
    """The distribution of the given z on GRID: empirical, and exponential above the quantile of TAIL_SHARE.

    The exponential keeps the mean excess over that quantile. The empirical distribution ends at its highest z, beyond
    which no gain would be expected at all.
    """
    ordered = np.sort(z)
    start = ordered[int(len(ordered) * (1 - TAIL_SHARE))] if len(ordered) else np.inf
    beyond = ordered[ordered > start]
    if len(beyond) == 0:
        return ndtr(GRID)
    cdf = np.searchsorted(ordered, GRID, side="right") / len(ordered)
    tail = 1 - len(beyond) / len(ordered) * np.exp(-np.maximum(GRID - start, 0.0) / (beyond - start).mean())
    return np.where(start < GRID, tail, cdf)
