"""The forward pass that training and the reference share, and the choice of the fastest that is exact."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sweetspot.dpo import DPO
from sweetspot.launch import Emit
from sweetspot.logprob import attention, gated, products
from sweetspot.logprob.head import can_tile, head_predicts, target_logprobs
from sweetspot.logprob.layout import LAYOUTS, Group, Layout, padded
from sweetspot.sft import SFT

TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 0.1}  # of a token's log-probability, nats, by dtype
PROBE_TOKENS = 16  # of each prompt and response in the check at the start


@dataclasses.dataclass(frozen=True)
class Forward:
    """How log-probabilities are computed; every way gives the same, but for rounding.

    Attributes:
        batching: the layout: "padded", "packed" or "shared_prefix".
        tiled: whether the head goes over the vocabulary in tiles.
        autocast: dtype of the matrix products, or None for that of the weights.
    """

    batching: str
    tiled: bool
    autocast: str | None

    def layout(self, groups: Sequence[Group]) -> Layout:
        """The groups' tokens as this forward pass takes them."""
        return LAYOUTS[self.batching](groups)


PLAIN = Forward(batching="padded", tiled=False, autocast=None)


def response_logprobs(network: Any, layout: Layout, forward: Forward) -> Tensor:
    """log p(response | prompt) of each sequence of the layout [sequences], nats.

    Only the places that predict a response token pass the head, whose vocabulary makes it the widest layer. Padding
    lies on the right, where a causal model's other tokens cannot see it, so that padded rows need no attention mask.

    Args:
        network: a causal model, possibly wrapped (DDP).
        layout: made by `forward.layout`, on the network's device.
        forward: as `choose` returned it for this network.
    """
    dtype = getattr(torch, forward.autocast) if forward.autocast else None
    arguments = {} if layout.spans is None else attention.arguments(layout)
    with (
        head_predicts(getattr(network, "module", network), layout, forward.tiled),
        # without its cache, which would keep a cast copy of every weight that ZeRO-3 has gathered for a moment
        torch.autocast(layout.token_ids.device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False),
    ):
        logits = network(input_ids=layout.token_ids, use_cache=False, **arguments).logits
    predicted = target_logprobs(logits, layout, forward.tiled)
    return predicted.new_zeros(len(layout.lengths)).index_add(0, layout.owner, predicted)


def choose(network: Any, dpo: DPO | SFT, groups: Sequence[Group], emit: Emit) -> Forward:
    """The forward pass that the settings' `batching` and `matmul` ask for, set up in the network and checked.

    `auto` is shared_prefix (for SFT, whose conversations share nothing, packed) where the model's attention is the
    plain causal one, as far as its config and a comparison on a few tokens of two groups tell, and padded elsewhere.
    What was chosen, and why, is emitted.

    Raises:
        ValueError: when the batching that is asked for by name is not exact for the model.
        RuntimeError: when what is left is not exact either.
    """
    probe = [
        (prompt[-PROBE_TOKENS:], [response[:PROBE_TOKENS] for response in responses])
        for prompt, responses in groups[:2]
    ]
    expected = _plain(network, probe, dpo)
    at, fastest = ("dpo", "shared_prefix") if isinstance(dpo, DPO) else ("model.sft", "packed")
    onednn = products.available(network) and dpo.autocast is None and dpo.matmul != "torch"
    if dpo.matmul == "onednn" and not onednn:
        raise ValueError(
            f"{at}.matmul must be auto or torch but for float32 on a processor without autocast, got onednn"
        )
    if onednn:
        products.install(network)
    light = gated.install(network)
    tiled = can_tile(network) and _error(network, probe, Forward("padded", True, dpo.autocast), expected, dpo) is None
    forward = Forward(fastest if dpo.batching == "auto" else dpo.batching, tiled, dpo.autocast)
    fault = None
    if forward.batching != "padded":
        fault = _unfit(network.config, dpo) or _try(network, probe, forward, expected, dpo)
    if fault is not None and dpo.batching != "auto":
        raise ValueError(f"{at}.batching must be padded or auto for this model, got {dpo.batching}: {fault}")
    if fault is not None:
        forward = dataclasses.replace(forward, batching="padded")
    if left := _error(network, probe, forward, expected, dpo):
        raise RuntimeError(f"log-probabilities: {left}; {at}.matmul=torch may help")
    facts = {
        "batching": forward.batching + (f" ({fault})" if fault else ""),
        "head": "tiles of the vocabulary" if tiled else "whole vocabulary",
        "matmul": "onednn" if onednn else "torch",
        "activations": "without gated products" if light else "all kept",
    }
    emit({"progress": {"done": 0, "total": 1, "unit": "", "note": ", ".join(facts.values())}})
    emit({"metrics": {f"forward/{name}": value for name, value in facts.items()}})
    return forward


def _plain(network: Any, groups: Sequence[Group], dpo: DPO | SFT) -> Tensor:
    """The log-probabilities by the network as it comes: padded rows, all logits."""
    with torch.inference_mode():
        plain = Forward("padded", False, dpo.autocast)
        layout = padded(groups).to(network.device)
        return response_logprobs(network, layout, plain)


def _unfit(config: Any, dpo: DPO | SFT) -> str | None:
    """Why a model's attention is more than the causal one over all tokens, as far as its config says, or None."""
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    window = getattr(config, "sliding_window", None)
    if kinds == {"sliding_attention"} or (not kinds and window):
        return f"attention slides over {window} tokens" if window and window < dpo.max_tokens else None
    return f"layers of {', '.join(sorted(kinds))}" if kinds else None


def _try(network: Any, groups: Sequence[Group], forward: Forward, expected: Tensor, dpo: DPO | SFT) -> str | None:
    """Set attention by groups up and compare; the network's own attention is put back when it fails."""
    before = network.config._attn_implementation
    try:
        attention.install(network)
        fault = _error(network, groups, forward, expected, dpo)
    except attention.UnsupportedAttentionError as error:
        fault = str(error)
    if fault is not None:
        network.set_attn_implementation(before)
    return fault


def _error(network: Any, groups: Sequence[Group], forward: Forward, expected: Tensor, dpo: DPO | SFT) -> str | None:
    """How far a forward pass is off the expected log-probabilities, or None within the tolerance of its dtype."""
    with torch.inference_mode():
        layout = forward.layout(groups).to(network.device)
        found = response_logprobs(network, layout, forward)
    worst = ((found - expected).abs() / layout.lengths).max().item()
    within = TOLERANCE[dpo.autocast or dpo.dtype]
    return None if worst <= within else f"{forward.batching} is off by {worst:.2g} nats a token, more than {within}"
