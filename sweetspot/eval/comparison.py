"""PURE: the paired comparison of two or more policies that were evaluated on the same prompts.

A difference of means is bootstrapped over prompts and tested by random signs. The length-controlled rate is no mean:
its coefficients are estimates from the same judgements, so each resample fits both policies' regressions again
(bootstrapping the fitted predictions instead would take the coefficients for known and give intervals half as wide),
and each permutation swaps the two policies' answers of some prompts and fits again. Policies of equal rates may differ
in length, so their answers are not exchangeable: the difference is compared with permutations in units of its standard
error, each of its own (Chung and Romano 2013, Exact and asymptotically robust permutation tests). The strength of
regularisation stays as cross-validation chose it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from sweetspot.eval.length_control import Regulariser, length_controlled
from sweetspot.statistics import (
    ALPHA,
    Floats,
    at_planned,
    benjamini_hochberg,
    blocks,
    bootstrap_mean,
    detectable,
    holm,
    power_of,
    sign_flip_p,
)

POWER = 0.8
FITS = 200  # regressions solved at once


@dataclass(frozen=True)
class Measured:
    """A figure of one policy on every prompt: values [prompts], in the unit of the figure."""

    policy: str
    values: Floats


@dataclass(frozen=True)
class AtLength(Measured):
    """What the length-controlled rate of one policy is fitted to: values are preferences in [0, 1].

    Attributes:
        shorter: characters of the baseline's response less those of the policy's [prompts].
        strength: of the policy's regression.
    """

    shorter: Floats
    strength: float


@dataclass(frozen=True)
class Settings:
    """How to compare: draws, their seed, and the study that is planned (prompts, true difference)."""

    resamples: int
    seed: int
    planned: int | None
    effect: float


@dataclass(frozen=True)
class Compared:
    """Second policy less first: the difference with its 95% interval, and what could have been seen."""

    first: str
    second: str
    figure: str
    n: int
    first_mean: float
    second_mean: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    p_bh: float
    detectable: float  # the smallest true difference found with a power of 80% at this n
    planned_n: int
    planned_detectable: float
    planned_power: float  # of finding a true difference of `effect` with planned_n prompts
    effect: float

    @property
    def verdict(self) -> str:
        """What can be said at 5%, over all comparisons of the figure (Holm)."""
        if self.p_holm >= ALPHA:
            return "not distinguishable"
        return f"{self.second if self.difference > 0 else self.first} is better"


def compare(figure: str, measured: Sequence[Measured], settings: Settings) -> list[Compared]:
    """Every pair of policies compared by the mean of a figure, with p-values adjusted over these pairs.

    Args:
        measured: of the same prompts in the same order.
    """
    pairs = list(combinations(measured, 2))
    return _family(figure, pairs, [_means(*pair, settings) for pair in pairs], settings)


def compare_at_length(
    figure: str, measured: Sequence[AtLength], regulariser: Regulariser, settings: Settings
) -> list[Compared]:
    """The same by the length-controlled rate in percent; the regulariser's difficulties are in the prompts' order."""
    pairs = list(combinations(measured, 2))
    return _family(figure, pairs, [_rates(*pair, regulariser, settings) for pair in pairs], settings)


@dataclass(frozen=True)
class _Difference:
    means: tuple[float, float]
    low: float
    high: float
    p: float
    error: float  # standard error of the difference


def _family(
    figure: str, pairs: Sequence[tuple[Measured, Measured]], found: Sequence[_Difference], settings: Settings
) -> list[Compared]:
    p_values = [one.p for one in found]
    adjusted = zip(holm(p_values), benjamini_hochberg(p_values), strict=True)
    return [
        _compared(figure, pair, one, (float(by_holm), float(by_bh)), settings)
        for pair, one, (by_holm, by_bh) in zip(pairs, found, adjusted, strict=True)
    ]


def _means(first: Measured, second: Measured, settings: Settings) -> _Difference:
    differences = second.values - first.values
    drawn = bootstrap_mean(differences, settings.resamples, settings.seed)
    error = float(differences.std(ddof=1) / len(differences) ** 0.5) if len(differences) > 1 else float("nan")
    p = sign_flip_p(differences, settings.resamples, settings.seed)
    return _Difference((float(first.values.mean()), float(second.values.mean())), drawn.low, drawn.high, p, error)


def _rates(first: AtLength, second: AtLength, regulariser: Regulariser, settings: Settings) -> _Difference:
    """The difference of length-controlled rates, refitted for every resample and every permutation."""
    n, rng = len(first.values), np.random.default_rng(settings.seed)
    ones = np.ones((1, n))
    whole = _fit_both(first, second, np.zeros((1, n), dtype=bool), ones, regulariser)
    drawn, swapped = [np.empty(0)], [np.empty(0)]
    for size in blocks(settings.resamples, FITS):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)
        rates = _fit_both(first, second, np.zeros((size, n), dtype=bool), counts, regulariser)
        drawn.append(rates[1] - rates[0])
        swap = rng.integers(0, 2, size=(size, n)).astype(bool)
        rates = _fit_both(first, second, swap, np.ones((size, n)), regulariser)
        swapped.append(rates[1] - rates[0])
    differences, permuted = np.concatenate(drawn), np.concatenate(swapped)
    error, observed = float(differences.std()), abs(float(whole[1][0] - whole[0][0]))
    if error > 0:
        observed *= float(permuted.std()) / error
    beyond = int(np.count_nonzero(np.abs(permuted) >= observed * (1 - 1e-12)))
    # "weibull": the limits leave out 2.5% on average, which with few draws other ways of interpolating do not
    low, high = np.quantile(differences, (ALPHA / 2, 1 - ALPHA / 2), method="weibull")
    p = (beyond + 1) / (settings.resamples + 1)
    return _Difference((float(whole[0][0]), float(whole[1][0])), float(low), float(high), p, error)


def _fit_both(
    first: AtLength, second: AtLength, swap: np.ndarray, counts: Floats, regulariser: Regulariser
) -> tuple[Floats, Floats]:
    """Both policies' rates in percent [sets], with the answers of the prompts in `swap` [sets, n] exchanged."""
    sides: list[Floats] = []
    for own, other in ((first, second), (second, first)):
        preference = np.where(swap, other.values, own.values)
        shorter = np.where(swap, other.shorter, own.shorter)
        sides.append(length_controlled(preference, shorter, counts, regulariser, own.strength)[0])
    return sides[0], sides[1]


def _compared(
    figure: str, pair: tuple[Measured, Measured], found: _Difference, adjusted: tuple[float, float], settings: Settings
) -> Compared:
    n = len(pair[0].values)
    planned = settings.planned or n
    error = at_planned(found.error, n, planned)
    return Compared(
        first=pair[0].policy,
        second=pair[1].policy,
        figure=figure,
        n=n,
        first_mean=found.means[0],
        second_mean=found.means[1],
        difference=found.means[1] - found.means[0],
        low=found.low,
        high=found.high,
        p=found.p,
        p_holm=adjusted[0],
        p_bh=adjusted[1],
        detectable=detectable(found.error, POWER),
        planned_n=planned,
        planned_detectable=detectable(error, POWER),
        planned_power=power_of(settings.effect, error),
        effect=settings.effect,
    )
