"""PURE: the figures of pairwise judgements that hold for any benchmark: win rate, draws, and the judge's order bias."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sweetspot.statistics import Floats, Interval, bootstrap_mean

BIASED = 0.1  # a preference for the response shown first that is further from a half is warned of


def preference_of(orders: Sequence[Mapping[str, Any]]) -> float:
    """The weighted mean preference over the ORDERS of a pair; a half for none, which is a draw without asking."""
    total = sum(one["weight"] for one in orders)
    return sum(one["weight"] * one["preference"] for one in orders) / total if total else 0.5


def order_bias(preference: Floats, policy_first: np.ndarray, resamples: int, seed: int) -> Interval:
    """The mean preference for the response shown first: 0.5 without bias, 1 for a judge that looks only there.

    It is the mean of two: the policy's preference where the policy came first, and the baseline's where that did. So
    how good the policy is cancels, whatever the numbers of the two orders.

    Args:
        preference: for the policy [judgements], in [0, 1].
        policy_first: whether the policy's response was shown first [judgements].

    Returns:
        NaN where one of the orders never happened.
    """
    shares = [np.mean(policy_first), 1 - np.mean(policy_first)] if len(policy_first) else [0.0]
    if not all(shares):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    for_first = np.where(policy_first, preference, 1 - preference)
    # each judgement weighted so that both orders count the same
    weights = np.where(policy_first, 0.5 / shares[0], 0.5 / shares[-1])
    return bootstrap_mean(for_first * weights, resamples, seed)


def bias_warning(found: Interval, judge: str) -> str | None:
    """A line about a judge that looks at the place more than at the text, or None."""
    if not found.n or abs(found.mean - 0.5) <= BIASED or found.low <= 0.5 <= found.high:
        return None
    which = "first" if found.mean > 0.5 else "second"
    return (
        f"judge {judge} prefers the response shown {which}: mean preference for the first {found.mean:.2f} "
        f"(95%: {found.low:.2f} to {found.high:.2f}), 0.50 without bias"
    )


def bias_facts(found: Interval, judge: str) -> dict[str, Any]:
    """The bias as it stands in the metrics."""
    return {
        "shown_first": found.mean,
        "shown_first_low": found.low,
        "shown_first_high": found.high,
        "order_warning": bias_warning(found, judge),
    }


def rate(preference: Floats, resamples: int, seed: int) -> dict[str, Any]:
    """The mean preference in percent with its interval; the unit is the prompt."""
    found = bootstrap_mean(preference, resamples, seed)
    return {
        "n_prompts": len(preference),
        "win_rate": 100 * found.mean,
        "win_rate_low": 100 * found.low,
        "win_rate_high": 100 * found.high,
        "n_draws": int(np.count_nonzero(preference == 0.5)),
    }
