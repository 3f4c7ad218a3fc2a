"""Moments, normality, best and worst of k, and the normal pool: by hand, by brute force and by other libraries."""

import math
import subprocess
import sys
import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sweetspot.distribution import (
    expected_pair,
    expected_position,
    indistinct,
    max_of_k_curve,
    min_of_k_curve,
    moments,
    normality,
    points_apart,
)
from sweetspot.strategy import PositionPair, paper_pairs

NAN = math.nan


def normal(prompts: int, n: int, seed: int = 0) -> NDArray[np.float64]:
    """Rewards of a normal pool with a mean and sd of its own for each prompt."""
    rng = np.random.default_rng(seed)
    return rng.normal(rng.normal(size=(prompts, 1)), rng.uniform(0.5, 2, size=(prompts, 1)), size=(prompts, n))


# --- moments


def test_moments_of_a_small_prompt_are_those_worked_by_hand() -> None:
    # mean 2; distances -2 -1 -1 4: squares 22, cubes 54, fourth powers 274
    of = moments([[0.0, 1.0, 1.0, 6.0]])
    assert of.n.tolist() == [4]
    assert of.mean == pytest.approx([2])
    assert of.sd == pytest.approx([math.sqrt(22 / 3)])
    assert moments([[0.0, 1.0, 1.0, 6.0]], ddof=0).sd == pytest.approx([math.sqrt(22 / 4)])
    assert of.skew == pytest.approx([(54 / 4) / (22 / 4) ** 1.5])
    assert of.kurtosis == pytest.approx([(274 / 4) / (22 / 4) ** 2 - 3])


def test_moments_read_finite_rewards_only() -> None:
    of, complete = moments([[NAN, 0.0, 1.0, math.inf, 1.0, 6.0, -math.inf]]), moments([[0.0, 1.0, 1.0, 6.0]])
    for name in ("n", "mean", "sd", "skew", "kurtosis"):
        assert getattr(of, name) == pytest.approx(getattr(complete, name))


def test_moments_that_cannot_be_had_are_nan_and_warn_of_nothing() -> None:
    of = moments([[NAN, NAN, NAN], [NAN, 2.0, NAN], [0.1, 0.1, 0.1]])
    assert of.n.tolist() == [0, 1, 3]
    assert of.mean == pytest.approx([NAN, 2.0, 0.1], nan_ok=True)
    assert of.sd.tolist()[2] == 0  # exactly, though the mean of three 0.1 is not 0.1
    assert np.isnan(of.sd).tolist() == [True, True, False]
    assert np.isnan(of.skew).all()
    assert np.isnan(of.kurtosis).all()
    assert moments(np.empty((0, 5))).mean.shape == (0,)


def test_equal_rewards_have_no_z_and_warn_of_nothing() -> None:
    equal = np.array([[2.0, 2.0, 2.0], [NAN] * 3, [0.0, 1.0, 2.0]], dtype=np.float32)
    np.testing.assert_array_equal(moments(equal).z(equal), [[NAN] * 3, [NAN] * 3, [-1.0, 0.0, 1.0]])


def test_moments_equal_scipys() -> None:
    from scipy import stats

    rewards = np.random.default_rng(3).gamma(2, size=(50, 40)).astype(np.float32)
    rewards[:, :10][np.random.default_rng(4).random((50, 10)) < 0.5] = np.nan
    of = moments(rewards)
    wide = rewards.astype(np.float64)
    assert of.mean == pytest.approx(np.nanmean(wide, axis=1))
    assert of.sd == pytest.approx(np.nanstd(wide, axis=1, ddof=1))
    assert of.skew == pytest.approx(stats.skew(wide, axis=1, nan_policy="omit"))
    assert of.kurtosis == pytest.approx(stats.kurtosis(wide, axis=1, nan_policy="omit"))


# --- normality


def test_most_normal_prompts_look_normal_and_most_skewed_ones_do_not() -> None:
    found = normality(normal(200, 64))
    assert 0.90 < found.shapiro_share < 0.99  # 95% are expected at alpha 5%
    assert 0.90 < found.lilliefors_share < 0.99
    assert found.shapiro_share_adjusted > 0.98  # few are left when 200 tests are accounted for
    skewed = normality(np.random.default_rng(0).exponential(size=(100, 64)))
    assert skewed.shapiro_share < 0.02
    assert skewed.lilliefors_share < 0.1


def test_each_p_value_is_that_of_the_library_for_the_finite_rewards_of_its_prompt() -> None:
    from scipy.stats import shapiro
    from statsmodels.stats.diagnostic import lilliefors

    rewards = normal(5, 20)
    rewards[1, ::3] = np.nan
    found = normality(rewards)
    rows = [row[np.isfinite(row)] for row in rewards]
    assert found.shapiro == pytest.approx([shapiro(row).pvalue for row in rows])
    assert found.lilliefors == pytest.approx([lilliefors(row)[1] for row in rows])


def test_lilliefors_rejects_what_a_plain_kolmogorov_smirnov_test_with_fitted_moments_accepts() -> None:
    from scipy.stats import kstest

    rewards = np.random.default_rng(1).exponential(size=(100, 30))
    standard = (rewards - rewards.mean(axis=1, keepdims=True)) / rewards.std(axis=1, ddof=1, keepdims=True)
    plain = np.mean([kstest(row, "norm").pvalue >= 0.05 for row in standard])
    assert plain > 0.5 > 0.3 > normality(rewards).lilliefors_share


def test_adjusted_p_values_are_those_of_benjamini_and_hochberg() -> None:
    found = normality(
        np.vstack([normal(6, 30), np.full((1, 30), 2.0), np.random.default_rng(2).exponential(size=(3, 30))])
    )
    p = found.shapiro[np.isfinite(found.shapiro)]
    ascending = np.argsort(p)
    expected, smallest = np.empty(9), 1.0
    for rank in range(9, 0, -1):
        smallest = min(smallest, p[ascending[rank - 1]] * 9 / rank)
        expected[ascending[rank - 1]] = smallest
    assert found.shapiro_adjusted[np.isfinite(found.shapiro)] == pytest.approx(expected)
    assert found.shapiro_share_adjusted == pytest.approx(np.mean(expected >= 0.05))


def test_constant_and_short_prompts_are_not_tested_and_not_counted() -> None:
    rewards = np.full((4, 12), np.nan)
    rewards[0] = 0.1
    rewards[1, :2] = [1, 2]
    rewards[2, :3] = [1, 2, 4]
    found = normality(rewards)
    assert np.isnan(found.shapiro).tolist() == [True, True, False, True]
    assert np.isnan(found.lilliefors).all()
    assert found.shapiro_share == 1
    assert math.isnan(found.lilliefors_share)


# --- best and worst of k


def brute_force(row: NDArray[np.float64], k: int, best: bool) -> float:
    """The mean over all subsets of k of their best, or worst, reward."""
    return float(np.mean([max(subset) if best else min(subset) for subset in combinations(row.tolist(), k)]))


def test_the_best_of_two_of_three_rewards_by_hand() -> None:
    # subsets 1 2, 1 4, 2 4: maxima 2 4 4, minima 1 1 2
    assert max_of_k_curve([[4.0, 1.0, 2.0]], [1, 2, 3]).mean == pytest.approx([7 / 3, 10 / 3, 4])
    assert min_of_k_curve([[4.0, 1.0, 2.0]], [1, 2, 3]).mean == pytest.approx([7 / 3, 4 / 3, 1])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=9), st.data())
def test_the_estimators_equal_the_mean_over_all_subsets(row: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(row)))
    rewards = np.array([row])
    assert max_of_k_curve(rewards, [k], resamples=2).mean[0] == pytest.approx(
        brute_force(rewards[0], k, True), abs=1e-9
    )
    assert min_of_k_curve(rewards, [k], resamples=2).mean[0] == pytest.approx(
        brute_force(rewards[0], k, False), abs=1e-9
    )


def test_each_prompt_uses_its_own_finite_rewards_and_counts_up_to_their_number() -> None:
    rewards = np.array([[4.0, NAN, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0], [NAN, NAN, NAN, NAN]])
    curve = max_of_k_curve(rewards, [2, 4])
    assert curve.mean == pytest.approx([(10 / 3 + brute_force(rewards[1], 2, True)) / 2, 3])
    assert curve.prompts.tolist() == [2, 1]


def test_the_estimator_is_stable_for_400_samples_and_any_k() -> None:
    rewards = np.arange(400.0)[None]
    curve = max_of_k_curve(rewards, range(1, 401), resamples=2)
    k = np.arange(1, 401)
    assert curve.mean == pytest.approx(
        401 * k / (k + 1) - 1, rel=1e-9
    )  # the mean maximum of k of 1 .. n is (n+1) k/(k+1)


def test_the_estimator_is_unbiased_for_a_normal_pool() -> None:
    curve = max_of_k_curve(np.random.default_rng(0).normal(size=(4000, 20)), [5, 10])
    assert curve.mean == pytest.approx([1.163, 1.539], abs=0.02)
    assert (curve.low < [1.163, 1.539]).all()
    assert (curve.high > [1.163, 1.539]).all()


def test_the_band_is_that_of_the_mean_over_prompts_and_repeats_with_its_seed() -> None:
    rewards = normal(400, 8)
    curve = max_of_k_curve(rewards, [1], seed=3, resamples=4000)
    means = rewards.mean(axis=1)
    half = 1.96 * means.std(ddof=1) / 20
    assert curve.low[0] == pytest.approx(means.mean() - half, abs=0.1 * half)
    assert curve.high[0] == pytest.approx(means.mean() + half, abs=0.1 * half)
    again, other = (
        max_of_k_curve(rewards, [1], seed=np.random.default_rng(3), resamples=4000),
        max_of_k_curve(rewards, [1]),
    )
    assert again.low == curve.low != other.low
    worst = min_of_k_curve(rewards, [5])
    assert worst.low[0] < worst.mean[0] < worst.high[0]


@pytest.mark.parametrize("k", [[0], [5], [2, 5], []])
def test_a_k_that_no_prompt_can_answer_is_refused(k: list[int]) -> None:
    for curve in (max_of_k_curve, min_of_k_curve):
        with pytest.raises(ValueError, match="k must be from 1 to the 4 finite rewards that a prompt has, got"):
            curve(np.zeros((2, 4)), k)


def test_rewards_must_be_a_matrix() -> None:
    for function in (moments, normality, lambda rewards: max_of_k_curve(rewards, [1])):
        with pytest.raises(ValueError, match=r"shape \[prompts, n_samples\], got \[4\]"):
            function(np.zeros(4))


# --- the normal pool: the table of the paper's notes, to more digits (its 91% is 92.2%, its 0.6% is 0.52%)

TABLE = [  # n, E[max], max - min of 5, mu-2s is the min, distinct points, degenerate pairs
    (5, 1.16296, 2.326, 1.000, 3.3, 0.257),
    (10, 1.53875, 2.702, 1.000, 4.9, 0.105),
    (20, 1.86748, 3.030, 0.922, 5.15, 0.088),
    (50, 2.24907, 3.412, 0.43, 6.14, 0.041),
    (100, 2.50759, 3.671, 0.10, 6.8, 0.0097),
    (200, 2.74604, 3.909, 0.0052, 6.99, 0.0005),
    (400, 2.96818, 4.131, 0.000, 7.0, 0.0),
]


@pytest.mark.parametrize(("n", "best", "gap_of_5", "is_min", "distinct", "degenerate"), TABLE)
def test_the_table_of_a_normal_pool_comes_out(
    n: int, best: float, gap_of_5: float, is_min: float, distinct: float, degenerate: float
) -> None:
    assert expected_position("max", n).z == pytest.approx(best, abs=2e-5)
    assert expected_position("min", n).z == pytest.approx(-best, abs=2e-5)
    assert best - expected_position("min_of_5", n).z == pytest.approx(gap_of_5, abs=0.001)
    low, high = expected_position("mu-2sigma", n), expected_position("mu+2sigma", n)
    assert low.share_min == pytest.approx(is_min, abs=0.005 if n < 200 else 0.001)
    assert high.share_max == pytest.approx(is_min, abs=0.005 if n < 200 else 0.0015)
    assert points_apart(n) == (pytest.approx(distinct, abs=0.05), pytest.approx(degenerate, abs=0.001))


def test_order_statistics_have_their_known_expectations() -> None:
    assert expected_position("max", 2).z == pytest.approx(1 / math.sqrt(math.pi))
    assert expected_position("min", 3).z == pytest.approx(-1.5 / math.sqrt(math.pi))
    assert expected_position("min_of_5", 64).z == pytest.approx(-1.1629644736)
    assert expected_position("max_of_2", 64).z == pytest.approx(1 / math.sqrt(math.pi))
    assert expected_position("q0.5", 9).z == pytest.approx(0, abs=1e-12)
    assert expected_position("q0.5", 10).z == pytest.approx(0, abs=1e-12)
    assert expected_position("random", 7).z == 0


def test_exact_positions_agree_with_a_simulated_pool() -> None:
    pool = np.random.default_rng(9).normal(size=(40_000, 12))
    for position in ("q0.05", "q0.5", "q0.2", "min_of_5"):
        selection = PositionPair(chosen="max", rejected=position)(pool)
        z = pool[selection.prompt, selection.rejected]
        expected = expected_position(position, 12)
        assert z.mean() == pytest.approx(expected.z, abs=0.015)
        assert (selection.rejected == pool[selection.prompt].argmin(axis=1)).mean() == pytest.approx(
            expected.share_min, abs=0.01
        )
        assert expected.share_max == 0


def test_shares_of_first_positions_are_exact() -> None:
    assert expected_position("min_of_5", 20).share_min == 0.25
    assert expected_position("max_of_3", 4).share_max == 0.75
    assert expected_position("random", 4).share_min == expected_position("random", 4).share_max == 0.25


@pytest.mark.parametrize(("rejected", "n", "share"), [("mu+2sigma", 64, 0.71), ("mu+2sigma", 20, 0.08)])
def test_where_a_pair_lies_is_told_of_the_prompts_that_give_one(rejected: str, n: int, share: float) -> None:
    """Against other draws: where two positions fall on one response there is no pair, so the best lies further out."""
    rewards = np.random.default_rng(7).standard_normal((4_000_000 // n, n))
    z = (rewards - rewards.mean(axis=1, keepdims=True)) / rewards.std(axis=1, ddof=1, keepdims=True)
    picked = np.take_along_axis(z, np.abs(z - float(rejected[2:-5])).argmin(axis=1)[:, None], axis=1)[:, 0]
    kept = picked < z.max(axis=1)
    assert kept.mean() == pytest.approx(share, abs=0.005)
    found = expected_pair(PositionPair(chosen="max", rejected=rejected), n)
    assert found == pytest.approx((z.max(axis=1)[kept].mean(), picked[kept].mean()), abs=0.015)
    assert found is not None
    assert found[0] > z.max(axis=1).mean() + 0.1


def test_where_a_pair_lies_that_every_prompt_gives_is_exact_and_in_sample_standard_deviations() -> None:
    best = 1.16296447 / (2**0.5 * math.gamma(2.5) / math.gamma(2) / 2)  # E[max] of 5 over E[sd] (ddof 1)
    assert expected_pair(PositionPair(chosen="max", rejected="min"), 5) == pytest.approx((best, -best), rel=1e-6)


def test_where_a_pair_lies_is_told_by_its_own_ddof() -> None:
    """At n = 5 the response nearest to mu - sigma lies at -0.90 or -1.10 of the true sigma, by how sigma is divided."""
    rewards = np.random.default_rng(7).standard_normal((400_000, 5))
    middle, sd = rewards.mean(axis=1, keepdims=True), rewards.std(axis=1, ddof=1, keepdims=True)
    for ddof in (0, 1):
        target = middle - rewards.std(axis=1, ddof=ddof, keepdims=True)
        column = np.abs(rewards - target).argmin(axis=1)[:, None]
        z = np.take_along_axis((rewards - middle) / sd, column, axis=1).mean()
        found = expected_pair(PositionPair(chosen="max", rejected="mu-sigma", ddof=ddof), 5)
        assert found is not None
        assert found[1] == pytest.approx(z, abs=0.005)


def test_a_pair_that_no_prompt_gives_lies_nowhere() -> None:
    """No z of five reaches 1.79, so mu + 2 sigma is always the maximum."""
    assert expected_pair(PositionPair(chosen="max", rejected="mu+2sigma"), 5) is None


def test_a_position_that_needs_more_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="n must be >= 5 for the position min_of_5, got 4"):
        expected_position("min_of_5", 4)
    with pytest.raises(ValueError, match="n must be >= 2 for the position max, got 1"):
        expected_position("max", 1)


# --- the warning before a run


def warning(chosen: str, rejected: str, n: int) -> str | None:
    """The warning for a pair at n."""
    return indistinct(PositionPair(chosen=chosen, rejected=rejected), n)


def test_a_position_that_is_the_minimum_for_most_prompts_is_told_before_the_run() -> None:
    assert warning("max", "mu-2sigma", 16) == (
        "at n=16 the response at mu-2sigma is the minimum for 98% of prompts of a normal pool; "
        "the study of this pair needs n >= 64"
    )
    assert warning("max", "mu-2sigma", 64) is None
    both = warning("mu+2sigma", "mu-2sigma", 16)
    assert both is not None
    assert "mu+2sigma is the maximum" in both
    assert "mu-2sigma is the minimum" in both
    assert "\n" not in both


def test_points_far_out_say_how_many_samples_they_would_need() -> None:
    assert "76% of prompts of a normal pool; the study of this pair needs n >= 1536" in (
        warning("max", "mu-3sigma", 400) or ""
    )
    assert "would need n > 3072" in (warning("max", "mu-4sigma", 400) or "")


def test_the_worst_of_five_is_the_minimum_of_few() -> None:
    assert "the response at min_of_5 is the minimum for 100%" in (warning("max", "min_of_5", 5) or "")
    assert warning("max", "min_of_5", 16) is None


def test_two_positions_on_one_response_are_told() -> None:
    told = warning("mu+0.1sigma", "mu", 16)
    assert told is not None
    assert told.startswith("at n=16 both positions of (mu+0.1sigma, mu) fall on one response for ")
    assert warning("mu+sigma", "mu", 64) is None


def test_plain_pairs_need_no_warning_at_any_n() -> None:
    assert [warning("max", "min", n) for n in (2, 5, 400)] == [None] * 3
    assert [warning("random", "random", n) for n in (2, 5, 400)] == [None] * 3
    with pytest.raises(ValueError, match="n_samples must be >= 5"):
        warning("max", "min_of_5", 4)


def test_a_warning_takes_less_than_a_second() -> None:
    expected_position.cache_clear()
    for chosen, rejected in (("mu+4sigma", "mu-4sigma"), ("mu+0.1sigma", "mu"), *paper_pairs()[:2]):
        started = time.perf_counter()
        warning(chosen, rejected, 16)
        assert time.perf_counter() - started < 3  # 0.3 s on an idle core


def test_the_module_loads_no_statsmodels() -> None:
    code = "import sys, sweetspot.distribution; sys.exit('statsmodels' in sys.modules or 'scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
