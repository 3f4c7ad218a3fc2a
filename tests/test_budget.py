"""Budgets: the expected gain by hand and by brute force, who gets a block, and that the budget holds."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.special import ndtr, polygamma, psi

from sweetspot.budget import Adaptive, allocate, drawn, uneven
from sweetspot.budget.gain import (
    GRID,
    Beliefs,
    Tail,
    beliefs,
    best_of,
    blocks_at,
    normal_fit,
    pooled_cdf,
    prior,
    trigamma_inverse,
    upper_fit,
    worth_drawing,
)
from sweetspot.distribution import moments

NAN = math.nan
TAILS: tuple[Tail, Tail] = ("normal", "upper")


def pool(prompts: int, n: int, spread: float = 0.3, seed: int = 0) -> NDArray[np.float64]:
    """Normal rewards, with a mean and a log-normal sigma of its own for each prompt."""
    rng = np.random.default_rng(seed)
    sigma = np.exp(spread * rng.standard_normal((prompts, 1)))
    return rng.normal(rng.normal(size=(prompts, 1)), sigma, size=(prompts, n))


def known(best: list[float], mu: list[float], sigma: list[float]) -> Beliefs:
    """Normal prompts whose mu and sigma are certain."""
    n, d = np.full(len(mu), 1e18), np.full(len(mu), math.inf)
    return Beliefs(np.array(best), np.array(mu), np.array(sigma), n, d, ndtr(GRID))


def adaptive(pilot: int = 4, mean: int = 8, most: int = 16, threshold: float = 0.0, tail: Tail = "normal") -> Adaptive:
    return Adaptive(pilot=pilot, mean_samples=mean, max_samples=most, threshold=threshold, tail=tail)


def run(
    budget: Adaptive, rewards: NDArray[np.float64], block: int = 4, chosen: str = "max"
) -> tuple[NDArray[np.intp], int]:
    return allocate(budget, lambda _: rewards, len(rewards), block, chosen)


# --- the gain


def test_the_gain_of_one_draw_is_its_closed_form() -> None:
    # sigma * (phi(a) - a * (1 - Phi(a))): a = 0 gives phi(0) = .398942; a = 1 gives .241971 - .158655 = .083315;
    # mu = 3, sigma = 2, best = 7: a = 2, 2 * (.053991 - 2 * .022750) = .016981
    gain = known([0.0, 1.0, 7.0], [0.0, 0.0, 3.0], [1.0, 1.0, 2.0]).gain(1)
    assert gain == pytest.approx([0.398942, 0.083315, 0.016981], abs=2e-6)


def test_the_gain_over_a_best_far_below_is_the_expected_maximum_itself() -> None:
    # E[max of 2] = 1 / sqrt(pi) = .564190 and E[max of 3] = 3 / (2 sqrt(pi)) = .846284 above the mean
    assert known([-20.0], [0.0], [1.0]).gain(2) - 20 == pytest.approx([0.564190], abs=1e-5)
    assert known([-20.0], [0.0], [1.0]).gain(3) - 20 == pytest.approx([0.846284], abs=1e-5)


def test_the_gain_is_that_of_brute_force_with_uncertain_mu_and_sigma() -> None:
    # posterior of 9 rewards with mean 0, sd 1 and a prior of 4 degrees at s = 1: 12 in all
    of = Beliefs(np.array([1.2]), np.zeros(1), np.ones(1), np.full(1, 9.0), np.full(1, 12.0), ndtr(GRID))
    rng = np.random.default_rng(0)
    sigma = np.sqrt(12 / rng.chisquare(12, size=400_000))
    mu = rng.normal(0, sigma / 3)
    best = (mu[:, None] + sigma[:, None] * rng.standard_normal((400_000, 4))).max(axis=1)
    rise = np.maximum(best - 1.2, 0)
    assert of.gain(4) == pytest.approx([rise.mean()], abs=4 * rise.std() / math.sqrt(len(rise)) + 0.01 * rise.mean())


def test_a_block_exceeds_z_unless_all_its_draws_lie_below() -> None:
    exceeds, expected = best_of(ndtr(GRID), 2)
    assert np.interp(0.0, GRID, exceeds) == pytest.approx(3 / 4)
    assert expected[-1] == 0
    assert (np.diff(expected) <= 0).all()


# --- what is believed


def test_the_prior_is_that_of_limma_s_moments() -> None:
    # trigamma(d_0 / 2) = var(log s^2) - trigamma(d / 2). With s^2 = exp(+-1) and d = 8:
    # variance 2 (ddof 1), trigamma(4) = pi^2 / 6 - 1 - 1 / 4 - 1 / 9 = .283823
    d_0, s_0 = prior(np.exp([-0.5, 0.5]), np.array([8.0, 8.0]))
    assert polygamma(1, d_0 / 2) == pytest.approx(2 - 0.283823, abs=1e-6)
    digamma = 1 + 1 / 2 + 1 / 3 - np.euler_gamma  # of d / 2 = 4
    assert trigamma_inverse(math.pi**2 / 6) == pytest.approx(1)
    assert 2 * math.log(s_0) == pytest.approx(0 - digamma + math.log(4) + psi(d_0 / 2) - math.log(d_0 / 2))


def test_the_prior_finds_the_degrees_and_scale_that_drew_it() -> None:
    rng = np.random.default_rng(1)
    sigma = 2 * np.sqrt(10 / rng.chisquare(10, size=20_000))  # d_0 = 10, s_0 = 2
    spread = sigma * np.sqrt(rng.chisquare(15, size=20_000) / 15)
    assert prior(spread, np.full(20_000, 15.0)) == pytest.approx((10, 2), rel=0.06)


def test_spreads_that_differ_by_chance_alone_are_taken_as_one() -> None:
    d_0, s_0 = prior(np.array([1.0, 1.0, 1.0]), np.full(3, 15.0))
    assert math.isinf(d_0)
    assert s_0 == pytest.approx(math.exp((math.log(7.5) - float(polygamma(0, 7.5))) / 2))
    assert prior(np.array([0.0, NAN]), np.array([3.0, 0.0])) == (math.inf, 0.0)


def test_the_fits_of_a_small_prompt_are_those_worked_by_hand() -> None:
    # rewards 0 1 2 4 8: mean 3, squares 9 + 4 + 1 + 1 + 25 = 40; median 2, above it 4 and 8: (4 + 36) / 2 = 20
    rewards = np.array([[8.0, 1.0, NAN, 0.0, 4.0, 2.0], [NAN] * 6, [5.0] + [NAN] * 5, [1.0, 3.0] + [NAN] * 4])
    mean, sd, d, n = normal_fit(rewards)
    assert mean == pytest.approx([3, NAN, 5, 2], nan_ok=True)
    assert sd == pytest.approx([math.sqrt(10), NAN, NAN, math.sqrt(2)], nan_ok=True)
    assert (d.tolist(), n.tolist()) == ([4, 0, 0, 1], [5, 0, 1, 2])
    median, spread, above, _ = upper_fit(rewards)
    assert median == pytest.approx([2, NAN, 5, 2], nan_ok=True)
    assert spread == pytest.approx([math.sqrt(20), NAN, NAN, 1], nan_ok=True)
    assert above.tolist() == [2, 0, 0, 1]


def test_the_upper_fit_does_not_see_broken_answers() -> None:
    rewards = pool(50, 17, spread=0.0)
    broken = rewards.copy()
    broken[np.arange(50), rewards.argmin(axis=1)] -= 20
    for fitted, was in zip(upper_fit(broken), upper_fit(rewards), strict=True):
        assert fitted == pytest.approx(was)


def test_the_pooled_distribution_is_empirical_with_an_exponential_tail() -> None:
    # 0.00 .. 0.99: the upper 5% starts at z = .95, above which .96 .. .99 have the mean excess .025
    cdf = pooled_cdf(np.arange(100) / 100)
    assert np.interp([-1.0, 0.5025], GRID, cdf) == pytest.approx([0, 0.51], abs=0.01)
    assert cdf[np.searchsorted(GRID, 1.0)] == pytest.approx(1 - 0.04 * math.exp(-0.05 / 0.025), abs=0.001)
    assert (np.diff(cdf) >= 0).all()
    assert pooled_cdf(np.zeros(3)) == pytest.approx(ndtr(GRID))


@pytest.mark.parametrize("tail", TAILS)
def test_what_normal_prompts_promise_is_what_they_give(tail: Tail) -> None:
    rewards = pool(4000, 32, seed=3)
    promised = beliefs(rewards[:, :16], tail, 32).gain(16).mean()
    rise = np.maximum(rewards[:, 16:].max(axis=1) - rewards[:, :16].max(axis=1), 0)
    assert promised == pytest.approx(rise.mean(), rel=0.12)


# --- who gets the next block


def test_the_next_block_goes_where_more_is_expected() -> None:
    # the same best: the wider prompt promises more; the same sigma: the lower best does
    of = known([1.0, 1.0, 0.5], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0])
    assert worth_drawing(of, np.array([9, 9, 9]), 1, 4, 0.0).tolist() == [False, True, False]
    assert worth_drawing(of, np.array([9, 0, 9]), 1, 4, 0.0).tolist() == [False, False, True]
    assert worth_drawing(of, np.array([9, 9, 9]), 27, 4, 0.0).tolist() == [True, True, True]


def test_the_blocks_expected_at_a_price_are_a_capped_geometric_number() -> None:
    # the price of a best at 0: two draws pass 0 with probability 3/4, so at most 2 blocks take 1 + 1/4 on the average
    of = known([-1.0], [0.0], [1.0])
    price = float(known([0.0], [0.0], [1.0]).gain(2)[0])
    assert blocks_at(price, of, of.gain(2), np.array([2]), 2) == pytest.approx(1.25, abs=1e-4)
    assert blocks_at(2.0, of, of.gain(2), np.array([2]), 2) == 0


def test_equal_prompts_get_equal_blocks_and_a_tie_goes_to_the_first() -> None:
    row = np.random.default_rng(0).standard_normal(16)
    counts, _ = run(adaptive(mean=8), np.tile(row, (6, 1)))
    assert counts.tolist() == [8] * 6
    counts, _ = run(adaptive(mean=6), np.tile(row, (6, 1)))
    assert counts.tolist() == [8, 8, 8, 4, 4, 4]


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("mean", [4, 5, 7, 8, 15, 16])
def test_the_budget_is_never_exceeded_and_nearly_used_up(tail: Tail, mean: int) -> None:
    rewards = pool(101, 16, seed=mean)
    counts, rounds = run(adaptive(mean=mean, tail=tail), rewards)
    assert mean * 101 - 4 < counts.sum() <= mean * 101
    assert counts.min() >= 4
    assert counts.max() <= 16
    assert not (counts % 4).any()
    assert rounds <= 12


def test_an_adaptive_budget_beats_a_uniform_one_where_prompts_differ() -> None:
    rewards = pool(2000, 64, spread=0.8, seed=5)
    counts, rounds = run(adaptive(pilot=8, mean=16, most=64), rewards, block=8)
    chosen, uniform = np.nanmax(drawn(rewards, counts), axis=1), rewards[:, :16].max(axis=1)
    difference = chosen - uniform
    assert counts.mean() <= 16
    assert difference.mean() > 4 * difference.std() / math.sqrt(2000)
    assert rounds <= 16


def test_degenerate_prompts_get_nothing_after_the_pilot() -> None:
    rewards = pool(8, 16)
    rewards[0], rewards[1], rewards[2, 1:] = 2.5, NAN, NAN
    for tail in TAILS:
        counts, _ = run(adaptive(mean=8, tail=tail), rewards)
        assert counts[:2].tolist() == [4, 4]
        assert counts[[0, 2, 3, 4, 5, 6, 7]].sum() == 7 * 8  # the prompt without rewards has no share in the budget


def test_a_pool_of_degenerate_prompts_ends_after_the_pilot() -> None:
    for rewards in (np.full((3, 16), NAN), np.ones((3, 16)), np.empty((0, 16))):
        counts, rounds = run(adaptive(), rewards)
        assert counts.tolist() == [4] * len(rewards)
        assert rounds == (1 if len(rewards) else 0)


def test_only_the_samples_that_were_drawn_are_read() -> None:
    rewards = pool(40, 16, seed=2)
    full, _ = run(adaptive(), rewards)
    masked, _ = allocate(adaptive(), lambda counts: drawn(rewards, counts), 40, 4, "max")
    assert masked.tolist() == full.tolist()


def test_a_threshold_stops_before_the_budget_is_used_up() -> None:
    rewards = pool(200, 64, seed=4)
    counts = [run(adaptive(mean=64, most=64, threshold=least), rewards)[0] for least in (0.0, 0.05, 0.2, 100.0)]
    assert counts[0].mean() == 64
    assert counts[0].mean() > counts[1].mean() > counts[2].mean() > 4
    assert counts[3].tolist() == [4] * 200


def test_samples_that_the_best_of_k_cannot_use_are_not_drawn() -> None:
    counts, _ = run(adaptive(mean=16, most=16), pool(20, 16), chosen="max_of_8")
    assert counts.tolist() == [8] * 20


@pytest.mark.parametrize(
    ("budget", "chosen", "line"),
    [
        (adaptive(), "mu+2sigma", "strategy.chosen must be max or max_of_k with an adaptive budget"),
        (
            adaptive(pilot=6),
            "max",
            "sampler.pilot_samples must be a multiple of sampler.tile_samples (4) with an adaptive budget, got 6",
        ),
        (
            adaptive(most=18),
            "max",
            "n_samples must be a multiple of sampler.tile_samples (4) with an adaptive budget, got 18",
        ),
    ],
)
def test_what_does_not_go_with_a_budget_is_refused_in_one_line(budget: Adaptive, chosen: str, line: str) -> None:
    with pytest.raises(ValueError) as refused:
        run(budget, pool(2, 20), chosen=chosen)
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


def test_the_fields_of_a_budget_are_in_ascending_order() -> None:
    with pytest.raises(ValidationError, match="pilot <= mean_samples <= max_samples, got 4, 2, 16"):
        adaptive(mean=2)


def test_an_uneven_pool_is_labelled() -> None:
    assert uneven(np.array([16, 16]), 16) is None
    said = uneven(np.array([16, 128, 48]), 16) or ""
    assert said.startswith("uneven n: 16 to 128 samples a prompt, mean 64.0. ")
    assert said.endswith("those of the first 16 samples of each prompt are not")


@pytest.mark.slow
def test_the_shape_of_an_adaptive_pool_is_biased_and_that_of_its_pilot_is_not() -> None:
    # a prompt that was lucky stops there, and its one high reward stays: normal rewards look spread and right-skewed
    rewards = pool(20_000, 32, spread=0.0, seed=7)
    counts, _ = run(adaptive(pilot=8, mean=16, most=32), rewards, block=8)
    for of, biased in ((drawn(rewards, counts), True), (rewards[:, :8], False)):
        variance, skew = moments(of).sd ** 2 - 1, moments(of).skew
        for statistic in (variance, skew):
            in_errors = statistic.mean() / (statistic.std() / math.sqrt(20_000))
            assert in_errors > 10 if biased else abs(in_errors) < 4
