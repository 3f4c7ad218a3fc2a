"""The sampling worker: takes the tiles that are missing, one engine call each."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweetspot.component import build
from sweetspot.launch import Emit
from sweetspot.model import Model, Probe, check_probe, end_ids, load_tokenizer, prompt_ids
from sweetspot.sampler import Engine, Sampler, stream_seed
from sweetspot.schema import SAMPLES
from sweetspot.store import write_text, write_tile


def main(job: dict[str, Any], emit: Emit) -> None:
    """Make the tiles of a job.

    Args:
        job: {"model", "sampler": configs, "prompts": a PROMPTS file, "probe": where the doctor's probe goes,
            "tiles": [{"path", "start", "stop", "first", "n"}]}.
        emit: takes progress.
    """
    model: Model = build(job["model"])
    sampler: Sampler = build(job["sampler"])
    tokenizer = load_tokenizer(model)
    probe = Probe.of(model, tokenizer)
    check_probe(probe)
    write_text(Path(job["probe"]), json.dumps(dataclasses.asdict(probe)) + "\n")
    prompts = pq.read_table(job["prompts"]).to_pylist()
    engine = sampler.load(model, end_ids(model, tokenizer), int(tokenizer.pad_token_id or 0))
    started, tokens = time.monotonic(), 0
    for done, tile in enumerate(job["tiles"]):
        rate = f"{tokens / (time.monotonic() - started):.0f} tokens/s" if done else ""
        emit({"progress": {"done": done, "total": len(job["tiles"]), "unit": "tiles", "note": rate}})
        tokens += make_tile(sampler, model, tokenizer, engine, prompts[tile["start"] : tile["stop"]], tile)
    emit({"progress": {"done": len(job["tiles"]), "total": len(job["tiles"]), "unit": "tiles"}})


def make_tile(
    sampler: Sampler,
    model: Model,
    tokenizer: Any,
    engine: Engine,
    prompts: Sequence[dict[str, Any]],
    tile: dict[str, Any],
) -> int:
    """Sample one tile and place it; returns the number of tokens sampled.

    A prompt longer than `max_prompt_tokens` gets no rows and is named in the tile's facts as set aside.
    """
    rendered = [(row["prompt_id"], prompt_ids(model, tokenizer, row["messages"])) for row in prompts]
    fitting = [(name, ids) for name, ids in rendered if len(ids) <= sampler.max_prompt_tokens]
    seeds = [stream_seed(sampler.seed, name) + tile["first"] for name, _ in fitting]
    responses = engine([ids for _, ids in fitting], seeds, tile["n"]) if fitting else []
    rows: list[dict[str, Any]] = [
        {
            "prompt_id": name,
            "sample_index": tile["first"] + index,
            "response": tokenizer.decode(response.token_ids, skip_special_tokens=True),
            "token_ids": response.token_ids,
            "n_tokens": len(response.token_ids),
            "finish_reason": response.finish_reason,
            "seed": seed + index,
            "logprob": response.logprob,
        }
        for (name, _), seed, several in zip(fitting, seeds, responses, strict=True)
        for index, response in enumerate(several)
    ]
    kept = {name for name, _ in fitting}
    facts = {"set_aside": {name: len(ids) for name, ids in rendered if name not in kept}}
    write_tile(Path(tile["path"]), pa.Table.from_pylist(rows, schema=SAMPLES), facts)
    return sum(row["n_tokens"] for row in rows)
