"""Held-out figures: paired by prompt, ties are halves, intervals that cover."""

import numpy as np
import pyarrow as pa
import pytest

from sweetspot.eval import distinct, preferences
from sweetspot.eval.judged import bias_warning, order_bias
from sweetspot.schema import SCORES
from sweetspot.stages.held_out import signs_p
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


@pytest.mark.parametrize(("prompts", "p"), [(3, 2 / 8), (5, 2 / 32), (6, 2 / 64)])
def test_few_prompts_that_are_all_better_may_be_so_by_chance(prompts: int, p: float) -> None:
    """Two of the 2^n choices of signs lie as far out, though the bootstrap's interval leaves 0 out for any n."""
    rows = [
        {"prompt_id": f"{row}", "sample_index": at, "response": "", "baseline": "", "preference": 1.0}
        | {"reward": 1.0 + row + at, "baseline_reward": 2.0 * at}  # of the second response the start's is the better
        for row in range(prompts)
        for at in range(2)
    ]
    assert signs_p(pa.Table.from_pylist(rows, schema=SCORES), 0) == pytest.approx(p, rel=0.1)
    assert bootstrap_mean(np.arange(0.5, prompts), 1000, 0).low > 0


def test_distinct_2_counts_different_pairs_of_words() -> None:
    # a b, b a, a b | c d: three different of four
    assert distinct(["a b a b", "c d"]) == 0.75
    assert np.isnan(distinct(["one", ""]))


def order(policy_first: bool, preference: float) -> dict[str, float]:
    """A judgement of the policy's response."""
    return {"policy_first": policy_first, "preference": preference, "weight": 1.0}


def test_a_judge_without_bias_has_none_however_good_the_policy_is() -> None:
    """It prefers the policy by 0.9 wherever that stands: 0.9 for the first where that is the policy's, and 0.1 else."""
    found = order_bias([[order(number % 3 == 0, 0.9)] for number in range(300)], 1000, 0)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert bias_warning(found, "judge") is None


def test_the_interval_of_the_bias_is_two_standard_errors_of_the_mean_of_both_orders() -> None:
    """100 prompts with the policy first and 400 with the baseline: the variance is that of both means over four."""
    rng = np.random.default_rng(0)
    first, second = rng.uniform(0.4, 1.0, size=100), rng.uniform(0.0, 1.0, size=400)
    asked = [[order(True, one)] for one in first] + [[order(False, one)] for one in second]
    found = order_bias(asked, 10_000, 0)
    error = 0.5 * np.sqrt(first.var() / 100 + second.var() / 400)
    assert found.mean == pytest.approx((first.mean() + 1 - second.mean()) / 2)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.05)


def test_two_judgements_of_a_prompt_are_drawn_together() -> None:
    """Both orders of a prompt prefer the first alike, so there are 200 figures and not 400; a draw has no order."""
    liking = np.random.default_rng(0).uniform(0.5, 0.9, size=200)
    asked = [[order(False, 1 - one), order(True, one)] for one in liking]
    found = order_bias([*asked, []], 10_000, 0)
    assert (found.mean, found.n) == (pytest.approx(liking.mean()), 200)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * liking.std() / 200**0.5, rel=0.05)
    alone = order_bias(asked[:1], 1000, 0)
    assert (alone.mean, np.isnan(alone.low)) == (pytest.approx(liking[0]), True)
    assert bias_warning(alone, "judge") is None
    assert order_bias([[order(True, 0.5)]] * 9, 1000, 0).n == 0
