"""Using a pool that was imported: its samples as if they had been drawn."""

import json
import time
from typing import Any

import numpy as np
import pyarrow as pa

from sweetspot.component import identity, key
from sweetspot.data import IMPORTED_BLOCK
from sweetspot.model import Model
from sweetspot.stages.pool import Samples
from sweetspot.stages.run import Run
from sweetspot.store import write_tile
from sweetspot.tile import Cover, cut


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
    ids: list[str] = prompts["prompt_id"].to_pylist()
    written = run.store.root / "prompts" / f"{key(ids)}.parquet"
    write_tile(written, prompts, {})
    blocks = np.full(len(ids), -(-n_samples // IMPORTED_BLOCK))
    plan = Cover(folder).plan(ids, cut(ids, blocks, len(ids), IMPORTED_BLOCK), IMPORTED_BLOCK, None)
    run.did("imported", "tiles", 0, len(plan.present), started)
    return Samples(pool, folder, prompts, written, plan.present, n_samples, model)
