"""Sampling and scoring: the pool that every n, strategy, job and user shares."""

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sweetspot.component import key, to_config
from sweetspot.duplicates import folded
from sweetspot.model import Model
from sweetspot.reward_model import RewardModel
from sweetspot.sampler import Sampler, blocks_for, wanted
from sweetspot.schema import REWARDS, SAMPLES
from sweetspot.stages.run import Run
from sweetspot.store import content_name, read_labels, read_tile, write_tile
from sweetspot.tile import Cover, Group, Plan, Tile

PLACE = ("prompt_id", "sample_index")


@dataclasses.dataclass(frozen=True)
class Samples:
    """The first n samples of each prompt in a pool, or of each as many blocks as were asked for, up to n."""

    key: str
    folder: Path
    prompts: pa.Table
    prompts_path: Path
    tiles: list[Tile]
    n_samples: int
    model: Model
    blocks: tuple[int, ...] | None = None  # per prompt, where they differ

    @property
    def prompt_ids(self) -> list[str]:
        """The prompts' ids in the order of the rows of the reward matrix."""
        return self.prompts["prompt_id"].to_pylist()

    @property
    def probe(self) -> dict[str, Any]:
        """How sampling rendered the template doctor's conversation."""
        return json.loads((self.folder / "probe.json").read_text())

    @property
    def size(self) -> int | list[int]:
        """How many samples each prompt has been asked for, for the keys of what is made of them."""
        return self.n_samples if self.blocks is None else [self.n_samples, *self.blocks]

    def path(self, tile: Tile) -> Path:
        """The file of a tile."""
        return tile.at(self.folder)

    def each(self, columns: Sequence[str]) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """The columns of the samples, tile by tile, each row with its prompt's row; see `served`."""
        ids = self.prompt_ids
        for tile in self.tiles:
            row_of = {ids[row]: row for row in tile.rows}
            yield served(self.path(tile), SAMPLES, row_of, self.n_samples, columns)

    def read(self) -> pa.Table:
        """All the SAMPLES rows at once: for pools that fit into memory with their texts."""
        return pa.concat_tables([SAMPLES.empty_table(), *(table for table, _ in self.each(SAMPLES.names))])

    def set_aside(self) -> dict[str, int]:
        """The prompts that did not fit the model's context, with their lengths in tokens."""
        ids, found = self.prompt_ids, dict[str, int]()
        for tile in self.tiles:
            aside: dict[str, int] = read_labels(self.path(tile))[1]["set_aside"]
            own = {ids[row] for row in tile.rows} if aside else set[str]()
            found |= {name: length for name, length in aside.items() if name in own}
        return found


@dataclasses.dataclass(frozen=True)
class Rewards:
    """The rewards of the samples by one reward model."""

    key: str
    folder: Path
    samples: Samples
    tiles: list[Tile]

    def path(self, tile: Tile) -> Path:
        """The file of a tile, named as a tile of samples of the same prompts would be."""
        return tile.at(self.folder)

    def matrix(self) -> np.ndarray:
        """The rewards as float32 [prompts, n], NaN where a prompt has no such sample."""
        samples, ids = self.samples, self.samples.prompt_ids
        matrix = np.full((len(ids), samples.n_samples), np.nan, dtype=np.float32)
        for tile in self.tiles:
            row_of = {ids[row]: row for row in tile.rows}
            table, rows = served(self.path(tile), REWARDS, row_of, samples.n_samples, ["sample_index", "reward"])
            matrix[rows, table["sample_index"].to_numpy()] = table["reward"].to_numpy()
        return matrix


def served(
    path: Path, schema: pa.Schema, row_of: Mapping[str, int], n: int, columns: Sequence[str]
) -> tuple[pa.Table, np.ndarray]:
    """The rows of a tile's file that are wanted: those of some prompts, with sample_index below n.

    Args:
        row_of: the wanted prompts' numbers, by prompt_id.
        columns: those wanted.

    Returns:
        The columns, and the number of each row's prompt [rows].
    """
    table, _ = read_tile(path, schema, [name for name in schema.names if name in (*PLACE, *columns)])
    encoded = table["prompt_id"].combine_chunks().dictionary_encode()
    rows = np.array([row_of.get(name, -1) for name in encoded.dictionary.to_pylist()], dtype=np.int64)
    rows = rows[encoded.indices.to_numpy()]
    kept = (rows >= 0) & (table["sample_index"].to_numpy() < n)
    if not kept.all():
        table, rows = table.filter(pa.array(kept)), rows[kept]
    return table.select(list(columns)), rows


def sample(
    prompts: pa.Table,
    model: Model,
    sampler: Sampler,
    n_samples: int,
    run: Run,
    title: str = "sample",
    blocks: np.ndarray | None = None,
) -> Samples:
    """The first n samples of each prompt; tiles that the pool lacks are made, in order, one engine call each.

    Args:
        blocks: of `sampler.tile_samples` samples, for each prompt [prompts]; None = as many as n_samples take. A prompt
            has no more than n_samples in any case.
    """
    started = time.monotonic()
    ids = prompts["prompt_id"].to_pylist()
    pool = key(sampler, model)
    folder = run.store.artefact("samples", pool, {"model": to_config(model), "sampler": to_config(sampler)})
    prompts_path = run.store.root / "prompts" / f"{key(ids)}.parquet"
    write_tile(prompts_path, prompts, {})
    uneven = None if blocks is None else tuple(int(count) for count in blocks)
    asked = blocks_for(n_samples, sampler) if uneven is None else list(uneven)
    groups = wanted(ids, np.asarray(asked), sampler)
    plan = run.plan(Cover(folder), ids, groups, sampler.tile_samples, sampler.tile_prompts, SAMPLES)
    made = 0
    if plan.missing:
        job = {
            "model": to_config(model),
            "sampler": to_config(sampler),
            "prompts": str(prompts_path),
            "blocks": asked,
            "folder": str(folder),
            "probe": str(folder / "probe.json"),
        }
        environment = sampler.environment()
        made = run.fill(title, "sweetspot.sampler.worker", job, len(plan.missing), sampler.group, environment)
        plan = run.plan(Cover(folder), ids, groups, sampler.tile_samples, sampler.tile_prompts, None)
    run.did(title, "tiles", made, len(plan.tiles) - made, started)
    return Samples(pool, folder, prompts, prompts_path, plan.tiles, n_samples, model, uneven)


def score(samples: Samples, reward_model: RewardModel, run: Run, title: str = "score") -> Rewards:
    """The reward of every sample; those that were scored before are reused."""
    started = time.monotonic()
    name = key(reward_model, samples.key)
    provenance = {"reward_model": to_config(reward_model), "samples": samples.key}
    folder = run.store.artefact("rewards", name, provenance)
    plan = _reward_plan(samples, folder, run, REWARDS)
    made = 0
    if plan.missing:
        job = {
            "reward_model": to_config(reward_model),
            "model": to_config(samples.model),
            "probe": samples.probe,
            "prompts": str(samples.prompts_path),
            "tiles": list(_to_score(samples, folder, plan)),
        }
        group: int = getattr(reward_model, "tensor_parallel", 1)
        environment = reward_model.environment()
        made = run.fill(title, "sweetspot.reward_model.worker", job, len(plan.missing), group, environment)
        plan = _reward_plan(samples, folder, run, None)
    run.did(title, "tiles", made, len(plan.tiles) - made, started)
    return Rewards(name, folder, samples, plan.tiles)


def _reward_plan(samples: Samples, folder: Path, run: Run, schema: pa.Schema | None) -> Plan:
    """Which rewards are there: a tile for the prompts that are read from each tile of samples."""
    ids, contents = samples.prompt_ids, dict[Sequence[int], str]()
    groups: list[Group] = []
    for tile in samples.tiles:
        if tile.rows not in contents:
            contents[tile.rows] = content_name([ids[row] for row in tile.rows])
        groups.append(Group(contents[tile.rows], tile.rows, tile.first))
    n = max((tile.n for tile in samples.tiles), default=1)
    return run.plan(Cover(folder), ids, groups, n, None, schema)


def _to_score(samples: Samples, folder: Path, plan: Plan) -> Iterator[dict[str, Any]]:
    """The scoring worker's tiles: each from one tile of samples, of which it may take some prompts only."""
    ids, origins = samples.prompt_ids, dict[int, list[Tile]]()
    for tile in samples.tiles:
        origins.setdefault(tile.first, []).append(tile)
    for tile in plan.missing:
        origin = next(origin for origin in origins[tile.first] if tile.rows[0] in origin.rows)
        whole = tile.name == origin.name
        yield {
            "samples": str(samples.path(origin)),
            "rewards": str(tile.at(folder)),
            "prompt_ids": None if whole else [ids[row] for row in tile.rows],
        }


def rows_at(
    samples: Samples, places: set[tuple[str, int]], columns: Sequence[str]
) -> dict[tuple[str, int], dict[str, Any]]:
    """The named columns of the samples at (prompt_id, sample_index), read tile by tile."""
    row_of = {name: row for row, name in enumerate(samples.prompt_ids)}
    codes = np.array(sorted(row_of[name] * samples.n_samples + index for name, index in places), dtype=np.int64)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for table, rows in samples.each([*PLACE, *columns]) if len(codes) else ():
        here = rows * samples.n_samples + table["sample_index"].to_numpy()
        kept = codes[np.searchsorted(codes, here).clip(max=len(codes) - 1)] == here
        for row in table.filter(pa.array(kept)).to_pylist():
            found[row["prompt_id"], row["sample_index"]] = row
    return found


def token_counts(samples: Samples) -> np.ndarray:
    """The lengths of the responses in tokens, int32 [prompts, n]; -1 where a prompt has no such sample."""
    counts = np.full((samples.prompts.num_rows, samples.n_samples), -1, dtype=np.int32)
    for table, rows in samples.each(["sample_index", "n_tokens"]):
        counts[rows, table["sample_index"].to_numpy()] = table["n_tokens"].to_numpy()
    return counts


def text_codes(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the responses' texts, and of their letters and digits alone: both int64 [prompts, n], see `duplicates`.

    A code is a 63-bit hash: two different texts of one prompt share one with a chance of n^2 / 2^64.
    """
    codes = np.full((2, samples.prompts.num_rows, samples.n_samples), -1, dtype=np.int64)
    for table, rows in samples.each(["sample_index", "response"]):
        responses = table["response"].to_pylist()
        both = [coded(responses), coded([folded(response) for response in responses])]
        codes[:, rows, table["sample_index"].to_numpy()] = both
    return codes[0], codes[1]


def coded(texts: Sequence[str]) -> np.ndarray:
    """The texts' codes, 63-bit hashes of this process, int64 [texts]."""
    return np.array(list(map(hash, texts)), dtype=np.int64) & np.iinfo(np.int64).max
