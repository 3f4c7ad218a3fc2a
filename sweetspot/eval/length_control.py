"""PURE: the length-controlled win rate as a fit that can be repeated thousands of times.

alpaca-eval fits one logistic regression a policy, which takes seconds with its cross-validation, and calls the standard
error of its predictions the standard error of the rate. That leaves out that the coefficients are estimates: with 805
prompts it gives about 0.6 points where the rate really varies by about 1.2. Here the same regression at a given
strength of regularisation is solved for many resamples at once, so that an interval can come from refitting.

Source: Dubois et al. 2024, Length-Controlled AlpacaEval, 2404.04475; alpaca-eval 0.6.6, metrics/glm_winrate.py.
"""

from dataclasses import dataclass

import numpy as np

from sweetspot.statistics import Floats

STRENGTHS = tuple(float(value) for value in np.logspace(-4, 4, 10))  # C, among which alpaca-eval cross-validates
GAMED_WEIGHT = 0.1  # of each of the two gamed baselines' rows: lambda = 0.2 over two
STEPS, SWEEPS, TOLERANCE = 50, 100, 1e-7
LONGEST_STEP = 2.0  # of a coefficient
FLAT = 1e-12  # curvature of a feature that is zero everywhere, whose coefficient stays zero


@dataclass(frozen=True)
class Regulariser:
    """What the regression knows beforehand.

    Attributes:
        difficulty: of each prompt [n], in the benchmark's order.
        rows: [m, 2] features of the verbose and concise baselines: tanh of the length difference, difficulty.
        preference: [m] of the judge for the baseline over them, in [0, 1].
    """

    difficulty: Floats
    rows: Floats
    preference: Floats


def length_controlled(
    preference: Floats, shorter: Floats, counts: Floats, regulariser: Regulariser, strength: float
) -> tuple[Floats, Floats]:
    """The win rates in percent if policy and baseline had answered at equal length, for many data sets at once.

    Args:
        preference: for the policy [sets, n], in [0, 1].
        shorter: characters of the baseline's response less those of the policy's [sets, n].
        counts: how often each prompt is in each set [sets, n]; ones for the data themselves.
        strength: C of the regression; larger regularises less.

    Returns:
        The rates [sets] and the coefficients [sets, 3] of length, difficulty and policy.
    """
    total = counts.sum(axis=1, keepdims=True)
    mean = (counts * shorter).sum(axis=1, keepdims=True) / total
    spread = np.sqrt((counts * (shorter - mean) ** 2).sum(axis=1, keepdims=True) / (total - 1))
    length = np.tanh(shorter / np.where(spread > 0, spread, 1.0))
    weights = _fit(preference, length, counts, regulariser, strength)
    predicted = _sigmoid(weights[:, 1:2] * regulariser.difficulty + weights[:, 2:3])
    return 100 * (counts * predicted).sum(axis=1) / total[:, 0], weights


def nearest_strength(preference: Floats, shorter: Floats, regulariser: Regulariser, rate: float) -> float:
    """The strength among alpaca-eval's that gives the rate [percent] which its cross-validation came to."""
    ones = np.ones((1, len(preference)))
    rates = [length_controlled(preference[None], shorter[None], ones, regulariser, c)[0][0] for c in STRENGTHS]
    return STRENGTHS[int(np.argmin(np.abs(np.array(rates) - rate)))]


def _fit(preference: Floats, length: Floats, counts: Floats, regulariser: Regulariser, strength: float) -> Floats:
    """Coefficients [sets, 3] that minimise strength x weighted log loss + |coefficients|, by Newton steps.

    Each step minimises the loss's parabola at the present coefficients plus the absolute values (`_lasso`).
    """
    sets = len(preference)
    difficulty = np.broadcast_to(regulariser.difficulty, length.shape)
    own = np.stack([length, difficulty, np.ones_like(length)], axis=2)  # [sets, n, 3]
    gamed = np.column_stack([regulariser.rows, np.zeros(len(regulariser.rows))])  # [m, 3]
    weights = np.zeros((sets, 3))
    for _ in range(STEPS):
        gradient, curvature = np.zeros((sets, 3)), np.zeros((sets, 3, 3))
        for x, y, w in ((own, preference, counts), (gamed, regulariser.preference, GAMED_WEIGHT)):
            predicted = _sigmoid(np.einsum("...nk,...k->...n", x, weights) if x.ndim == 3 else weights @ x.T)
            error, bend = w * (predicted - y), w * predicted * (1 - predicted)
            gradient += np.einsum("snk,sn->sk" if x.ndim == 3 else "nk,sn->sk", x, error)
            shape = "sn,snk,snl->skl" if x.ndim == 3 else "sn,nk,nl->skl"
            curvature += np.einsum(shape, bend, x, x, optimize=True)
        step = _lasso(strength * gradient, strength * curvature, weights) - weights
        weights = weights + np.clip(step, -LONGEST_STEP, LONGEST_STEP)
        if np.abs(step).max(initial=0) < TOLERANCE:
            break
    return weights


def _lasso(gradient: Floats, curvature: Floats, weights: Floats) -> Floats:
    """The coefficients b [sets, 3] that minimise gradient (b - weights) + curvature (b - weights)^2 / 2 + |b|.

    By one coefficient after the other (Friedman et al. 2010, Regularization Paths by Coordinate Descent, section 2).
    """
    found = weights.copy()
    for _ in range(SWEEPS):
        before = found.copy()
        for k in range(weights.shape[1]):
            bend = np.maximum(curvature[:, k, k], FLAT)
            slope = gradient[:, k] + np.einsum("sl,sl->s", curvature[:, k], found - weights)
            free = found[:, k] - slope / bend
            found[:, k] = np.sign(free) * np.maximum(np.abs(free) - 1 / bend, 0)
        if np.abs(found - before).max(initial=0) < TOLERANCE / 10:
            break
    return found


def _sigmoid(values: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(values / 2))
