"""Duplicates of responses, with groups counted by hand."""

import math

import pytest

from sweetspot.duplicates import duplicates, folded, later_copies


def test_exact_and_near_duplicates_are_counted_within_a_prompt() -> None:
    # p: "Yes." twice, "yes" once, "No" once; q: one response, equal to one of p's
    found = duplicates(["p", "p", "q", "p", "p"], ["Yes.", "Yes.", "Yes.", "yes", "No"])
    assert found.responses.tolist() == [4, 1]
    assert found.exact.tolist() == [0.25, 0.0]  # 3 different of 4
    assert found.near.tolist() == [0.5, 0.0]  # 2 different of 4
    assert found.exact_rate == pytest.approx(1 / 5)
    assert found.near_rate == pytest.approx(2 / 5)


def test_the_effective_number_is_exp_of_the_entropy_of_the_group_sizes() -> None:
    four = duplicates(["p"] * 4, ["a", "b", "c", "d"])
    one = duplicates(["p"] * 4, ["a", "A", "a.", " a"])
    uneven = duplicates(["p"] * 4, ["a", "a", "a", "b"])
    assert four.effective[0] == pytest.approx(4)
    assert one.effective[0] == pytest.approx(1)
    # shares 3/4 and 1/4: entropy 0.5623 nats
    assert uneven.effective[0] == pytest.approx(math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4)))
    assert uneven.effective[0] == pytest.approx(1.7548, abs=1e-4)


@pytest.mark.parametrize(
    ("response", "same"),
    [
        ("It is 7 o'clock!", "it is 7 OCLOCK"),
        ("two\n\nlines", "Two lines."),
        ("Straße", "STRASSE"),
        ("ﬁne", "fine"),
    ],
)
def test_near_means_equal_letters_and_digits(response: str, same: str) -> None:
    assert folded(response) == folded(same)


def test_words_in_another_order_and_other_numbers_are_no_duplicates() -> None:
    assert folded("the cat sat") != folded("sat the cat")
    assert folded("7") != folded("8")


def test_responses_without_letters_are_compared_as_they_are() -> None:
    found = duplicates(["p"] * 3, ["!", "?", ""])
    assert found.near.tolist() == [0.0]


def test_no_responses_have_no_rates() -> None:
    found = duplicates([], [])
    assert math.isnan(found.exact_rate)
    assert math.isnan(found.near_rate)
    assert found.effective.tolist() == []


def test_later_copies_are_those_with_the_higher_index_whatever_the_order() -> None:
    places = [("p", 2), ("p", 0), ("q", 1), ("p", 1), ("p", 3)]
    assert later_copies(places, ["x", "x", "x", "y", "x"]) == [("p", 2), ("p", 3)]
