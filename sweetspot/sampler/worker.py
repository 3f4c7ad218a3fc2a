"""The sampling worker: takes tiles that are missing and that nobody holds, one engine call each."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweetspot.component import build
from sweetspot.fill import Todo, Told, fill
from sweetspot.launch import Emit
from sweetspot.model import Model, Probe, check_probe, end_ids, load_tokenizer, prompt_ids
from sweetspot.sampler import Engine, Response, Sampler, wanted
from sweetspot.schema import SAMPLES
from sweetspot.store import write_text, write_tile
from sweetspot.tile import Cover, Tile


def main(job: dict[str, Any], emit: Emit) -> None:
    """Make tiles until the pool has every block that the job wants.

    Args:
        job: {"model", "sampler": configs, "prompts": a PROMPTS file, "blocks": for each prompt or for all, "folder": of
            the pool, "probe": where the doctor's probe goes, "lease_seconds": term of a lease}.
        emit: takes progress.
    """
    model: Model = build(job["model"])
    sampler: Sampler = build(job["sampler"])
    tokenizer = load_tokenizer(model)

    def load() -> Engine:
        probe = Probe.of(model, tokenizer)
        check_probe(probe)
        write_text(Path(job["probe"]), json.dumps(dataclasses.asdict(probe)) + "\n")
        return sampler.load(model, end_ids(model, tokenizer), int(tokenizer.pad_token_id or 0))

    make_tiles(job, model, sampler, tokenizer, load, emit)


def make_tiles(
    job: dict[str, Any], model: Model, sampler: Sampler, tokenizer: Any, load: Callable[[], Engine], emit: Emit
) -> None:
    """Make tiles of the job with the engine that `load` gives until none is missing."""
    prompts = pq.read_table(job["prompts"])
    names: list[str] = prompts["prompt_id"].to_pylist()
    groups, cover = wanted(names, job["blocks"], sampler), Cover(Path(job["folder"]))

    def missing() -> list[Todo]:
        plan = cover.plan(names, groups, sampler.tile_samples, pack=sampler.tile_prompts)
        return [
            Todo(tile.at(cover.folder), len(tile.rows) * tile.n, tile, [names[row] for row in tile.rows])
            for tile in plan.missing
        ]

    def make(engine: Engine, todo: Todo, told: Told) -> Callable[[], bool]:
        rows = prompts.take(list(todo.what.rows)).to_pylist()
        return make_tile(sampler, model, tokenizer, engine, rows, todo, told)

    fill(missing, load, make, emit, job["lease_seconds"], "tokens/s")


def make_tile(
    sampler: Sampler,
    model: Model,
    tokenizer: Any,
    engine: Engine,
    prompts: Sequence[dict[str, Any]],
    todo: Todo,
    told: Told,
) -> Callable[[], bool]:
    """Sample one tile; returns what writes it.

    A prompt longer than `max_prompt_tokens` gets no rows and is named in the tile's facts as set aside.
    """
    tile: Tile = todo.what
    rendered = [(row["prompt_id"], prompt_ids(model, tokenizer, row["messages"])) for row in prompts]
    fitting = [(name, ids) for name, ids in rendered if len(ids) <= sampler.max_prompt_tokens]
    kept = [name for name, _ in fitting]
    seeds = sampler.seeds(kept, tile.first, tile.n)
    responses = engine([ids for _, ids in fitting], [own[0] for own in seeds], tile.n) if fitting else []
    told.add(sum(len(response.token_ids) for several in responses for response in several), todo.size)
    facts = {"set_aside": {name: len(ids) for name, ids in rendered if len(ids) > sampler.max_prompt_tokens}}

    def place() -> bool:
        return write_tile(todo.path, _rows(kept, tile.first, seeds, responses, tokenizer), facts, todo.prompt_ids)

    return place


def _rows(
    names: Sequence[str], first: int, seeds: list[list[int]], responses: list[list[Response]], tokenizer: Any
) -> pa.Table:
    """The SAMPLES rows of a tile, prompt by prompt."""
    rows: list[dict[str, Any]] = [
        {
            "prompt_id": name,
            "sample_index": first + index,
            "response": tokenizer.decode(response.token_ids, skip_special_tokens=True),
            "token_ids": response.token_ids,
            "n_tokens": len(response.token_ids),
            "finish_reason": response.finish_reason,
            "seed": seed,
            "logprob": response.logprob,
        }
        for name, own, several in zip(names, seeds, responses, strict=True)
        for index, (seed, response) in enumerate(zip(own, several, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLES)
