"""The transformers engine: batched decoding with one random stream per sample."""

from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from sweetspot.model import Model, load_causal
from sweetspot.sampler import Engine, Response, TransformersSampler


def load(sampler: TransformersSampler, model: Model, ends: list[int], pad: int) -> Engine:
    """The engine with the model in memory."""
    network = load_causal(model, sampler.dtype)

    def sample(prompts: list[list[int]], seeds: list[int], n: int) -> list[list[Response]]:
        rows = [(ids, seed + index) for ids, seed in zip(prompts, seeds, strict=True) for index in range(n)]
        flat: list[Response] = []
        for start in range(0, len(rows), sampler.batch_size):
            flat += _batch(network, rows[start : start + sampler.batch_size], sampler, ends, pad)
        return [flat[index : index + n] for index in range(0, len(flat), n)]

    return sample


class _Draw(LogitsProcessor):
    """Turns the logits into a draw: temperature, nucleus, then the arg-max after Gumbel noise of each row's own stream.

    arg-max(log p + Gumbel) is a draw from p (Gumbel 1954; Maddison et al. 2014), so that greedy decoding of the result
    samples, and each sample depends on its own seed whatever it is batched with.
    """

    def __init__(self, sampler: TransformersSampler, seeds: list[int]) -> None:
        self.temperature, self.top_p = sampler.temperature, sampler.top_p
        self.streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.logprobs: list[torch.Tensor] = []  # of the drawn tokens, untempered, one [batch] a step

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ARG002 - transformers' signature
        """All logits at -inf but that of the drawn token."""
        logits = scores.float()
        tempered = torch.log_softmax(logits / self.temperature, dim=-1)
        if self.top_p < 1:
            tempered = _nucleus(tempered, self.top_p)
        noise = torch.stack([torch.empty(logits.shape[1]).exponential_(generator=stream) for stream in self.streams])
        drawn = (tempered - noise.log().to(logits.device)).argmax(dim=-1, keepdim=True)  # [batch, 1]
        self.logprobs.append(torch.log_softmax(logits, dim=-1).gather(1, drawn).squeeze(1).cpu())
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


def _nucleus(logprobs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Log-probabilities with everything outside the smallest set of mass top_p at -inf.  # [batch, vocabulary]"""
    ordered, index = logprobs.sort(dim=-1, descending=True)
    before = ordered.exp().cumsum(dim=-1) - ordered.exp()  # mass of the tokens above
    return logprobs.scatter(1, index, ordered.masked_fill(before >= top_p, -torch.inf))


@torch.inference_mode()
def _batch(
    network: Any, rows: list[tuple[list[int], int]], sampler: TransformersSampler, ends: list[int], pad: int
) -> list[Response]:
    width = max(len(ids) for ids, _ in rows)
    padded = torch.tensor(
        [[pad] * (width - len(ids)) + ids for ids, _ in rows], device=network.device
    )  # [batch, width]
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in rows], device=network.device)
    draw = _Draw(sampler, [seed for _, seed in rows])
    grown = network.generate(
        padded,
        attention_mask=mask,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=sampler.max_tokens,
        eos_token_id=ends,
        pad_token_id=pad,
        logits_processor=LogitsProcessorList([draw]),
    )
    steps = torch.stack(draw.logprobs, dim=1)  # [batch, steps]
    return [_response(ids.tolist(), steps[row], ends) for row, ids in enumerate(grown[:, width:])]


def _response(ids: list[int], logprobs: torch.Tensor, ends: list[int]) -> Response:
    """The row up to and with its first end token; what follows is padding."""
    length = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
    reason = "stop" if ids[length - 1] in ends else "length"
    return Response(ids[:length], reason, float(logprobs[:length].double().sum()))
