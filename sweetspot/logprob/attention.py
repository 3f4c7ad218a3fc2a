"""Attention over one row of groups: a response sees its prompt and itself, and nothing sees another group.

On a processor the groups are taken one by one, so that no mask over the whole row exists and no masked product is
computed but within a response's own square. On CUDA the same pattern is a block mask of FlexAttention, which skips
the blocks that are masked whole. That kernel has not been run here; its pattern (`visible`) is held against the other.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from sweetspot.logprob.layout import Layout, Spans

NAME = "sweetspot_groups"
UNKNOWN = ("softcap", "s_aux", "position_bias")  # what some models' attention does beside the softmax of products


class UnsupportedAttentionError(ValueError):
    """A model whose attention does more than this module computes."""


def group_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The attention output [1, length, heads, head_dim] of a row, as an attention function of transformers.

    Args:
        module: the attention layer.
        query: [1, heads, length, head_dim].
        key: [1, key heads, length, head_dim], key heads a divisor of heads.
        value: as key.
        attention_mask: None; `options["spans"]` says what is seen.
        options: what the model passes on: `scaling`, `dropout` (0 here), `spans` (of the Layout).

    Raises:
        UnsupportedAttentionError: when the model passes an option that would change the result.
    """
    unknown = [name for name in UNKNOWN if options.get(name) is not None]
    if unknown or attention_mask is not None or "spans" not in options:
        raise UnsupportedAttentionError(f"{type(module).__name__} asks for {', '.join(unknown) or 'a mask of its own'}")
    spans: Spans = options["spans"]
    settings: dict[str, Any] = {"scale": options.get("scaling"), "enable_gqa": True}
    cuts = [length for prompt, responses in spans for length in (prompt, *responses)]
    pieces = iter(zip(*(states.split(cuts, dim=2) for states in (query, key, value)), strict=True))
    found: list[Tensor] = []
    for _, responses in spans:
        asked, prompt_key, prompt_value = next(pieces)
        found.append(scaled_dot_product_attention(asked, prompt_key, prompt_value, is_causal=True, **settings))
        for _ in responses:
            asked, own_key, own_value = next(pieces)
            keys, values = torch.cat([prompt_key, own_key], dim=2), torch.cat([prompt_value, own_value], dim=2)
            seen = torch.ones(asked.shape[2], keys.shape[2], dtype=torch.bool, device=asked.device)
            seen = seen.tril(prompt_key.shape[2])  # [response, prompt + response]
            found.append(scaled_dot_product_attention(asked, keys, values, attn_mask=seen, **settings))
    return torch.cat(found, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, group_attention)


def install(network: Any) -> None:
    """Have the network attend by groups from now on; every later forward pass must say which (`arguments`)."""
    network.set_attn_implementation("flex_attention" if network.device.type == "cuda" else NAME)


def arguments(layout: Layout) -> dict[str, Any]:
    """What a forward pass over one row of groups must be given."""
    if layout.token_ids.device.type != "cuda":
        return {"position_ids": layout.position_ids, "spans": layout.spans}
    return {"position_ids": layout.position_ids, "attention_mask": _block_mask(layout)}  # not run here


def visible(layout: Layout) -> tuple[Tensor, Tensor]:
    """Which piece (a prompt or a response) each token of the row belongs to, and the piece of its group's prompt.

    A token at q sees one at k when k <= q and k's piece is q's own or q's prompt.
    """
    pieces: list[int] = []
    prompts: list[int] = []
    number = 0
    for prompt, responses in layout.spans or ():
        first = number
        for length in (prompt, *responses):
            pieces += [number] * length
            prompts += [first] * length
            number += 1
    device = layout.token_ids.device
    return torch.tensor(pieces, device=device), torch.tensor(prompts, device=device)


def _block_mask(layout: Layout) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    piece, prompt = visible(layout)

    def seen(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001 - FlexAttention's signature
        return (k <= q) & ((piece[k] == piece[q]) | (piece[k] == prompt[q]))

    length = layout.token_ids.shape[1]
    return create_block_mask(seen, None, None, length, length, device=layout.token_ids.device)
