"""Sampling and scoring: the pool that every n, strategy and job shares."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sweetspot.component import key, to_config
from sweetspot.model import Model
from sweetspot.reward_model import RewardModel
from sweetspot.sampler import Sampler, Tile, tile_config, tiles
from sweetspot.schema import REWARDS, SAMPLES
from sweetspot.stages.run import Run
from sweetspot.store import read_tile, write_tile


@dataclasses.dataclass(frozen=True)
class Samples:
    """The first n samples of each prompt in a pool."""

    key: str
    folder: Path
    prompts: pa.Table
    prompts_path: Path
    tiles: list[Tile]
    n_samples: int
    model: Model

    @property
    def prompt_ids(self) -> list[str]:
        """The prompts' ids in the order of the rows of the reward matrix."""
        return self.prompts["prompt_id"].to_pylist()

    @property
    def probe(self) -> dict[str, Any]:
        """How sampling rendered the template doctor's conversation."""
        return json.loads((self.folder / "probe.json").read_text())

    def path(self, tile: Tile) -> Path:
        """The file of a tile."""
        return self.folder / f"{tile.name}.parquet"

    def read(self) -> pa.Table:
        """The SAMPLES rows with sample_index below n."""
        table = pa.concat_tables([read_tile(self.path(tile), SAMPLES)[0] for tile in self.tiles])
        return table.filter(pc.field("sample_index") < self.n_samples)

    def set_aside(self) -> dict[str, int]:
        """The prompts that did not fit the model's context, with their lengths in tokens."""
        facts = [read_tile(self.path(tile), SAMPLES)[1] for tile in self.tiles]
        return {name: length for fact in facts for name, length in fact["set_aside"].items()}


@dataclasses.dataclass(frozen=True)
class Rewards:
    """The rewards of the samples by one reward model."""

    key: str
    folder: Path
    samples: Samples

    def path(self, tile: Tile) -> Path:
        """The file of a tile, named as the tile of samples that it scores."""
        return self.folder / f"{tile.name}.parquet"

    def matrix(self) -> np.ndarray:
        """The rewards as float32 [prompts, n], NaN where a prompt has no such sample."""
        ids = pa.array(self.samples.prompt_ids)
        matrix = np.full((len(ids), self.samples.n_samples), np.nan, dtype=np.float32)
        for tile in self.samples.tiles:
            table, _ = read_tile(self.path(tile), REWARDS)
            table = table.filter(pc.field("sample_index") < self.samples.n_samples)
            rows = pc.call_function("index_in", [table["prompt_id"]], pc.SetLookupOptions(ids)).to_numpy()
            matrix[rows, table["sample_index"].to_numpy()] = table["reward"].to_numpy()
        return matrix


def sample(
    prompts: pa.Table, model: Model, sampler: Sampler, n_samples: int, run: Run, title: str = "sample"
) -> Samples:
    """The first n samples of each prompt; tiles that the pool lacks are made, in order, one engine call each."""
    started = time.monotonic()
    ids = prompts["prompt_id"].to_pylist()
    pool = key(sampler, model)
    folder = run.store.artefact("samples", pool, {"model": to_config(model), "sampler": to_config(sampler)})
    prompts_path = run.store.root / "prompts" / f"{key(ids)}.parquet"
    write_tile(prompts_path, prompts, {})
    samples = Samples(pool, folder, prompts, prompts_path, tiles(ids, n_samples, sampler), n_samples, model)
    missing = run.missing(map(samples.path, samples.tiles), SAMPLES)
    todo = [tile for tile in samples.tiles if samples.path(tile) in missing]
    if todo:
        job = {
            "model": to_config(model),
            "sampler": to_config(sampler),
            "prompts": str(prompts_path),
            "probe": str(folder / "probe.json"),
            "tiles": [tile_config(tile, str(samples.path(tile))) for tile in todo],
        }
        run.work(title, "sweetspot.sampler.worker", job, sampler.environment())
    run.did(title, "tiles", len(todo), len(samples.tiles) - len(todo), started)
    return samples


def score(samples: Samples, reward_model: RewardModel, run: Run, title: str = "score") -> Rewards:
    """The reward of every sample; tiles that were scored before are reused."""
    started = time.monotonic()
    name = key(reward_model, samples.key)
    provenance = {"reward_model": to_config(reward_model), "samples": samples.key}
    rewards = Rewards(name, run.store.artefact("rewards", name, provenance), samples)
    missing = run.missing(map(rewards.path, samples.tiles), REWARDS)
    todo = [tile for tile in samples.tiles if rewards.path(tile) in missing]
    if todo:
        job = {
            "reward_model": to_config(reward_model),
            "model": to_config(samples.model),
            "probe": samples.probe,
            "prompts": str(samples.prompts_path),
            "tiles": [{"samples": str(samples.path(tile)), "rewards": str(rewards.path(tile))} for tile in todo],
        }
        run.work(title, "sweetspot.reward_model.worker", job, reward_model.environment())
    run.did(title, "tiles", len(todo), len(samples.tiles) - len(todo), started)
    return rewards


def rows_at(
    samples: Samples, wanted: set[tuple[str, int]], columns: Sequence[str]
) -> dict[tuple[str, int], dict[str, Any]]:
    """The named columns of the samples at (prompt_id, sample_index), read tile by tile."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for tile in samples.tiles:
        table = read_tile(samples.path(tile), SAMPLES)[0].select(["prompt_id", "sample_index", *columns])
        places = zip(table["prompt_id"].to_pylist(), table["sample_index"].to_pylist(), strict=True)
        keep = [number for number, place in enumerate(places) if place in wanted]
        found |= {
            (row["prompt_id"], row["sample_index"]): row for row in table.take(pa.array(keep, pa.int64())).to_pylist()
        }
    return found
