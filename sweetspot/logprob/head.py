"""Log-probabilities of given tokens from hidden states, without the logits of all tokens over the whole vocabulary.

The vocabulary is cut into tiles. Forward keeps a running log-sum-exp; backward computes each tile again, but for the
last, which is still there. So what exists at once is one tile of TILE logits in float32, however many tokens there are.
"""

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn

from sweetspot.logprob.layout import Layout
from sweetspot.logprob.products import installed, product
from sweetspot.losses import token_logprobs

TILE = 1 << 24  # logits that exist at once: 64 MB in float32


def tiled_logprobs(states: Tensor, weight: Tensor, targets: Tensor, tile: int = TILE, onednn: bool = False) -> Tensor:
    """log softmax(states @ weight.T) at the targets [tokens], nats, float32 at least.

    Args:
        states: [tokens, hidden].
        weight: [vocabulary, hidden], of one dtype with the states.
        targets: [tokens], ids.
        tile: logits that may exist at once (a column of the vocabulary at least).
        onednn: whether oneDNN computes the products, in float32.
    """
    if not len(targets):
        return states.new_zeros(0, dtype=_raised(states.dtype))
    found: Tensor = _TiledLogprobs.apply(states, weight, targets, tile, onednn)  # pyright: ignore[reportAssignmentType]
    return found


class _TiledLogprobs(torch.autograd.Function):
    """d log p_y / d logits = onehot(y) - p, so the gradient is g (W_y - p W) for the states h and, for the rows of W,
    g h at y minus p^T (g h). A tile is kept as e = exp(logits - m), m the tile's largest; p = e exp(m - lse)."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, tile: int, onednn: bool) -> Tensor:
        width = max(tile // len(targets), 1)
        starts = range(0, len(weight), width)
        total = states.new_full((len(targets),), -torch.inf, dtype=_raised(states.dtype))
        last: tuple[Tensor, ...] = ()
        for start in starts:
            last = ()  # the tile before is given back first
            last = exponentials, largest = _exponentials(states, weight[start : start + width], onednn)
            total = torch.logaddexp(total, largest + exponentials.sum(dim=1).log())
        ctx.save_for_backward(states, weight, targets, total, *last)
        ctx.width, ctx.onednn = width, onednn
        return (states.to(total.dtype) * weight[targets].to(total.dtype)).sum(dim=1) - total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, targets, total, *last = ctx.saved_tensors
        gradient = gradients[0]
        of_states, of_weight = ctx.needs_input_grad[:2]
        raised = states.to(total.dtype)
        states_gradient = gradient[:, None] * weight[targets].to(total.dtype)
        weight_gradient = torch.empty_like(weight) if of_weight else None
        for start in reversed(range(0, len(weight), ctx.width)):
            part = weight[start : start + ctx.width]
            exponentials, largest = last or _exponentials(states, part, ctx.onednn)
            last = []
            exponentials = exponentials.to(weight.dtype)
            scale = (gradient * torch.exp(largest - total))[:, None]
            if of_states:
                states_gradient -= scale * product(exponentials, part.t(), ctx.onednn)
            if weight_gradient is not None:
                scaled = (-scale * raised).to(weight.dtype)
                weight_gradient[start : start + ctx.width] = product(exponentials.t(), scaled.t(), ctx.onednn)
        if weight_gradient is not None:
            weight_gradient.index_add_(0, targets, (gradient[:, None] * raised).to(weight.dtype))
        return states_gradient.to(states.dtype) if of_states else None, weight_gradient, None, None, None


def _exponentials(states: Tensor, part: Tensor, onednn: bool) -> tuple[Tensor, Tensor]:
    """exp(logits - m) [tokens, part of the vocabulary] and m, each token's largest logit there [tokens]."""
    logits = product(states, part, onednn)
    logits = logits.to(_raised(logits.dtype))
    largest = logits.amax(dim=1)
    return logits.sub_(largest[:, None]).exp_(), largest


def _raised(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def can_tile(network: Any) -> bool:
    """Whether the head is a plain matrix; a bias or an adapter on it wants its own forward."""
    head = network.get_output_embeddings()
    return type(head) is nn.Linear and "bias" not in dict(head.named_parameters())


@contextlib.contextmanager
def head_predicts(network: Any, layout: Layout, tiled: bool) -> Generator[None]:
    """Inside the block, what the network returns as logits are the log-probabilities of the layout's targets [tokens].

    The head's own forward is replaced, and called by the network where it always is, so that what wraps it (DDP, the
    gathering of ZeRO-3) sees an ordinary layer. `tiled` asks for a plain head and nothing after it: a model that scales
    or caps its logits needs tiled=False, which returns the logits at the predicting places [tokens, vocabulary].
    """
    head = network.get_output_embeddings()
    before, onednn = vars(head).get("forward"), installed(head)
    whole = head.forward

    def forward(states: Tensor) -> Tensor:
        picked = states.flatten(0, 1)[layout.predicting]
        if not tiled:
            return whole(picked)
        weight = head.weight
        if torch.is_autocast_enabled(picked.device.type):
            dtype = torch.get_autocast_dtype(picked.device.type)
            picked, weight = picked.to(dtype), weight.to(dtype)
        return tiled_logprobs(picked, weight, layout.targets, onednn=onednn)

    head.forward = forward
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before


def target_logprobs(logits: Tensor, layout: Layout, tiled: bool) -> Tensor:
    """The log-probabilities of the layout's targets [tokens] from what the network returned inside `head_predicts`."""
    return logits if tiled else token_logprobs(logits, layout.targets)
