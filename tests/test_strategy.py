"""Positions, pairs and selections, worked by hand and held against a slow reference that reads one row at a time."""

import math
import pickle
import re
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sweetspot.strategy import POINTS, Position, PositionPair, Selection, paper_pairs

NAN = math.nan
MORE_PAIRS = [
    ("max", "min_of_5"),
    ("max", "mu-3sigma"),
    ("mu+4sigma", "mu-4sigma"),
    ("max_of_3", "q0.05"),
    ("q0.9", "mu-1.5sigma"),
    ("q0.5", "min"),
    ("random", "min_of_2"),
    ("min_of_2", "min"),
    ("mu", "random"),
    ("random", "random"),
]


def pairs_of(selection: Selection) -> list[tuple[int, int, int]]:
    """The selection as (prompt, chosen, rejected)."""
    columns = (selection.prompt.tolist(), selection.chosen.tolist(), selection.rejected.tolist())
    return list(zip(*columns, strict=True))


def dropped_of(selection: Selection) -> dict[str, list[int]]:
    """The dropped rows as lists."""
    return {reason: rows.tolist() for reason, rows in selection.dropped.items()}


def one(chosen: str, rejected: str, row: list[float], ddof: int = 1) -> tuple[int, int] | str:
    """The columns that a single prompt gives, or the reason why it gives none."""
    selection = PositionPair(chosen=chosen, rejected=rejected, ddof=ddof)(np.array([row], dtype=np.float64))
    if len(selection.prompt):
        return int(selection.chosen[0]), int(selection.rejected[0])
    (reason,) = [reason for reason, rows in selection.dropped.items() if len(rows)]
    return reason


# --- the reference: one row, plain Python, means and quantiles in rationals


def reference_position(text: str, rewards: list[float], ddof: int) -> int:
    """The index, among finite rewards, of the response that represents a position."""
    exact = [Fraction(reward) for reward in rewards]
    if text in ("min", "max"):
        return exact.index(min(exact) if text == "min" else max(exact))
    if text == "random":
        return 0
    if "_of_" in text:
        best, k = text.split("_of_")
        first = exact[: int(k)]
        return first.index(min(first) if best == "min" else max(first))
    if text.startswith("q"):
        place = Fraction(text[1:]) * (len(exact) - 1)
        low = math.floor(place)
        ordered = sorted(exact)
        target = ordered[low] + (ordered[min(low + 1, len(exact) - 1)] - ordered[low]) * (place - low)
    else:
        mean = sum(exact) / len(exact)
        multiple = text.removeprefix("mu").removesuffix("sigma")
        times = Fraction({"": "0", "+": "1", "-": "-1"}.get(multiple, multiple))
        variance = sum((reward - mean) ** 2 for reward in exact) / (len(exact) - ddof)
        target = mean + times * Fraction(math.sqrt(variance))
    distances = [abs(reward - target) for reward in exact]
    return distances.index(min(distances))


def reference(
    chosen: str, rejected: str, ddof: int, rewards: NDArray[np.floating]
) -> tuple[list, dict[str, list[int]]]:
    """What PositionPair returns, as (prompt, chosen, rejected) and dropped rows."""
    kept: list[tuple[int, int, int]] = []
    dropped: dict[str, list[int]] = {"too_few": [], "same_response": [], "no_margin": []}
    least = max([2, *(int(text.split("_of_")[1]) for text in (chosen, rejected) if "_of_" in text)])
    for row, values in enumerate(rewards.tolist()):
        columns = [column for column, value in enumerate(values) if math.isfinite(value)]
        if len(columns) < least:
            dropped["too_few"].append(row)
            continue
        finite = [values[column] for column in columns]
        if chosen == rejected == "random":
            high, low = sorted(columns[:2], key=lambda column: -values[column])
        else:
            high, low = (columns[reference_position(text, finite, ddof)] for text in (chosen, rejected))
        if high == low:
            dropped["same_response"].append(row)
        elif values[high] <= values[low]:
            dropped["no_margin"].append(row)
        else:
            kept.append((row, high, low))
    return kept, dropped


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize(("chosen", "rejected"), [*paper_pairs(), *MORE_PAIRS])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_pair_equals_the_row_by_row_reference(
    chosen: str, rejected: str, ddof: int, dtype: type[np.floating]
) -> None:
    rng = np.random.default_rng(7)
    strategy = PositionPair(chosen=chosen, rejected=rejected, ddof=ddof)
    for n, missing in ((5, 0.0), (6, 0.4), (33, 0.1), (64, 0.0)):
        rewards = rng.normal(3, 2, size=(30, n)).astype(dtype)
        rewards[rng.random(rewards.shape) < missing] = rng.choice([np.nan, np.inf, -np.inf])
        rewards[:3] = rewards[:3, :1]  # constant rows
        rewards[3:9] = rewards[3:9].round()  # equal rewards
        if "sigma" in chosen + rejected:  # integers may lie as far from mu + k * sigma as rounding can tell
            rewards[3:9] += rng.normal(0, 0.01, size=(6, n)).astype(dtype)
        selection = strategy(rewards)
        assert (pairs_of(selection), dropped_of(selection)) == reference(chosen, rejected, ddof, rewards)


# --- by hand


def test_the_seven_points_of_a_small_prompt_are_its_nearest_rewards() -> None:
    # 0 .. 8 and their mean 4; sigma = sqrt(60 / 8) = 2.74: mu-2s = -1.48, mu-s = 1.26, mu+s = 6.74, mu+2s = 9.48
    row = [4.0, 8.0, 0.0, 1.0, 7.0, 2.0, 3.0, 5.0, 6.0]
    assert one("mu+sigma", "mu-sigma", row) == (4, 3)
    assert one("mu+2sigma", "mu-2sigma", row) == (1, 2)
    assert one("max", "mu", row) == (1, 0)
    assert one("mu+0.5sigma", "mu-1.5sigma", row) == (7, 2)  # 5.37 -> 5, -0.11 -> 0


def test_ddof_decides_where_sigma_makes_the_difference() -> None:
    # mean 0, squares 2: sigma 1 with ddof 1 (three rewards), 0.82 with ddof 0; between 0 and 1 the border lies at 0.5
    row = [-1.0, 0.0, 1.0]
    assert one("max", "mu+0.55sigma", row, ddof=1) == "same_response"  # 0.55 is nearer to 1
    assert one("max", "mu+0.55sigma", row, ddof=0) == (2, 1)  # 0.45 is nearer to 0


def test_ties_go_to_the_lowest_index() -> None:
    assert one("max", "min", [1.0, 5.0, 5.0, 1.0]) == (1, 0)
    assert one("max", "mu", [5.0, 2.0, 0.0, 3.0, 2.5, 2.5]) == (0, 4)
    assert one("max", "mu", [2.0, 4.0, 0.0, 6.0]) == (3, 0)  # mu = 3 lies midway between 2 and 4
    assert one("max", "mu", [4.0, 2.0, 0.0, 6.0]) == (3, 0)


def test_the_mean_of_two_rewards_is_a_tie_whatever_its_rounding() -> None:
    rng = np.random.default_rng(0)
    rewards = np.sort(rng.normal(size=(500, 2)), axis=1)
    assert pairs_of(PositionPair(chosen="max", rejected="mu")(rewards)) == [(row, 1, 0) for row in range(500)]
    assert len(PositionPair(chosen="max", rejected="mu")(rewards[:, ::-1]).dropped["same_response"]) == 500


def test_the_median_of_an_even_number_is_a_tie_whatever_its_rounding() -> None:
    rng = np.random.default_rng(0)
    rewards = np.sort(rng.normal(size=(500, 6)), axis=1)
    assert set(PositionPair(chosen="max", rejected="q0.5")(rewards).rejected.tolist()) == {2}
    assert set(PositionPair(chosen="max", rejected="q0.5")(rewards[:, ::-1]).rejected.tolist()) == {2}


def test_a_quantile_is_the_response_nearest_to_numpys() -> None:
    row = [0.0, 1.0, 2.0, 3.0, 10.0]
    assert one("max", "q0.3", row) == (4, 1)  # 1.2
    assert one("max", "q0.4", row) == (4, 2)  # 1.6
    assert one("q0.9", "q0.1", row) == (4, 0)  # 7.2 and 0.4
    assert one("q0.8", "min", row) == (3, 0)  # 4.4: the fourth fifth of the way to 10 begins at 3


def test_min_of_k_reads_the_first_k_finite_rewards_and_stays_put_as_n_grows() -> None:
    row = [3.0, NAN, 1.0, 2.0, 0.5, 4.0, 0.0, 9.0]
    assert one("max", "min_of_3", row) == (7, 2)
    assert one("max", "min_of_3", row[:5]) == (0, 2)
    assert one("max_of_2", "min_of_4", row) == (0, 4)
    assert one("max", "min_of_7", row) == (7, 6)


def test_random_is_the_first_finite_reward_and_two_random_ones_are_ordered() -> None:
    assert one("max", "random", [NAN, 2.0, 3.0, 1.0]) == (2, 1)
    assert one("random", "random", [NAN, 2.0, NAN, 3.0, 9.0]) == (3, 1)
    assert one("random", "random", [NAN, 3.0, NAN, 2.0, 9.0]) == (1, 3)
    assert one("random", "random", [2.0, 2.0, 9.0]) == "no_margin"


def test_a_prompt_is_dropped_with_its_first_reason() -> None:
    assert one("max", "min", [NAN, 1.0, math.inf]) == "too_few"
    assert one("max", "min_of_3", [1.0, 2.0, NAN]) == "too_few"
    assert one("max", "min", [0.1, 0.1, 0.1]) == "same_response"
    assert one("max", "mu+2sigma", [1.0, 2.0, 3.0, 4.0]) == "same_response"
    assert one("mu", "random", [2.0, 1.0, 1.5]) == "no_margin"  # mu 1.5 below the first, 2
    assert one("max_of_3", "min_of_2", [1.0, 1.0, 1.0]) == "same_response"
    assert one("random", "mu-2sigma", [1.0, 1.0, 1.0, 1.0]) == "same_response"


def test_a_prompt_may_lack_rewards_that_others_have() -> None:
    rewards = [[NAN, 1.0, 3.0, 2.0], [5.0, 1.0, NAN, NAN], [NAN, NAN, NAN, 1.0], [4.0, 3.0, 2.0, 1.0]]
    selection = PositionPair(chosen="max", rejected="min")(rewards)
    assert pairs_of(selection) == [(0, 2, 1), (1, 0, 1), (3, 0, 3)]
    assert dropped_of(selection) == {"too_few": [2], "same_response": [], "no_margin": []}


def test_the_paper_has_21_pairs_and_all_of_them_can_be_built() -> None:
    assert len(set(paper_pairs())) == 21
    assert all(POINTS.index(chosen) > POINTS.index(rejected) for chosen, rejected in paper_pairs())
    assert [str(PositionPair(chosen=high, rejected=low)) for high, low in paper_pairs()][-1] == "(max, mu+2sigma)"


def test_no_prompts_give_no_pairs() -> None:
    selection = PositionPair(chosen="max", rejected="mu-2sigma")(np.empty((0, 8)))
    assert pairs_of(selection) == []
    assert dropped_of(selection) == {"too_few": [], "same_response": [], "no_margin": []}
    assert all(
        indices.dtype == np.intp for indices in (selection.prompt, selection.chosen, *selection.dropped.values())
    )


def test_integers_lists_and_any_memory_layout_select_alike() -> None:
    rewards = np.random.default_rng(1).integers(0, 50, size=(40, 9))
    expected = pairs_of(PositionPair(chosen="max", rejected="mu-sigma")(rewards.astype(np.float64)))
    for same in (rewards, rewards.tolist(), np.asfortranarray(rewards), np.repeat(rewards, 2, axis=1)[:, ::2]):
        assert pairs_of(PositionPair(chosen="max", rejected="mu-sigma")(same)) == expected


def test_the_rewards_are_left_as_they_were() -> None:
    rewards = np.random.default_rng(1).normal(size=(30, 9))
    before = rewards.copy()
    for chosen, rejected in [*paper_pairs(), *MORE_PAIRS]:
        PositionPair(chosen=chosen, rejected=rejected)(rewards)
    assert np.array_equal(rewards, before)


# --- what holds for any rewards

matrices = st.builds(
    lambda seed, n, missing: _normal(seed, n, missing),
    st.integers(0, 10_000),
    st.integers(5, 40),
    st.sampled_from([0.0, 0.2, 0.6]),
)
any_pair = st.sampled_from([*paper_pairs(), *MORE_PAIRS])


def _normal(seed: int, n: int, missing: float) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(12, n))
    rewards[rng.random(rewards.shape) < missing] = np.nan
    return rewards


@settings(deadline=None)
@given(matrices, any_pair)
def test_every_row_is_selected_or_dropped_for_one_reason(rewards: NDArray[np.float64], pair: tuple[str, str]) -> None:
    selection = PositionPair(chosen=pair[0], rejected=pair[1])(rewards)
    rows = [*selection.prompt.tolist(), *(row for dropped in selection.dropped.values() for row in dropped.tolist())]
    assert sorted(rows) == list(range(len(rewards)))
    assert (rewards[selection.prompt, selection.chosen] > rewards[selection.prompt, selection.rejected]).all()


@settings(deadline=None)
@given(matrices, any_pair, st.floats(0.01, 100), st.floats(-100, 100))
def test_selection_is_invariant_under_scale_and_shift(
    rewards: NDArray[np.float64], pair: tuple[str, str], scale: float, shift: float
) -> None:
    strategy = PositionPair(chosen=pair[0], rejected=pair[1])
    moved, selection = strategy(scale * rewards + shift), strategy(rewards)
    assert pairs_of(moved) == pairs_of(selection)
    assert dropped_of(moved) == dropped_of(selection)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 40), st.sampled_from([*paper_pairs(), ("max", "q0.2")]))
def test_a_permutation_of_the_columns_permutes_the_selection(seed: int, n: int, pair: tuple[str, str]) -> None:
    if pair[1] == "q0.2" and (n - 1) % 5 == 0:
        n += 1  # a quantile midway between two rewards is a tie
    rewards = _normal(seed, n, 0.0)
    order = np.random.default_rng(seed + 1).permutation(n)
    strategy = PositionPair(chosen=pair[0], rejected=pair[1])
    there, here = strategy(rewards[:, order]), strategy(rewards)
    assert [(row, order[high], order[low]) for row, high, low in pairs_of(there)] == pairs_of(here)


@settings(deadline=None)
@given(matrices, any_pair, st.integers(0, 40))
def test_an_unscored_column_changes_nothing_but_the_indices(
    rewards: NDArray[np.float64], pair: tuple[str, str], place: int
) -> None:
    place = min(place, rewards.shape[1])
    strategy = PositionPair(chosen=pair[0], rejected=pair[1])
    wider = strategy(np.insert(rewards, place, np.nan, axis=1))
    there = [(row, high - (high > place), low - (low > place)) for row, high, low in pairs_of(wider)]
    assert there == pairs_of(strategy(rewards))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), min_size=1, max_size=8), any_pair)
def test_equal_integer_rewards_never_break_the_rules(rows: list[list[int]], pair: tuple[str, str]) -> None:
    rewards = np.array(rows, dtype=np.float64)
    selection = PositionPair(chosen=pair[0], rejected=pair[1])(rewards)
    for row, high, low in pairs_of(selection):
        assert rewards[row, high] > rewards[row, low]
        for text, column in zip(pair, (high, low), strict=True):
            if text in POINTS:
                assert rows[row].index(rows[row][column]) == column  # of equal rewards the first


# --- what is refused


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "best",
            "Max",
            " max",
            "max\n",
            "mu+",
            "mu+sigma2",
            "mu +sigma",
            "mu*2sigma",
            "mu--2sigma",
            "mu+1e3sigma",
        ),
        *("min_of_0", "min_of_-1", "min_of_2.5", "max_of_", "q1.5", "q-0.1", "q", "q5%", "mu-\u0662sigma", "sigma"),
    ],
)
def test_an_unknown_position_is_refused_in_one_line_that_lists_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match="must be one of min, max, mu, mu\\+sigma") as refused:
        Position.parse(text)
    assert repr(text) in str(refused.value)
    with pytest.raises(ValueError, match=r"strategy\.rejected: a position must be one of") as refused:
        PositionPair(chosen="max", rejected=text)
    assert len(str(refused.value).splitlines()) == 1


def test_one_position_may_be_written_in_several_ways() -> None:
    assert Position.parse("mu+sigma") == Position.parse("mu+1sigma") == Position.parse("mu+1.0sigma")
    assert Position.parse("mu") == Position.parse("mu-0sigma")
    assert Position.parse("random") == Position.parse("min_of_1") == Position.parse("max_of_1")
    assert Position.parse("mu-1.5sigma") == Position("sigma", -1.5)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        *(("min", "max"), ("mu", "mu"), ("max", "max"), ("mu-2sigma", "mu+sigma"), ("min", "mu-4sigma"), ("mu", "max")),
        *(("min_of_5", "max"), ("min", "min_of_5"), ("min_of_5", "min_of_2"), ("min_of_5", "min_of_5"), ("q0", "mu")),
        *(("max_of_2", "max_of_5"), ("min_of_2", "max_of_2"), ("random", "max_of_3"), ("min_of_3", "random")),
        *(("random", "max_of_1"), ("min_of_1", "max_of_1"), ("q0.1", "q0.9"), ("q0.5", "q0.5"), ("mu+4sigma", "q1")),
        *(("mu-0.5sigma", "q0.95"), ("mu-0.5sigma", "q0.9"), ("q0.05", "mu+0.5sigma"), ("mu-sigma", "q0.5")),
        *(("mu-2sigma", "q0.5"), ("mu-2sigma", "q0.2"), ("q0.05", "mu+sigma"), ("random", "max"), ("min", "random")),
    ],
)
def test_a_pair_that_never_has_a_margin_is_refused(chosen: str, rejected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"got the pair ({chosen}, {rejected})")) as refused:
        PositionPair(chosen=chosen, rejected=rejected)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("chosen", "rejected", "row"),
    [
        ("random", "mu-2sigma", [1.0, 0.0]),
        ("min_of_2", "min_of_3", [2.0, 2.0, 1.0]),
        ("max_of_3", "max_of_2", [1.0, 1.0, 2.0]),
        ("max_of_2", "random", [1.0, 2.0]),
        ("mu-2sigma", "min_of_2", [-1.0, -9.0] + [0.0] * 50 + [-2.0]),
        ("min_of_2", "mu+sigma", [9.0, 9.0] + [0.0] * 50),
        ("mu-sigma", "max_of_2", [-9.0, -9.0] + [0.0] * 50),
        ("mu", "q0.9", [0.0] * 20 + [1.0, 1000.0]),
        ("mu-2sigma", "q0.05", [-9.0, -9.0, -9.0, -6.5] + [0.0] * 46),
        ("q0.95", "mu+2sigma", [9.0, 9.0, 9.0, 6.5] + [0.0] * 46),
        ("mu", "q0.3", [0.0, 1.0, 2.0, 3.0, 4.0]),
        ("mu+sigma", "q0.99", [0.0] * 300 + [1.0, 1000.0]),
    ],
)
def test_a_pair_that_can_have_a_margin_has_it_for_some_rewards(chosen: str, rejected: str, row: list[float]) -> None:
    assert isinstance(one(chosen, rejected, row), tuple)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.floats(0.1, 3), st.integers(0, 20))
def test_a_refused_sigma_and_quantile_have_no_margin_in_any_heavy_tailed_pool(
    seed: int, n: int, k: float, twentieth: int
) -> None:
    low, high = f"mu-{k:.3f}sigma", f"q{twentieth / 20}"
    try:
        PositionPair(chosen=low, rejected=high)
    except ValueError:
        rewards = np.random.default_rng(seed).standard_cauchy(size=(20, n))
        rejected = PositionPair(chosen="max", rejected=high)(rewards) if high != "q1.0" else None
        nearest = PositionPair(chosen="max", rejected=low)(rewards)
        if rejected is not None:
            both = np.intersect1d(rejected.prompt, nearest.prompt)
            above = rewards[both, nearest.rejected[np.isin(nearest.prompt, both)]]
            assert (above <= rewards[both, rejected.rejected[np.isin(rejected.prompt, both)]]).all()


def test_too_few_samples_are_refused_by_name() -> None:
    scalable = PositionPair(chosen="max", rejected="min_of_5")
    assert scalable.minimum_samples == 5
    with pytest.raises(ValueError, match=r"n_samples must be >= 5 for the pair \(max, min_of_5\), got 4"):
        scalable(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"n_samples must be >= 2 for the pair \(max, min\), got 1"):
        PositionPair(chosen="max", rejected="min")(np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"shape \[prompts, n_samples\], got \[3\]"):
        PositionPair(chosen="max", rejected="min")(np.zeros(3))


def test_wrong_fields_are_refused() -> None:
    for fields in ({"ddof": 2}, {"ddof": -1}, {"ddof": "1"}, {"ddof": True}, {"sigma": 1}, {"rejected": 3}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            PositionPair(**{"chosen": "max", "rejected": "min", **fields})


def test_a_pair_is_a_value() -> None:
    pair = PositionPair(chosen="max", rejected="mu-2sigma", ddof=1)
    assert pair == PositionPair(chosen="max", rejected="mu-2sigma") != PositionPair(chosen="max", rejected="min")
    assert pickle.loads(pickle.dumps(pair)) == pair
    with pytest.raises(AttributeError):
        pair.chosen = "min"  # type: ignore[misc]


def test_all_21_pairs_take_less_than_80_sorts() -> None:
    rewards = np.random.default_rng(0).standard_normal((4000, 400), dtype=np.float32)
    strategies = [PositionPair(chosen=chosen, rejected=rejected) for chosen, rejected in paper_pairs()]

    def ratio() -> float:
        started = time.perf_counter()
        for _ in range(10):
            np.sort(rewards, axis=1)
        sorted_at = time.perf_counter()
        for strategy in strategies:
            strategy(rewards)
        return (time.perf_counter() - sorted_at) / (sorted_at - started) * 10

    assert min(ratio() for _ in range(5)) < 80  # the best of five: others may use the machine
