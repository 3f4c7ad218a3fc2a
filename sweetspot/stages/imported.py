"""Using a pool that was imported: its samples as if they had been drawn."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweetspot.component import identity, key
from sweetspot.data import IMPORTED_PROMPTS
from sweetspot.model import Model
from sweetspot.sampler import Tile
from sweetspot.stages.pool import Samples
from sweetspot.stages.run import Run
from sweetspot.store import write_tile


def imported(pool: str, prompts: pa.Table, model: Model, n_samples: int, run: Run) -> Samples:
    """The first n samples of each prompt in an imported pool; nothing is drawn.

    A prompt with fewer than n samples has rewards NaN where it has none.

    Args:
        pool: key of the pool.
        prompts: PROMPTS, all of them of the pool.
        model: the policy to be trained, for which the responses were made into token ids.

    Raises:
        ValueError: when no prompt has n samples, or the pool was imported for another model.
    """
    started = time.monotonic()
    folder = run.store.folder("samples", pool)
    facts: dict[str, Any] = json.loads((folder / "meta.json").read_text())["import"]
    if n_samples > facts["most"]:
        raise ValueError(
            f"n_samples must be <= {facts['most']}, the most that the imported pool {pool} holds for a prompt "
            f"(a pool that was imported is never sampled further), got {n_samples}"
        )
    if identity(model) != facts["model"]:
        raise ValueError(
            f"data.pool: {pool} was imported with the token ids of {facts['model_name']}, and the run's model is "
            f"{model.name} ({model.path}); import the files again with --model {model.path}"
        )
    ids = prompts["prompt_id"].to_pylist()
    write_tile(run.store.root / "prompts" / f"{key(ids)}.parquet", prompts, {})
    wanted = _holding(set(ids), folder, facts, n_samples)
    samples = Samples(pool, folder, prompts, folder / IMPORTED_PROMPTS, wanted, n_samples, model)
    run.did("imported", "tiles", 0, len(wanted), started)
    return samples


def _holding(ids: set[str], folder: Path, facts: dict[str, Any], n_samples: int) -> list[Tile]:
    """The pool's tiles that hold samples below n of any of the prompts."""
    order = pq.read_table(folder / IMPORTED_PROMPTS, columns=["prompt_id"])["prompt_id"].to_pylist()
    rows = [row for row, name in enumerate(order) if name in ids]
    groups = {row // facts["tile_prompts"] * facts["tile_prompts"] for row in rows}
    tiles = [Tile(**tile) for tile in facts["tiles"]]
    return [tile for tile in tiles if tile.first < n_samples and tile.start in groups]
