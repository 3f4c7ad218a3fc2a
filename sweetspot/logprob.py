"""The log-probability worker, and the forward pass that it shares with the trainer."""

import contextlib
import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from sweetspot.component import build
from sweetspot.dpo import DPO
from sweetspot.launch import Emit
from sweetspot.losses import token_logprobs
from sweetspot.model import Model, Probe, check_probe, compare_probes, load_tokenizer, prompt_ids
from sweetspot.schema import LOGPROBS
from sweetspot.store import write_tile

PART_ROWS = 128  # rows written together: a killed worker loses these at most

Rendered = tuple[list[int], list[int]]  # ids of a prompt and of a response


def main(job: dict[str, Any], emit: Emit) -> None:
    """Write the log-probabilities of responses as LOGPROBS parts.

    Args:
        job: {"model", "dpo": configs, "probe": the sampled Probe or None, "rows": a Parquet file of (prompt_id,
            sample_index, messages, token_ids), "parts": the folder that the parts are added to}. A response that does
            not fit behind its prompt gets no row and is named in the part's facts.
        emit: takes progress.
    """
    model: Model = build(job["model"])
    dpo: DPO = build(job["dpo"])
    tokenizer = load_tokenizer(model)
    examine(model, tokenizer, job["probe"], "the reference")
    network = load_network(model, dpo)
    rows = pq.read_table(job["rows"]).to_pylist()
    sequences = [(dpo.cut(prompt_ids(model, tokenizer, row["messages"])), list(row["token_ids"])) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: sum(map(len, sequences[index])))
    started, done, tokens = time.monotonic(), 0, 0

    def show(batch: Sequence[Rendered]) -> None:
        nonlocal done, tokens
        done, tokens = done + len(batch), tokens + sum(len(prompt) + len(response) for prompt, response in batch)
        rate = f"{tokens / (time.monotonic() - started):.0f} tokens/s"
        emit({"progress": {"done": done, "total": len(rows), "unit": "responses", "note": rate}})

    for start in range(0, len(order), PART_ROWS):
        part = order[start : start + PART_ROWS]
        rendered = [sequences[index] for index in part]
        write_part(Path(job["parts"]), [rows[index] for index in part], rendered, network, dpo, show)


def examine(model: Model, tokenizer: Any, sampled: dict[str, Any] | None, stage: str) -> None:
    """The template doctor: refuse to go on when this stage renders otherwise than sampling did.

    Raises:
        TemplateError: naming the stage and the first difference.
    """
    here = Probe.of(model, tokenizer)
    if sampled is None:
        check_probe(here)
    else:
        compare_probes(Probe.read(sampled), here, stage)


def load_network(model: Model, dpo: DPO) -> Any:
    """The causal model with weights in `dpo.dtype`, on the GPU where there is one, without dropout."""
    network: Any = AutoModelForCausalLM.from_pretrained(
        model.path,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        use_safetensors=True,
        dtype=getattr(torch, dpo.dtype),
    )
    return network.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def write_part(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    sequences: Sequence[Rendered],
    network: Any,
    dpo: DPO,
    show: Callable[[Sequence[Rendered]], None],
) -> None:
    """Write the rows, given in order of length, as one part named after its places; `show` is told of each batch."""
    fitting = [index for index, sequence in enumerate(sequences) if dpo.fits(*sequence)]
    values = logprobs([sequences[index] for index in fitting], network, dpo, show)
    places = [(row["prompt_id"], row["sample_index"]) for row in rows]
    table = [
        {
            "prompt_id": places[index][0],
            "sample_index": places[index][1],
            "logprob": value,
            "n_tokens": len(sequences[index][1]),
        }
        for index, value in zip(fitting, values, strict=True)
    ]
    too_long = [list(place) for index, place in enumerate(places) if index not in set(fitting)]
    name = hashlib.sha256(repr(places).encode()).hexdigest()[:16]
    write_tile(folder / f"{name}.parquet", pa.Table.from_pylist(table, schema=LOGPROBS), {"too_long": too_long})


@torch.inference_mode()
def logprobs(
    sequences: Sequence[Rendered],
    network: Any,
    dpo: DPO,
    show: Callable[[Sequence[Rendered]], None] = lambda _: None,
) -> list[float]:
    """log p(response | prompt) of each sequence, nats; sequences of like length should lie together."""
    values: list[float] = []
    for batch in _batches(sequences, dpo.reference_batch_tokens):
        inputs = {name: tensor.to(network.device) for name, tensor in collate(batch).items()}
        values += response_logprobs(network, **inputs, autocast=dpo.autocast).double().tolist()
        show(batch)
    return values


def _batches(sequences: Sequence[Rendered], tokens: int) -> Iterator[Sequence[Rendered]]:
    """Runs of sequences that, padded to their longest, hold at most `tokens` tokens (one sequence at least)."""
    start, longest = 0, 0
    for stop, sequence in enumerate(sequences):
        grown = max(longest, sum(map(len, sequence)))
        if stop > start and grown * (stop - start + 1) > tokens:
            yield sequences[start:stop]
            start, grown = stop, sum(map(len, sequence))
        longest = grown
    if start < len(sequences):
        yield sequences[start:]


def collate(sequences: Sequence[Rendered]) -> dict[str, Tensor]:
    """Prompts and responses one behind the other, padded on the right with 0.

    Returns:
        `token_ids` [batch, length], and `response_mask` [batch, length], true at the response's tokens.
    """
    ids = [torch.tensor(prompt + response) for prompt, response in sequences]
    masks = [torch.tensor([False] * len(prompt) + [True] * len(response)) for prompt, response in sequences]
    return {
        "token_ids": pad_sequence(ids, batch_first=True),
        "response_mask": pad_sequence(masks, batch_first=True),
    }


def response_logprobs(network: Any, token_ids: Tensor, response_mask: Tensor, autocast: str | None) -> Tensor:
    """log p(response | prompt) of each row [batch], nats: `losses.sequence_logprobs` of the network's logits.

    Only the positions that predict a response token pass the head, whose vocabulary makes it the widest layer. Padding
    lies on the right, where a causal model's other tokens cannot see it, so that no attention mask is needed.

    Args:
        network: a causal model, possibly wrapped (DDP).
        token_ids: [batch, length], padded on the right.
        response_mask: [batch, length], true at the response's tokens.
        autocast: dtype of the matrix products, or None for that of the weights.
    """
    response = response_mask.clone()
    response[:, 0] = False  # nothing predicts the first token
    predicting = functional.pad(response[:, 1:], (0, 1))  # [batch, length]: the position before each response token
    dtype = getattr(torch, autocast) if autocast else None
    with (
        _head_sees(getattr(network, "module", network), predicting),
        torch.autocast(token_ids.device.type, dtype=dtype, enabled=autocast is not None),
    ):
        logits = network(input_ids=token_ids, use_cache=False).logits  # [response tokens, vocabulary]
    predicted = token_logprobs(logits, token_ids[response])
    rows = predicted.new_zeros(token_ids.shape).masked_scatter(response, predicted)  # [batch, length]
    return rows.sum(dim=1)


@contextlib.contextmanager
def _head_sees(network: Any, positions: Tensor) -> Generator[None]:
    """Inside the block, the network's head gets the hidden states at `positions` [batch, length] alone."""
    head = network.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, states: (states[0][positions],))
    try:
        yield
    finally:
        handle.remove()
