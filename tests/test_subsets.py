"""What fewer responses would give, and what stands at a position: by hand, by brute force and by simulation."""

import math
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from sweetspot.distribution import (
    at_picks,
    best_of_k_by,
    best_of_n_kl,
    curve,
    expected_position,
    length_slope,
    max_of_k_curve,
    mean_sd,
    order_statistics,
    picks,
    position_of_k,
    ranked_z,
    realised_z,
    shape_by_n,
    tail_share,
)
from sweetspot.strategy import FiniteRewards, Position, PositionPair

NAN = math.nan


def over_all_subsets(row: NDArray[np.float64], k: int, position: str) -> float:
    """The mean reward at a position over all subsets of k, in their order."""
    found = []
    for subset in combinations(row.tolist(), k):
        some = FiniteRewards(np.array([subset]), 1)
        found.append(some.values[0, Position.parse(position).pick(some)[0]])
    return float(np.mean(found))


@pytest.mark.parametrize("position", ["min", "max", "q0.3", "q0.5", "q0.9", "random"])
def test_order_statistics_of_k_are_the_mean_over_all_subsets_of_k(position: str) -> None:
    """Of all orders, where a position depends on the order: a median of an even number takes either of two."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(2, 7))
    found = position_of_k(rewards, position, [2, 3, 4, 7])
    orders = [rng.permuted(rewards, axis=1) for _ in range(100)] if position in ("q0.5", "random") else [rewards]
    for column, k in enumerate([2, 3, 4, 7]):
        brute = [np.mean([over_all_subsets(one[row], k, position) for one in orders]) for row in range(2)]
        assert found[:, column] == pytest.approx(brute, abs=0.25 if len(orders) > 1 else 1e-9)


def test_the_median_of_three_of_four_rewards_by_hand() -> None:
    # subsets 1 2 4, 1 2 8, 1 4 8, 2 4 8: medians 2 2 4 4
    assert position_of_k([[8.0, 1.0, 4.0, 2.0]], "q0.5", [3])[0] == pytest.approx([3])
    assert position_of_k([[8.0, 1.0, 4.0, 2.0]], "q0.5", [2])[0] == pytest.approx([15 / 4])  # either of two: the mean


def test_the_worst_of_two_stays_put_as_k_grows_and_needs_two() -> None:
    # pairs 1 2, 1 4, 2 4: minima 1 1 2
    assert position_of_k([[4.0, 1.0, 2.0]], "min_of_2", [1, 2, 3])[0] == pytest.approx([NAN, 4 / 3, 4 / 3], nan_ok=True)
    assert np.isnan(position_of_k([[4.0, 1.0, 2.0]], "min_of_5", [2, 3])).all()
    assert position_of_k([[4.0, NAN, 2.0]], "max_of_2", [2])[0] == pytest.approx([4])


def test_a_sigma_position_of_k_is_near_its_mean_over_all_subsets_and_exact_for_all_of_them() -> None:
    rewards = np.random.default_rng(1).normal(size=(3, 8))
    rewards[2, 3] = NAN
    found = position_of_k(rewards, "mu-sigma", [1, 4, 7, 8], subsets=4000)
    assert np.isnan(found[:, 0]).all()  # one reward has no sigma
    for row in range(3):
        finite = rewards[row][np.isfinite(rewards[row])]
        assert found[row, 1] == pytest.approx(over_all_subsets(finite, 4, "mu-sigma"), abs=0.03)
    assert found[0, 3] == pytest.approx(over_all_subsets(rewards[0], 8, "mu-sigma"))
    assert found[2, 2] == pytest.approx(over_all_subsets(np.delete(rewards[2], 3), 7, "mu-sigma"))
    assert math.isnan(found[2, 3])


def test_a_sigma_position_of_k_of_a_large_pool_is_what_a_normal_pool_of_k_expects() -> None:
    rewards = np.random.default_rng(2).normal(size=(300, 64))
    found = position_of_k(rewards, "mu-2sigma", [10, 32], subsets=20).mean(axis=0)
    assert found == pytest.approx([expected_position("mu-2sigma", k).z for k in (10, 32)], abs=0.05)


def test_the_gold_reward_of_the_best_of_k_by_hand() -> None:
    # selecting 1 2 3 with gold 5 9 1: the best of two is 2, 3, 3 -> gold 9 1 1; the worst 1, 1, 2 -> 5 5 9
    selecting, gold = [[3.0, 1.0, 2.0]], [[1.0, 5.0, 9.0]]
    assert best_of_k_by(selecting, gold, [1, 2, 3])[0] == pytest.approx([5, 11 / 3, 1])
    assert best_of_k_by(selecting, gold, [1, 2, 3], "min")[0] == pytest.approx([5, 19 / 3, 5])
    assert best_of_k_by(gold, gold, [2])[0] == pytest.approx(max_of_k_curve(gold, [2], resamples=2).mean)


def test_equal_selecting_rewards_are_chosen_at_random_and_a_response_needs_both() -> None:
    # 3 twice with gold 2 and 6: the best of all is either, 4 in the mean; of two: 3,3 -> 4; 3,1 -> 2; 3,1 -> 6
    assert best_of_k_by([[3.0, 3.0, 1.0]], [[2.0, 6.0, 0.0]], [2, 3])[0] == pytest.approx([4, 4])
    assert best_of_k_by([[3.0, 2.0, 1.0]], [[NAN, 6.0, 0.0]], [1, 2])[0] == pytest.approx([3, 6])
    with pytest.raises(ValueError, match="k must be from 1 to the 2 finite rewards"):
        best_of_k_by([[3.0, 2.0, 1.0]], [[NAN, 6.0, 0.0]], [3])


def test_the_divergence_of_best_of_n() -> None:
    assert best_of_n_kl([1, 2, 64]) == pytest.approx([0, math.log(2) - 0.5, math.log(64) - 63 / 64])


def test_a_band_of_differences_is_paired_and_a_k_that_no_prompt_has_is_nan() -> None:
    rng = np.random.default_rng(3)
    prompts = rng.normal(size=(200, 1)) * 10  # what a pair has in common
    first, second = prompts + rng.normal(size=(200, 1)), prompts + 1 + rng.normal(size=(200, 1))
    apart, paired = curve(second, [4]), curve(second - first, [4])
    assert paired.mean[0] == pytest.approx((second - first).mean())
    assert (paired.high - paired.low)[0] < 0.3 * (apart.high - apart.low)[0]
    lacking = curve(np.array([[1.0, NAN], [3.0, NAN]]), [1, 2])
    assert (lacking.prompts.tolist(), lacking.mean[0]) == ([2, 0], 2)
    assert np.isnan([lacking.mean[1], lacking.low[1], lacking.high[1]]).all()


# --- positions


def test_picks_are_those_of_the_strategies_and_read_finite_rewards() -> None:
    rewards = np.array([[0.0, 1.0, 2.0, 10.0], [NAN, 5.0, NAN, 3.0], [NAN, NAN, NAN, 3.0]])
    assert picks(rewards, ["min", "max", "mu", "min_of_3"]).tolist() == [
        [0, 3, -1],
        [3, 1, -1],
        [2, 1, -1],
        [0, -1, -1],
    ]
    pool = np.random.default_rng(4).normal(size=(50, 20))
    chosen, rejected = picks(pool, ["mu+sigma", "mu-2sigma"])
    selection = PositionPair(chosen="mu+sigma", rejected="mu-2sigma")(pool)
    assert chosen[selection.prompt].tolist() == selection.chosen.tolist()
    assert rejected[selection.prompt].tolist() == selection.rejected.tolist()


def test_a_small_pool_s_collisions_are_those_of_a_normal_pool() -> None:
    pool = np.random.default_rng(5).normal(size=(4000, 10))
    low, two, high = picks(pool, ["min", "mu-2sigma", "max"])
    assert (low == two).mean() == pytest.approx(expected_position("mu-2sigma", 10).share_min, abs=0.01)
    assert not (low == high).any()


def test_realised_z_by_hand() -> None:
    # mean 2, sd sqrt(2): z of 0 and 4 is -+sqrt(2)
    rewards = [[0.0, 2.0, 2.0, 2.0, 4.0], [1.0, 1.0, 1.0, 1.0, 1.0]]
    found = realised_z(rewards, np.array([[0, 0], [4, 1], [-1, -1]]))
    assert found[:, 0] == pytest.approx([-math.sqrt(2), math.sqrt(2), NAN], nan_ok=True)
    assert np.isnan(found[:, 1]).all()
    assert at_picks([[7, 8, 9]], np.array([[2], [-1]]))[:, 0] == pytest.approx([9, NAN], nan_ok=True)


# --- shape and length


def test_order_statistics_are_those_of_the_tables() -> None:
    assert order_statistics(2) == pytest.approx([-1 / math.sqrt(math.pi), 1 / math.sqrt(math.pi)])
    assert order_statistics(5) == pytest.approx([-1.16296, -0.49502, 0, 0.49502, 1.16296], abs=1e-5)
    assert mean_sd(2) == pytest.approx(math.sqrt(2 / math.pi))  # E|x - y| / sqrt(2)
    assert mean_sd(5) == pytest.approx(0.93999, abs=1e-5)  # c4 of quality control


def test_ranked_z_of_a_normal_pool_is_predicted_and_incomplete_prompts_are_left_out() -> None:
    pool = np.random.default_rng(6).normal(size=(20_000, 6)) * 3 + 1
    observed, predicted = ranked_z(pool)
    assert observed.mean(axis=0) == pytest.approx(predicted, abs=0.01)
    pool[0, 2], pool[1] = NAN, 1.0
    assert np.isnan(ranked_z(pool[:3])[0]).all(axis=1).tolist() == [True, True, False]


def test_the_share_beyond_two_sd_is_exact_for_a_normal_pool() -> None:
    assert tail_share(2 / math.sqrt(3), 3) == pytest.approx(0, abs=1e-6)  # no z of three is larger
    assert tail_share(0, 7) == pytest.approx(0.5)
    assert tail_share(2, 10**6) == pytest.approx(0.02275, abs=1e-5)
    pool = np.random.default_rng(7).normal(size=(4000, 10))
    (of,) = shape_by_n(pool, [10], resamples=50)
    assert (of.below.mean, of.above.mean) == pytest.approx((of.normal_tail, of.normal_tail), abs=0.003)
    assert of.normal_tail == tail_share(2, 10)


def test_the_shape_by_n_reads_the_first_n_and_tells_skew_from_normal() -> None:
    rng = np.random.default_rng(8)
    normal, skewed = rng.normal(size=(150, 64)), -rng.exponential(size=(150, 64))
    few, many = shape_by_n(np.hstack([normal[:, :32], skewed[:, :32]]), [32, 64], resamples=200)
    assert (few.n, many.n) == (32, 64)
    assert few.shapiro.mean == pytest.approx(0.95, abs=0.06)
    assert few.shapiro_adjusted > 0.97
    assert few.shapiro.low < 0.95 < few.shapiro.high
    assert many.shapiro.high < 0.7
    assert many.skew.high < 0 < few.skew.high
    (lower,) = shape_by_n(skewed, [64], resamples=200)
    assert lower.below.low > lower.normal_tail > lower.above.mean == 0


def test_the_reward_of_a_token_is_the_slope_within_prompts() -> None:
    # prompt 0: tokens 1 2 3, rewards 0 1 5: cov 5, var 2; prompt 1: tokens 0 2, rewards 100 96: cov -4, var 2
    tokens = [[1, 2, 3], [0, 2, 7], [4, 4, 4]]
    rewards = [[0.0, 1.0, 5.0], [100.0, 96.0, NAN], [1.0, 2.0, 3.0]]
    found = length_slope(rewards, tokens, resamples=100)
    assert found.mean == pytest.approx((5 - 4) / (2 + 2))
    assert found.n == 2  # the third prompt's lengths are equal
    rng = np.random.default_rng(9)
    lengths = rng.integers(10, 60, size=(80, 16))
    slope = length_slope(rng.normal(size=(80, 1)) * 9 + 0.02 * lengths + rng.normal(size=(80, 16)), lengths)
    assert slope.low < 0.02 < slope.high < 0.03
