"""Duplicates of responses, with groups counted by hand."""

import math

import numpy as np
import pytest

from sweetspot.duplicates import Codes, Duplicates, duplicates, folded, later_copies


def codes(*rows: list[str | None]) -> Codes:
    """The rows as codes, None as no response."""
    known: dict[str, int] = {}
    return np.array([[-1 if text is None else known.setdefault(text, len(known)) for text in row] for row in rows])


def found(*rows: list[str | None]) -> Duplicates:
    return duplicates(codes(*rows), codes(*([text and folded(text) for text in row] for row in rows)))


def test_exact_and_near_duplicates_are_counted_within_a_prompt() -> None:
    # first prompt: "Yes." twice, "yes" once, "No" once; second: one response, equal to one of the first's
    figures = found(["Yes.", "Yes.", "yes", "No"], [None, "Yes.", None, None])
    assert figures.exact_rate == pytest.approx(1 / 5)
    assert figures.near_rate == pytest.approx(2 / 5)


def test_the_effective_number_is_exp_of_the_entropy_of_the_group_sizes() -> None:
    figures = found(["a", "b", "c", "d"], ["a", "A", "a.", " a"], ["a", "a", "a", "b"], [None, None, "a", "b"])
    # shares 3/4 and 1/4: entropy 0.5623 nats
    uneven = math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert figures.effective == pytest.approx([4, 1, uneven, 2])
    assert uneven == pytest.approx(1.7548, abs=1e-4)


def test_a_later_copy_is_one_with_an_equal_response_of_the_same_prompt_before_it() -> None:
    copies = later_copies(codes(["b", "a", "b", "a"], ["a", None, None, "a"], ["a", "b", "c", None]))
    assert copies.tolist() == [[False, False, True, True], [False, False, False, True], [False] * 4]


@pytest.mark.parametrize(
    ("response", "same"),
    [
        ("It is 7 o'clock!", "it is 7 OCLOCK"),
        ("two\n\nlines", "Two lines."),
        ("Straße", "STRASSE"),
        ("\N{LATIN SMALL LIGATURE FI}ne", "fine"),
    ],
)
def test_near_means_equal_letters_and_digits(response: str, same: str) -> None:
    assert folded(response) == folded(same)


def test_words_in_another_order_and_other_numbers_are_no_duplicates() -> None:
    assert folded("the cat sat") != folded("sat the cat")
    assert folded("7") != folded("8")


def test_responses_without_letters_are_compared_as_they_are() -> None:
    assert found(["!", "?", ""]).near_rate == 0.0


def test_no_responses_have_no_rates() -> None:
    figures = found([None, None])
    assert math.isnan(figures.exact_rate)
    assert math.isnan(figures.near_rate)
    assert np.isnan(figures.effective).tolist() == [True]
    assert duplicates(np.zeros((0, 3), dtype=np.int64), np.zeros((0, 3), dtype=np.int64)).effective.tolist() == []
