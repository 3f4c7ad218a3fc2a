"""Paired statistics: numbers worked by hand, intervals that cover, and families whose error stays at 5%."""

import numpy as np
import pytest

from sweetspot.eval.comparison import AtLength, Measured, Settings, compare, compare_at_length
from sweetspot.eval.length_control import Regulariser
from sweetspot.statistics import (
    at_planned,
    benjamini_hochberg,
    blocks,
    bootstrap_ratio,
    detectable,
    holm,
    power_of,
    sign_flip_p,
)


def test_random_signs_of_three_equal_differences_reach_the_sum_in_two_of_eight_cases() -> None:
    # +++ and --- of eight sign patterns: p = 1/4
    assert sign_flip_p(np.array([1.0, 1.0, 1.0]), 20_000, seed=0) == pytest.approx(0.25, abs=0.01)
    assert sign_flip_p(np.zeros(5), 100, seed=0) == 1.0
    assert sign_flip_p(np.full(40, 2.0), 999, seed=0) == 1 / 1000


def test_holm_and_benjamini_hochberg_by_hand() -> None:
    # sorted .01 .02 .04: Holm x3, x2, x1 made monotone; BH x3/1, x3/2, x3/3 made monotone from above
    np.testing.assert_allclose(holm([0.04, 0.01, 0.02]), [0.04, 0.03, 0.04])
    np.testing.assert_allclose(benjamini_hochberg([0.04, 0.01, 0.02]), [0.04, 0.03, 0.03])
    assert len(holm([])) == len(benjamini_hochberg([])) == 0


def test_adjusted_p_values_are_those_of_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    values = [*np.random.default_rng(0).uniform(size=20), 0.5, 0.5, 1.0]
    np.testing.assert_allclose(holm(values), multipletests(values, method="holm")[1])
    np.testing.assert_allclose(benjamini_hochberg(values), multipletests(values, method="fdr_bh")[1])


def test_the_detectable_difference_is_2_8_standard_errors_and_is_found_in_80_of_100() -> None:
    assert detectable(1.0, 0.8) == pytest.approx(1.959964 + 0.841621, abs=1e-5)
    assert power_of(detectable(0.7, 0.8), 0.7) == pytest.approx(0.8, abs=1e-4)
    assert power_of(0.0, 1.0) == pytest.approx(0.05)
    assert at_planned(1.0, 805, 4 * 805) == pytest.approx(0.5)


def test_a_ratio_of_sums_weighs_prompts_by_their_denominators() -> None:
    found = bootstrap_ratio(np.array([3.0, 0.0]), np.array([3.0, 1.0]), 1000, 0)
    assert found.mean == 0.75
    assert (found.low, found.high) == (0.0, 1.0)


def test_blocks_add_up() -> None:
    assert blocks(7, 3) == [3, 3, 1]
    assert blocks(0, 3) == []


SETTINGS = Settings(resamples=1000, seed=0, planned=None, effect=1.0)


def annotations(rng: np.random.Generator, n: int, advantage: float) -> np.ndarray:
    """Preferences in percent that are sure of themselves, as a judge's are: near 0 or 100, with a known mean."""
    return 100 * (rng.uniform(size=n) < 0.4 + advantage / 100) * rng.beta(20, 1, size=n)


@pytest.mark.slow
def test_the_interval_of_a_known_difference_covers_it_in_93_to_97_of_100_trials() -> None:
    rng, covered = np.random.default_rng(0), 0
    truth = 5.0 * 20 / 21  # five points more wins, times the mean of beta(20, 1)
    for trial in range(1000):
        hard = rng.normal(0, 10, size=150)  # what both policies share in a prompt
        first = Measured("first", annotations(rng, 150, 0.0) + hard)
        second = Measured("second", annotations(rng, 150, 5.0) + hard)
        (found,) = compare("win rate", [first, second], Settings(1000, trial, None, 1.0))
        covered += found.low <= truth <= found.high
    assert 930 <= covered <= 970


@pytest.mark.slow
def test_holm_keeps_the_chance_of_any_false_finding_among_six_at_5_percent() -> None:
    rng, false = np.random.default_rng(1), {"holm": 0, "plain": 0}
    for trial in range(1000):
        equal = [Measured(f"policy {number}", annotations(rng, 80, 0.0)) for number in range(4)]
        found = compare("win rate", equal, Settings(1000, trial, None, 1.0))
        false["holm"] += any(one.verdict != "not distinguishable" for one in found)
        false["plain"] += any(one.p < 0.05 for one in found)
    assert false["holm"] <= 50 + 14  # two standard errors of 1,000 trials
    assert false["plain"] > 120  # without adjustment about one family in five


def test_a_difference_of_one_point_at_805_prompts_is_not_distinguishable() -> None:
    rng = np.random.default_rng(2)
    first, second = annotations(rng, 805, 0.0), annotations(rng, 805, 0.0)
    second += 1.0 + first.mean() - second.mean()
    (found,) = compare("win rate", [Measured("a", first), Measured("b", second)], SETTINGS)
    assert found.difference == pytest.approx(1.0)
    assert found.verdict == "not distinguishable"
    assert found.detectable > 4


def test_a_large_difference_is_named_and_its_interval_lies_on_one_side() -> None:
    rng = np.random.default_rng(3)
    first, second = annotations(rng, 805, 0.0), annotations(rng, 805, 15.0)
    (found,) = compare("win rate", [Measured("a", first), Measured("b", second)], SETTINGS)
    assert found.verdict == "b is better"
    assert found.low > 0


def length_controlled_trial(rng: np.random.Generator, n: int, advantage: float) -> list[AtLength]:
    """Two policies whose preferences follow difficulty, length, and for the second an advantage in logits."""
    difficulty = np.linspace(-1, 1, n)
    made = []
    for name, better in (("a", 0.0), ("b", advantage)):
        shorter = rng.normal(0, 500, size=n)
        logit = better + 0.5 * difficulty - np.tanh(shorter / 500)
        made.append(AtLength(name, (rng.uniform(size=n) < 1 / (1 + np.exp(-logit))).astype(float), shorter, 2.7825594))
    return made


@pytest.mark.slow
def test_length_controlled_differences_are_refitted_in_every_draw() -> None:
    n, rng = 300, np.random.default_rng(4)
    regular = Regulariser(np.linspace(-1, 1, n), np.zeros((10, 2)), np.full(10, 0.5))
    (null,) = compare_at_length("LC", length_controlled_trial(rng, n, 0.0), regular, SETTINGS)
    assert null.verdict == "not distinguishable"
    assert null.low < 0 < null.high
    # the interval is that of an estimated rate, not of predictions whose coefficients are taken for known
    assert 9 < null.high - null.low < 20
    (found,) = compare_at_length("LC", length_controlled_trial(rng, n, 1.2), regular, SETTINGS)
    assert found.verdict == "b is better"
    assert found.difference == pytest.approx(22, abs=8)  # 50% against the mean of sigmoid(1.2 + d/2)
