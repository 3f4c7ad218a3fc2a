"""PURE: the figures of pairwise judgements that hold for any benchmark: win rate, draws, and the judge's order bias."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sweetspot.statistics import ALPHA, BATCH, Floats, Interval, blocks, bootstrap_mean

BIASED = 0.1  # a preference for the response shown first that is further from a half is warned of


def preference_of(orders: Sequence[Mapping[str, Any]]) -> float:
    """The weighted mean preference over the ORDERS of a pair; a half for none, which is a draw without asking."""
    total = sum(one["weight"] for one in orders)
    return sum(one["weight"] * one["preference"] for one in orders) / total if total else 0.5


def order_bias(orders: Sequence[Sequence[Mapping[str, Any]]], resamples: int, seed: int) -> Interval:
    """The mean preference for the response shown first: 0.5 without bias, 1 for a judge that looks only there.

    It is the mean of two: the policy's preference where the policy came first, and the baseline's where that did. So
    how good the policy is cancels, whatever the numbers of the two orders. The interval is a percentile bootstrap over
    prompts, whose judgements stay together; each draw takes both means again.

    Args:
        orders: the ORDERS of each prompt; one without any is not counted.

    Returns:
        NaN where one of the orders never happened, and NaN limits for one prompt. A draw that lacks an order, as may
        happen with few prompts, is left out.
    """
    asked, unknown = [row for row in orders if row], float("nan")
    sums = np.zeros(
        (4, len(asked))
    )  # of preferences for the first where that is the policy's, and how many; baseline's
    for prompt, row in enumerate(asked):
        for one in row:
            first = one["preference"] if one["policy_first"] else 1 - one["preference"]
            sums[0 if one["policy_first"] else 2, prompt] += first
            sums[1 if one["policy_first"] else 3, prompt] += 1
    if not (sums[1].any() and sums[3].any()):
        return Interval(unknown, unknown, unknown, 0)
    mean = float(_of_both(sums.sum(axis=1)[:, None])[0])
    if len(asked) < 2:
        return Interval(mean, unknown, unknown, len(asked))
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, len(asked), (size, len(asked))) for size in blocks(resamples, max(1, BATCH // len(asked)))]
    means = np.concatenate([_of_both(sums[:, rows].sum(axis=2)) for rows in drawn])
    low, high = np.nanquantile(means, (ALPHA / 2, 1 - ALPHA / 2))
    return Interval(mean, float(low), float(high), len(asked))


def _of_both(sums: Floats) -> Floats:
    """The mean of the two orders' means, from sums and counts [4, draws]; NaN where an order is missing."""
    both = (sums[1] > 0) & (sums[3] > 0)
    first, second = (sums[at] / np.where(both, sums[at + 1], np.nan) for at in (0, 2))
    return (first + second) / 2


def bias_warning(found: Interval, judge: str) -> str | None:
    """A line about a judge that looks at the place more than at the text, or None."""
    if not found.n or abs(found.mean - 0.5) <= BIASED or not (found.low > 0.5 or found.high < 0.5):
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
