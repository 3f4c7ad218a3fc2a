"""Held-out figures: paired by prompt, ties are halves, intervals that cover."""

import numpy as np
import pytest

from sweetspot.eval import distinct, preferences
from sweetspot.statistics import bootstrap_mean


def test_a_preference_is_1_0_or_a_half_and_both_orders_mirror() -> None:
    policy, start = np.array([[2.0, 1.0, 1.0, np.nan]]), np.array([[1.0, 2.0, 1.0, 1.0]])
    np.testing.assert_array_equal(preferences(policy, start), [[1.0, 0.0, 0.5, np.nan]])
    np.testing.assert_array_equal(preferences(start, policy), [[0.0, 1.0, 0.5, np.nan]])


def test_the_interval_is_about_two_standard_errors_and_the_same_for_a_seed() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, size=400)
    interval = bootstrap_mean(values, 10_000, seed=1)
    error = values.std(ddof=1) / np.sqrt(400)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert interval == bootstrap_mean(values, 10_000, seed=1)


def test_the_95_percent_interval_covers_the_truth_about_95_times_in_100() -> None:
    draws = np.random.default_rng(2).exponential(1.0, size=(300, 60))
    covered = [
        low <= 1.0 <= high for low, high in ((i.low, i.high) for i in (bootstrap_mean(d, 1000, 0) for d in draws))
    ]
    assert 0.89 <= np.mean(covered) <= 0.98


def test_nan_prompts_are_left_out_and_one_prompt_has_no_interval() -> None:
    assert bootstrap_mean(np.array([1.0, np.nan, 3.0]), 1000, 0).n == 2
    alone = bootstrap_mean(np.array([4.0]), 1000, 0)
    assert alone.mean == 4.0
    assert np.isnan(alone.low)
    assert np.isnan(bootstrap_mean(np.array([]), 1000, 0).mean)


def test_equal_differences_have_an_interval_of_no_width() -> None:
    interval = bootstrap_mean(np.full(10, 0.25), 1000, 0)
    assert (interval.low, interval.mean, interval.high) == (0.25, 0.25, 0.25)


def test_distinct_2_counts_different_pairs_of_words() -> None:
    # a b, b a, a b | c d: three different of four
    assert distinct(["a b a b", "c d"]) == 0.75
    assert np.isnan(distinct(["one", ""]))
