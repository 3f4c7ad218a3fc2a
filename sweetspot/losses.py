"""Preference losses and sequence log-probabilities: pure functions of tensors.

`LOSSES` holds every loss by the name that `dpo.loss` takes. A loss maps the log-probabilities of a batch of pairs to
one value a pair; its keyword arguments are the fields of `DPO` that it reads. The words of the equations: for a
response y of |y| tokens, log pi(y) is `PairLogprobs.chosen` or `.rejected`, r(y) = log pi(y) - log pi_ref(y) its log
ratio, and D = r(chosen) - r(rejected). Rewards are in nats.

A NaN in gives a NaN out, in its own pair only; an empty batch gives empty tensors. Log-softmax is taken in float32 at
least: bfloat16 logits are raised, float64 stays float64.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, softplus


@dataclasses.dataclass(frozen=True)
class PairLogprobs:
    """What a loss sees of a batch of pairs: log-probabilities of the responses given the prompt, and their lengths.

    Attributes:
        chosen: log pi(chosen | prompt) [batch], nats, summed over the response's tokens.
        rejected: the same of the rejected responses.
        reference_chosen: the same under the reference model; not read by a reference-free loss.
        reference_rejected: the same under the reference model.
        chosen_tokens: |chosen| [batch], tokens (> 0).
        rejected_tokens: |rejected| [batch], tokens (> 0).
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    def ratios(self) -> tuple[Tensor, Tensor]:
        """The log ratios r(chosen) and r(rejected), each [batch]."""
        return self.chosen - self.reference_chosen, self.rejected - self.reference_rejected

    def means(self) -> tuple[Tensor, Tensor]:
        """The log-probabilities per token, log pi(y) / |y|, of chosen and rejected, each [batch]."""
        return self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens

    def difference(self) -> Tensor:
        """D = r(chosen) - r(rejected) [batch]."""
        chosen, rejected = self.ratios()
        return chosen - rejected


def dpo(pairs: PairLogprobs, *, beta: float, label_smoothing: float) -> Tensor:
    """-(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D), e the label smoothing.

    At e = 0 the loss of Rafailov et al. 2023, equation 7; else the conservative DPO of Mitchell 2023 (cDPO), which
    holds a label to be wrong with chance e. A pair that policy and reference see alike has the loss log 2.
    """
    margin = beta * pairs.difference()
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def robust(pairs: PairLogprobs, *, beta: float, label_smoothing: float) -> Tensor:
    """(-(1 - e) log sigmoid(beta D) + e log sigmoid(-beta D)) / (1 - 2 e): unbiased when a share e < 1/2 of labels is
    flipped (rDPO, Chowdhury et al. 2024, equation 12)."""
    margin = beta * pairs.difference()
    kept, flipped = -logsigmoid(margin), -logsigmoid(-margin)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def ipo(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """(r(chosen) / |chosen| - r(rejected) / |rejected| - 1 / (2 beta))^2 (Azar et al. 2023, equation 17, beta its tau).

    The ratios are means over tokens. The paper's equation does not say so; its authors told TRL that its results were
    made that way, and a sum would make the target 1 / (2 beta) mean something else for every length.
    """
    chosen, rejected = pairs.ratios()
    return (chosen / pairs.chosen_tokens - rejected / pairs.rejected_tokens - 1 / (2 * beta)) ** 2


def hinge(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """max(0, 1 - beta D): SLiC's hinge on DPO's rewards (Liu et al. 2023, RSO, table 1, beta their gamma)."""
    return torch.relu(1 - beta * pairs.difference())


def rdpo(pairs: PairLogprobs, *, beta: float, length_alpha: float) -> Tensor:
    """-log sigmoid(beta D + alpha (|chosen| - |rejected|)): R-DPO, whose reward pays alpha per token (Park et al.
    2024, equation 9). Where the chosen response is the longer one, the pair pulls less."""
    return -logsigmoid(beta * pairs.difference() + length_alpha * (pairs.chosen_tokens - pairs.rejected_tokens))


def apo_zero(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """1 - sigmoid(beta r(chosen)) + sigmoid(beta r(rejected)): anchored, chosen goes up and rejected down each by
    itself (D'Oosterlinck et al. 2024, equation 7)."""
    chosen, rejected = pairs.ratios()
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def sppo_hard(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """(r(chosen) - 1 / (2 beta))^2 + (r(rejected) + 1 / (2 beta))^2: self-play preference optimisation with P = 1 for
    the winner and 0 for the loser (Wu et al. 2024, equation 4.7, beta = 1 / eta)."""
    chosen, rejected = pairs.ratios()
    return (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2


def simpo(pairs: PairLogprobs, *, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta (log pi(chosen) / |chosen| - log pi(rejected) / |rejected|) - gamma): reference-free (Meng et
    al. 2024, equation 6); gamma is the margin of rewards that is aimed at."""
    chosen, rejected = pairs.means()
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def orpo(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """-log P(chosen) - beta log sigmoid(log odds P(chosen) - log odds P(rejected)), P(y) = pi(y)^(1 / |y|):
    reference-free (Hong et al. 2024, equations 4, 6 and 7, beta their lambda).

    The first term is the NLL of the response alone, per token. P = 1 has infinite odds, so that its loss is not finite.
    """
    chosen, rejected = pairs.means()
    odds = chosen - rejected - torch.log(-torch.expm1(chosen)) + torch.log(-torch.expm1(rejected))
    return -chosen + beta * softplus(-odds)


LOSSES: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss for loss in (dpo, robust, ipo, hinge, rdpo, apo_zero, sppo_hard, simpo, orpo)
}


def nll(pairs: PairLogprobs) -> Tensor:
    """-log pi(chosen) / |chosen| [batch], nats per token: the supervised term that `dpo.sft_weight` adds to a loss."""
    return -pairs.means()[0]


def rewards(pairs: PairLogprobs, beta: float, reference_free: bool) -> tuple[Tensor, Tensor]:
    """The implicit rewards of the chosen and rejected responses, each [batch], nats.

    beta r(y), the reward of DPO up to a term of the prompt alone; without a reference beta log pi(y) / |y| (SimPO's).
    """
    chosen, rejected = pairs.means() if reference_free else pairs.ratios()
    return beta * chosen, beta * rejected


def sequence_logprobs(logits: Tensor, token_ids: Tensor, response_mask: Tensor) -> Tensor:
    """log p(response | prompt) of each row, nats: the sum over its response tokens of log p(token_t | tokens before t).

    The logits at t - 1 predict the token at t; the shift is made here. The first token of a row has no prediction and
    is never counted; a row without response tokens gives 0.

    Args:
        logits: [batch, length, vocabulary].
        token_ids: [batch, length], prompt, response and padding.
        response_mask: [batch, length], true where the token belongs to the response.
    """
    predicted = token_logprobs(logits[:, :-1].flatten(0, 1), token_ids[:, 1:].flatten())  # [batch * (length - 1)]
    return predicted.view(token_ids[:, 1:].shape).masked_fill(~response_mask[:, 1:].bool(), 0).sum(dim=1)


def token_logprobs(logits: Tensor, token_ids: Tensor) -> Tensor:
    """log p of each token [tokens], nats, given the logits [tokens, vocabulary] that predict it."""
    raised = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -cross_entropy(raised, token_ids, reduction="none")
