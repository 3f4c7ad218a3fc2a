"""The preference losses and sequence log-probabilities, held against numbers worked by hand and against TRL's."""

# ruff: noqa: E402 - the imports wait for importorskip

import dataclasses
import inspect
import math
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from sweetspot.dpo import READS, REFERENCE_FREE
from sweetspot.losses import LOSSES, PairLogprobs, nll, rewards, sequence_logprobs, token_logprobs

# (loss, options, (chosen, rejected), (value, d / d chosen, d / d rejected)). Where no ends are given they are -10 and
# -12, so r(chosen) = 1 and r(rejected) = -1, D = 2, of 4 and 6 tokens.
# s(x) is the logistic sigmoid: s(1) = .7310585786, s(-1) = .2689414214, log(1 + 1/e) = .3132616875.
HAND_WORKED = [
    # beta D = 1: log(1 + 1/e), and beta s(-1) = .1344707107
    ("dpo", {"beta": 0.5, "label_smoothing": 0}, None, (0.3132616875, -0.1344707107, 0.1344707107)),
    # .9 .3132616875 + .1 1.3132616875, and .5 (.9 s(-1) - .1 s(1))
    ("dpo", {"beta": 0.5, "label_smoothing": 0.1}, None, (0.4132616875, -0.0844707107, 0.0844707107)),
    # (.9 .3132616875 - .1 1.3132616875) / .8, and .5 (.9 s(-1) + .1 s(1)) / .8
    ("robust", {"beta": 0.5, "label_smoothing": 0.1}, None, (0.1882616875, -0.1969707107, 0.1969707107)),
    # 1/4 + 1/6 - 1 = -7/12: 49/144, and 2 (-7/12) / 4, -2 (-7/12) / 6
    ("ipo", {"beta": 0.5}, None, (49 / 144, -7 / 24, 7 / 36)),
    # 1 - .25 2 = .5
    ("hinge", {"beta": 0.25}, None, (0.5, -0.25, 0.25)),
    # 1 - 2: past the hinge
    ("hinge", {"beta": 1.0}, None, (0.0, 0.0, 0.0)),
    # 1 + .1 (4 - 6) = .8: log(1 + e^-.8), and .5 s(-.8) = .5 .3100255189
    ("rdpo", {"beta": 0.5, "length_alpha": 0.1}, None, (0.3711006659, -0.1550127594, 0.1550127594)),
    # 2 s(-.5) = 2 .3775406688, and .5 s(.5) s(-.5) = .5 .2350037122
    ("apo_zero", {"beta": 0.5}, None, (0.7550813375, -0.1175018561, 0.1175018561)),
    # (1 - 2)^2 + (-1 + 2)^2
    ("sppo_hard", {"beta": 0.25}, None, (2.0, -2.0, 2.0)),
    # 2 (-10/4 + 12/6) - .5 = -1.5: log(1 + e^1.5), and (2/4) s(1.5), (2/6) s(1.5), s(1.5) = .8175744762
    ("simpo", {"beta": 2.0, "gamma": 0.5}, (-10, -12), (1.7014132779, -0.4087872381, 0.2725248254)),
    # P = 1/2 and 1/4, odds 1 and 1/3: log 2 + .1 log(1 + 1/3); d log odds / d log P = 1 / (1 - P):
    # -1/4 - .1 s(-log 3) 2 / 4, and .1 s(-log 3) (4/3) / 6, s(-log 3) = 1/4
    ("orpo", {"beta": 0.1}, (-4 * math.log(2), -6 * math.log(4)), (0.7219153878, -0.2625, 0.1 / 18)),
]


@pytest.mark.parametrize(("loss", "options", "ends", "expected"), HAND_WORKED)
def test_value_and_gradient_of_every_loss_are_those_worked_by_hand(
    loss: str, options: dict[str, float], ends: tuple[float, float] | None, expected: tuple[float, float, float]
) -> None:
    pairs = _pair(*(ends or (-10.0, -12.0)))
    found = LOSSES[loss](pairs, **options)
    found.sum().backward()
    assert found.shape == (1,)
    assert (found.item(), pairs.chosen.grad.item(), pairs.rejected.grad.item()) == pytest.approx(expected, abs=1e-10)


def test_every_loss_has_a_hand_worked_case_and_reads_what_its_settings_say() -> None:
    assert list(LOSSES) == list(READS)
    assert {case[0] for case in HAND_WORKED} == LOSSES.keys()
    for name, loss in LOSSES.items():
        keywords = [key for key, part in inspect.signature(loss).parameters.items() if part.kind is part.KEYWORD_ONLY]
        assert tuple(keywords) == READS[name]


def test_a_reference_free_loss_is_one_that_gives_the_same_without_a_reference() -> None:
    for name, fields in READS.items():
        without = dataclasses.replace(_pair(-10.0, -12.0), reference_chosen=NAN, reference_rejected=NAN)
        found = LOSSES[name](without, **dict.fromkeys(fields, 0.3))
        assert math.isfinite(found.item()) == (name in REFERENCE_FREE)


def test_robust_and_dpo_are_one_loss_without_label_smoothing() -> None:
    values = [LOSSES[name](_pair(-9.0, -14.0), beta=0.3, label_smoothing=0.0).item() for name in ("dpo", "robust")]
    assert values[0] == values[1]


def test_dpo_loss_is_log_two_where_policy_and_reference_agree() -> None:
    found = LOSSES["dpo"](_pair(-11.0, -11.0), beta=0.1, label_smoothing=0.0)
    assert found.item() == pytest.approx(math.log(2), abs=1e-15)


def test_dpo_loss_keeps_a_huge_margin_finite_and_a_nan_in_its_own_pair() -> None:
    chosen, zero, one = torch.tensor([1e4, -1e4, math.nan]), torch.zeros(3), torch.ones(3)
    losses = LOSSES["dpo"](PairLogprobs(chosen, zero, zero, zero, one, one), beta=1.0, label_smoothing=0.0)
    assert losses[:2].tolist() == [0.0, 1e4]
    assert math.isnan(losses[2])


def test_the_supervised_term_is_the_chosen_response_s_nll_per_token() -> None:
    pairs = _pair(-10.0, -12.0)
    nll(pairs).sum().backward()
    assert (nll(pairs).item(), pairs.chosen.grad.item(), pairs.rejected.grad) == (2.5, -0.25, None)


def test_rewards_are_log_ratios_and_without_a_reference_means_per_token() -> None:
    """beta .5: .5 (-10 + 11) and .5 (-12 + 11); .5 (-10 / 4) and .5 (-12 / 6)."""
    assert [reward.item() for reward in rewards(_pair(-10.0, -12.0), 0.5, reference_free=False)] == [0.5, -0.5]
    assert [reward.item() for reward in rewards(_pair(-10.0, -12.0), 0.5, reference_free=True)] == [-1.25, -1.0]


def test_simpo_is_that_of_trl() -> None:
    trl = pytest.importorskip("trl.experimental.cpo")
    pairs = _random_pairs()
    theirs = SimpleNamespace(
        alpha=0.0,
        loss_type="simpo",
        beta=2.0,
        simpo_gamma=0.7,
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    found = _with_gradients(pairs, LOSSES["simpo"](pairs, beta=2.0, gamma=0.7))
    expected = _with_gradients(pairs, trl.CPOTrainer.cpo_loss(theirs, *pairs.means())[0])
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert expected.abs().min() > 1e-4


def test_orpo_is_that_of_trl() -> None:
    """TRL's odds ratio in float32, and beside it the NLL of the response (TRL's own counts the prompt's tokens too)."""
    trl = pytest.importorskip("trl.experimental.orpo")
    pairs = _random_pairs()
    theirs = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    found = _with_gradients(pairs, LOSSES["orpo"](pairs, beta=0.3))
    ratio = trl.ORPOTrainer.odds_ratio_loss(theirs, *pairs.means())[0]
    expected = _with_gradients(pairs, nll(pairs) - ratio)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert expected.abs().min() > 1e-4


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


NAN = torch.tensor([math.nan])


def _pair(chosen: float, rejected: float) -> PairLogprobs:
    """One pair with gradients, of 4 and 6 tokens, whose reference gives both responses -11."""
    ends = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (chosen, rejected))
    fixed = (torch.tensor([value], dtype=torch.float64) for value in (-11.0, -11.0, 4.0, 6.0))
    return PairLogprobs(*ends, *fixed)


def _random_pairs() -> PairLogprobs:
    """64 pairs of 1 to 59 tokens at about -2 nats a token."""
    torch.manual_seed(0)
    lengths = torch.randint(1, 60, (2, 64)).double()
    policy, reference = (-lengths * (torch.rand(2, 64, dtype=torch.float64) * 3 + 0.5) for _ in range(2))
    policy.requires_grad_()
    return PairLogprobs(*policy, *reference, *lengths)


def _with_gradients(pairs: PairLogprobs, losses: torch.Tensor) -> torch.Tensor:
    """The losses and their gradients by both log-probabilities, [3, batch]."""
    gradients = torch.autograd.grad(losses.sum(), (pairs.chosen, pairs.rejected))
    return torch.stack([losses.detach().double(), *gradients])
