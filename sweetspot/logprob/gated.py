"""The gated feed-forward layer with fewer activations kept: down(silu(gate) * up).

Autograd keeps silu(gate) and the product beside gate and up, which makes this layer the largest holder of memory in
training. Here both are computed again in backward, elementwise and so at little cost; the matrix products are not.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sweetspot.logprob.products import installed, product


def install(network: Any) -> int:
    """Have the network's gated layers keep gate and up alone; returns how many there are. After `products.install`."""
    layers = [module for module in network.modules() if _is_gated(module)]
    for layer in layers:
        vars(layer)["forward"] = functools.partial(_forward, layer)
        vars(layer.down_proj)["forward"] = functools.partial(_down, layer.down_proj, installed(layer.down_proj))
    return len(layers)


def _is_gated(module: Any) -> bool:
    """Whether a module is known to compute down(silu(gate(x)) * up(x)) with a plain matrix as its last layer."""
    parts = dict(module.named_children())
    return (
        type(module).__name__ in ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")
        and type(down := parts.get("down_proj")) is nn.Linear
        and "bias" not in dict(down.named_parameters())
        and getattr(module.config, "hidden_act", None) == "silu"
    )


def _forward(layer: Any, states: Tensor) -> Tensor:
    return layer.down_proj(layer.gate_proj(states), layer.up_proj(states))


def _down(module: Any, onednn: bool, gate: Tensor, up: Tensor) -> Tensor:
    """The last layer's forward, called as a module so that what wraps it (the gathering of ZeRO-3) sees the call."""
    weight = module.weight
    if torch.is_autocast_enabled(gate.device.type):
        dtype = torch.get_autocast_dtype(gate.device.type)
        gate, up, weight = gate.to(dtype), up.to(dtype), weight.to(dtype)
    found: Tensor = _GatedProduct.apply(gate, up, weight, onednn and gate.dtype == torch.float32)  # pyright: ignore[reportAssignmentType]
    return found


class _GatedProduct(torch.autograd.Function):
    """(silu(gate) * up) @ weight.T for gate and up [.., width] and weight [out, width].

    With s = sigmoid(gate), silu' = s (1 + gate (1 - s)).
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, onednn: bool) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        ctx.onednn = onednn
        return product(functional.silu(gate).mul_(up), weight, onednn)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        gradient = gradients[0]
        active = functional.silu(gate)
        of_weight = None
        if ctx.needs_input_grad[2]:
            rows, heights = (active * up).flatten(0, -2), gradient.flatten(0, -2)
            of_weight = product(heights.t(), rows.t(), ctx.onednn)
        of_product = product(gradient, weight.t(), ctx.onednn)
        of_up = active.mul_(of_product)
        of_gate = torch.ops.aten.silu_backward(of_product.mul_(up), gate)
        return of_gate, of_up, of_weight, None
