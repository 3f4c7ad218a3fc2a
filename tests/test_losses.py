"""The DPO loss and sequence log-probabilities, held against numbers worked by hand."""

# ruff: noqa: E402 - the imports wait for importorskip

import math

import pytest

torch = pytest.importorskip("torch")

from sweetspot.losses import dpo_loss, sequence_logprobs, token_logprobs


def test_dpo_loss_of_a_margin_of_one_is_log_of_one_plus_exp_minus_one() -> None:
    """beta .5: rewards .5 (-10 + 11) = .5 and .5 (-12 + 11) = -.5, margin 1, loss log(1 + e^-1) = .3132616875."""
    losses, chosen, rejected = dpo_loss(*_pairs(-10.0, -12.0, -11.0, -11.0), beta=0.5)
    assert (chosen.item(), rejected.item()) == (0.5, -0.5)
    assert losses.item() == pytest.approx(0.3132616875182228, abs=1e-15)


def test_dpo_loss_is_log_two_where_policy_and_reference_agree() -> None:
    losses, chosen, rejected = dpo_loss(*_pairs(-10.0, -3.0, -10.0, -3.0), beta=0.1)
    assert losses.item() == pytest.approx(math.log(2), abs=1e-15)
    assert (chosen.item(), rejected.item()) == (0.0, 0.0)


def test_dpo_loss_of_a_wrong_order_is_the_margin_longer() -> None:
    """log(1 + e^x) = x + log(1 + e^-x): swapping chosen and rejected at margin 1 adds 1."""
    losses, _, _ = dpo_loss(*_pairs(-12.0, -10.0, -11.0, -11.0), beta=0.5)
    assert losses.item() == pytest.approx(1.3132616875182228, abs=1e-15)


def test_dpo_gradient_is_beta_times_the_chance_of_the_wrong_order() -> None:
    """d loss / d log pi(chosen) = -beta sigmoid(-margin) = -.5 / (1 + e) = -.1344707107, and + for the rejected."""
    chosen, rejected, *references = _pairs(-10.0, -12.0, -11.0, -11.0)
    chosen.requires_grad_(), rejected.requires_grad_()
    dpo_loss(chosen, rejected, *references, beta=0.5)[0].sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.13447071068499755, abs=1e-15)
    assert rejected.grad.item() == pytest.approx(0.13447071068499755, abs=1e-15)


def test_dpo_loss_keeps_a_huge_margin_finite_and_a_nan_in_its_own_pair() -> None:
    losses, _, _ = dpo_loss(
        torch.tensor([1e4, -1e4, math.nan]), torch.zeros(3), torch.zeros(3), torch.zeros(3), beta=1.0
    )
    assert losses[:2].tolist() == [0.0, 1e4]
    assert math.isnan(losses[2])


def test_sequence_logprobs_are_those_of_the_response_given_what_stands_before() -> None:
    """Vocabulary of 3; the row 0 2 1 2 is a prompt of 2 and a response of 2.

    The logits behind the second token give the third: p = (.5, .25, .25), token 1: log .25. Those behind the third give
    the fourth: p = (.1, .1, .8), token 2: log .8. Sum log .2 = -1.6094379124. The other logits must not matter.
    """
    logits = torch.tensor([[[9.0, 0, 0], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [9.0, 0, 0]]], dtype=torch.float64)
    logits[:, 1:3] = logits[:, 1:3].log() + 7  # a constant changes no probability
    found = sequence_logprobs(logits, torch.tensor([[0, 2, 1, 2]]), torch.tensor([[False, False, True, True]]))
    assert found.tolist() == pytest.approx([math.log(0.2)], abs=1e-15)


def test_rows_of_any_length_sum_their_own_response_tokens() -> None:
    """Uniform over 4: a response token costs log 4. Rows with 3, 1 and 0 of them; a first token has no prediction."""
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0], [1, 0, 0, 0]])
    found = sequence_logprobs(torch.zeros(3, 4, 4), torch.zeros(3, 4, dtype=torch.long), mask)
    assert found.tolist() == pytest.approx([-3 * math.log(4), -math.log(4), 0.0], rel=1e-6)


def test_an_impossible_token_in_the_prompt_or_padding_does_not_leak() -> None:
    logits = torch.zeros(1, 4, 2)
    logits[0, 0, 1] = logits[0, 2, 1] = -torch.inf  # would give -inf for tokens 1 and 3
    found = sequence_logprobs(logits, torch.tensor([[0, 1, 0, 1]]), torch.tensor([[0, 0, 1, 0]]))
    assert found.tolist() == pytest.approx([-math.log(2)], rel=1e-6)


def test_log_softmax_is_taken_in_float32_for_bfloat16_and_float64_stays() -> None:
    """In bfloat16 itself -log 3 = -1.0986 would round to -1.1016."""
    ids = torch.tensor([0])
    assert token_logprobs(torch.zeros(1, 3, dtype=torch.bfloat16), ids).item() == pytest.approx(-math.log(3), abs=1e-7)
    assert token_logprobs(torch.zeros(1, 3, dtype=torch.float64), ids).dtype == torch.float64


def _pairs(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]
