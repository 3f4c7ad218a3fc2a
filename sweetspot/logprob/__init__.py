"""The log-probability worker: it writes log p(response | prompt) as rows, by the forward pass that training uses."""

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sweetspot.component import build
from sweetspot.dpo import DPO
from sweetspot.launch import Emit
from sweetspot.logprob.forward import Forward, choose, response_logprobs
from sweetspot.logprob.layout import Group
from sweetspot.model import Model, Probe, check_probe, compare_probes, load_causal, load_tokenizer, prompt_ids
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
    order = by_prompt(sequences)
    fitting = [sequences[index] for index in order if dpo.fits(*sequences[index])]
    forward = choose(network, dpo, grouped(fitting), emit) if fitting else None
    started, done, tokens = time.monotonic(), 0, 0

    def show(batch: Sequence[Rendered]) -> None:
        nonlocal done, tokens
        done, tokens = done + len(batch), tokens + sum(len(prompt) + len(response) for prompt, response in batch)
        rate = f"{tokens / (time.monotonic() - started):.0f} tokens/s"
        emit({"progress": {"done": done, "total": len(rows), "unit": "responses", "note": rate}})

    for start in range(0, len(order), PART_ROWS):
        part = order[start : start + PART_ROWS]
        rendered = [sequences[index] for index in part]
        write_part(Path(job["parts"]), [rows[index] for index in part], rendered, network, dpo, forward, show)


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
    """The causal model with weights in `dpo.dtype`, without dropout."""
    return load_causal(model, dpo.dtype)


def write_part(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    sequences: Sequence[Rendered],
    network: Any,
    dpo: DPO,
    forward: Forward | None,
    show: Callable[[Sequence[Rendered]], None],
) -> None:
    """Write the rows as one part named after its places; `show` is told of each batch. No forward where none fits."""
    fitting = [index for index, sequence in enumerate(sequences) if dpo.fits(*sequence)]
    kept = [sequences[index] for index in fitting]
    values = logprobs(kept, network, dpo, forward, show) if forward else []
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
    forward: Forward,
    show: Callable[[Sequence[Rendered]], None] = lambda _: None,
) -> list[float]:
    """log p(response | prompt) of each sequence, nats; the order of `by_prompt` is the fast one."""
    values: list[float] = []
    for batch in batches(sequences, dpo.reference_batch_tokens, forward.batching):
        layout = forward.layout(grouped(batch)).to(network.device)
        values += response_logprobs(network, layout, forward).double().tolist()
        show(batch)
    return values


def by_prompt(sequences: Sequence[Rendered]) -> list[int]:
    """The indices of the sequences, those of one prompt together, prompts in the order of their longest sequence."""
    longest: dict[tuple[int, ...], int] = {}
    for prompt, response in sequences:
        longest[tuple(prompt)] = max(longest.get(tuple(prompt), 0), len(prompt) + len(response))

    def place(index: int) -> tuple[int, list[int], int]:
        prompt, response = sequences[index]
        return longest[tuple(prompt)], prompt, len(response)

    return sorted(range(len(sequences)), key=place)


def grouped(sequences: Sequence[Rendered]) -> list[Group]:
    """The sequences with neighbours of one prompt put into one group; the order of the responses stays."""
    runs = itertools.groupby(sequences, key=lambda sequence: sequence[0])
    return [(prompt, [response for _, response in run]) for prompt, run in runs]


def batches(sequences: Sequence[Rendered], tokens: int, batching: str) -> Iterator[Sequence[Rendered]]:
    """Runs of sequences that hold at most `tokens` tokens in their layout, padding included (one sequence at least)."""
    start = 0
    for stop in range(1, len(sequences) + 1):
        if stop - start > 1 and count_tokens(sequences[start:stop], batching) > tokens:
            yield sequences[start : stop - 1]
            start = stop - 1
    if start < len(sequences):
        yield sequences[start:]


def count_tokens(sequences: Sequence[Rendered], batching: str) -> int:
    """The tokens of the sequences in a layout (the last of each response counted too, though it is no input)."""
    if batching == "padded":
        return len(sequences) * max(len(prompt) + len(response) for prompt, response in sequences)
    prompts = sequences if batching == "packed" else grouped(sequences)
    return sum(len(prompt) for prompt, _ in prompts) + sum(len(response) for _, response in sequences)
