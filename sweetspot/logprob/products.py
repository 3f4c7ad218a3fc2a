"""Matrix products of float32 weights on a processor by oneDNN.

PyTorch takes MKL for them, which on processors that are not Intel's runs at about half the speed of oneDNN
(on an AMD EPYC with AVX-512, one thread: 110 against 240 GFLOP/s). Both round in float32; they differ in the last bits.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional


def available(network: Any) -> bool:
    """Whether oneDNN can take over: float32 weights on a processor, in a PyTorch that has it."""
    first = next(network.parameters())
    return torch.backends.mkldnn.is_available() and first.device.type == "cpu" and first.dtype == torch.float32


def install(network: nn.Module) -> None:
    """Have oneDNN compute every linear layer of the network, forward and backward."""
    for module in network.modules():
        if type(module) is nn.Linear:
            vars(module)["forward"] = functools.partial(_linear, module)


def installed(module: nn.Module) -> bool:
    """Whether oneDNN computes a linear layer."""
    return isinstance(found := vars(module).get("forward"), functools.partial) and found.func is _linear


def product(states: Tensor, weight: Tensor, onednn: bool) -> Tensor:
    """states @ weight.T: [.., in] and [out, in] -> [.., out], without gradients; float32 where oneDNN computes it."""
    if onednn:
        return torch.ops.mkldnn._linear_pointwise(states, weight, None, "none", [], "")
    return functional.linear(states, weight)


def _linear(module: Any, states: Tensor) -> Tensor:
    if states.dtype != torch.float32 or torch.is_autocast_enabled(states.device.type):
        return functional.linear(states, module.weight, module.bias)
    found: Tensor = _Linear.apply(states, module.weight)  # pyright: ignore[reportAssignmentType]
    return found if module.bias is None else found + module.bias


class _Linear(torch.autograd.Function):
    """states [.., in] @ weight.T [in, out] by oneDNN."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(states, weight)
        return product(states, weight, onednn=True)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        states, weight = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        gradient = gradients[0]
        of_states, of_weight = ctx.needs_input_grad  # pyright: ignore[reportAttributeAccessIssue]
        rows, heights = states.flatten(0, -2), gradient.flatten(0, -2)
        return (
            product(gradient, weight.t(), onednn=True) if of_states else None,
            product(heights.t(), rows.t(), onednn=True) if of_weight else None,
        )
