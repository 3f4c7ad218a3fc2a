"""LoRA (Hu et al. 2021): the start model stays as it is, a small adapter is trained, and both are saved as one model.

With the adapter off the network is its start model, so that reference log-probabilities are those of the start model's
rows in the store.
"""

import contextlib
import dataclasses
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sweetspot.dpo import DPO
from sweetspot.launch import Emit
from sweetspot.logprob.forward import TOLERANCE, Forward, response_logprobs
from sweetspot.logprob.layout import Group

ADAPTER = "adapter"  # folder of the unmerged adapter, beside the merged weights
PROBED = 2  # groups by which merged and unmerged weights are compared
STIR = 0.02  # sd of the adapter's B while ways of computing are compared


def adapted(network: Any, dpo: DPO) -> Any:
    """The network that is trained: as it is, or with a new adapter, which changes nothing yet, over frozen weights.

    The adapter has the dtype of the weights, but float32 over bfloat16. Its A is drawn by `dpo.seed`.

    Raises:
        ValueError: when a name in `dpo.lora_targets` is that of no linear layer, or of a head that shares its weights
            with the embedding.
    """
    if dpo.adapter is None:
        return network
    from peft import LoraConfig, get_peft_model

    _check_targets(network, dpo.lora_targets)
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=dpo.lora_rank or 0,
        lora_alpha=dpo.lora_alpha,  # pyright: ignore[reportArgumentType] - a real number does as well
        target_modules=dpo.lora_targets,
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng():
        torch.manual_seed(dpo.seed)
        return get_peft_model(network, settings)


def _check_targets(network: Any, targets: list[str] | str | None) -> None:
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    head = network.get_output_embeddings()
    tied = head is not None and head.weight is network.get_input_embeddings().weight
    for target in targets if isinstance(targets, list) else ():
        hit = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not hit:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise ValueError(f"dpo.lora_targets must name linear layers of the model ({known}), got {target}")
        if tied and any(network.get_submodule(name) is head for name in hit):
            raise ValueError(
                f"dpo.lora_targets must leave out {target}, whose weights are the embedding's too in this model"
            )


@contextlib.contextmanager
def stirred(network: Any, dpo: DPO) -> Generator[None]:
    """Inside the block a new adapter does change something, so that a comparison of forward passes cannot miss it."""
    new = [weight for name, weight in network.named_parameters() if dpo.adapter and "lora_B" in name]
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in new:
            weight.copy_(torch.randn(weight.shape, generator=stream) * STIR)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight in new:
                weight.zero_()


def save_policy(
    network: Any,
    weights: dict[str, Any] | None,
    output: Path,
    dpo: DPO,
    forward: Forward,
    groups: Sequence[Group],
    emit: Emit,
) -> None:
    """Write the policy's weights as an ordinary model, and an adapter unmerged beside them (`adapter/`).

    `weights` are those of a network without an adapter where it does not hold them itself (ZeRO-3).

    Raises:
        RuntimeError: when merging changes a log-probability by more than the dtype rounds.
    """
    if dpo.adapter is None:
        network.save_pretrained(output, state_dict=weights)
        return
    network.save_pretrained(output / ADAPTER, save_embedding_layers=False)  # adapters alone: nothing else has changed
    unmerged = _logprobs(network, groups, forward)
    merged = network.merge_and_unload(safe_merge=True)
    worst = (_logprobs(merged, groups, forward) - unmerged).abs().max().item()
    emit({"metrics": {"adapter/merging_error": worst}})  # nats a token
    if not worst <= (within := TOLERANCE[dpo.dtype]):
        raise RuntimeError(f"dpo.adapter: merging changes log-probabilities by {worst:.2g} nats a token, over {within}")
    merged.save_pretrained(output)


@torch.no_grad()
def _logprobs(network: Any, groups: Sequence[Group], forward: Forward) -> torch.Tensor:
    """The mean log-probability per token of each response of the first groups, in the dtype of the weights."""
    layout = forward.layout(groups[:PROBED]).to(network.device)
    network.eval()
    return response_logprobs(network, layout, dataclasses.replace(forward, autocast=None)) / layout.lengths
