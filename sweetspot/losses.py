"""Preference losses and sequence log-probabilities: pure functions of tensors.

Log-softmax is taken in float32 at least: bfloat16 logits are raised, float64 stays float64.
"""

import torch
from torch import Tensor
from torch.nn import functional


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The DPO loss of each pair, and the implicit rewards of its chosen and rejected response (each [batch], nats).

        reward(y) = beta (log pi(y | x) - log pi_ref(y | x)),   loss = -log sigmoid(reward(chosen) - reward(rejected))

    (Rafailov et al. 2023, equation 7; the reward up to a term of the prompt alone.) A pair that policy and reference
    see alike has the loss log 2. A NaN in gives a NaN out, in its own pair only; an empty batch gives empty tensors.

    Args:
        policy_chosen: log pi(chosen | prompt) [batch], nats, summed over the response's tokens.
        policy_rejected: the same of the rejected responses.
        reference_chosen: the same under the reference model.
        reference_rejected: the same under the reference model.
        beta: strength of the pull to the reference (> 0).
    """
    chosen_rewards = beta * (policy_chosen - reference_chosen)
    rejected_rewards = beta * (policy_rejected - reference_rejected)
    return -functional.logsigmoid(chosen_rewards - rejected_rewards), chosen_rewards, rejected_rewards


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
    return -functional.cross_entropy(raised, token_ids, reduction="none")
