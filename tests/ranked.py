"""Training a tiny model on several ranks, for tests."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweetspot import ranks
from sweetspot.component import to_config
from sweetspot.dpo import DPO, DeepSpeed
from sweetspot.model import Model
from tests import tiny

ROOT = Path(__file__).parent.parent
END = 2


def rows(count: int) -> list[dict[str, Any]]:
    """Pairs of various lengths, with references as the tiny model would hardly give them."""
    return [
        {
            "prompt_id": f"p{index:02d}",
            "pair_index": 0,
            "messages": [{"role": "user", "content": "a little rain" * (1 + index % 3)}],
            "chosen_ids": [10 + index] * (3 + index % 4) + [END],
            "rejected_ids": [40 + index] * (8 - index % 5) + [END],
            "reference_chosen": -30.0 - index,
            "reference_rejected": -50.0 + index,
        }
        for index in range(count)
    ]


def job(folder: Path, model: Model, dpo: DPO, deepspeed: DeepSpeed, count: int) -> dict[str, Any]:
    """A training job on `count` pairs into folder/policy."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows(count)), folder / "pairs.parquet")
    return {
        "model": to_config(model),
        "dpo": to_config(dpo),
        "deepspeed": to_config(deepspeed),
        "probe": None,
        "pairs": str(folder / "pairs.parquet"),
        "output": str(folder / "policy"),
        "card": {"base": "tiny"},
    }


def train(
    folder: Path,
    model: Model,
    dpo: DPO,
    deepspeed: DeepSpeed,
    count: int = 10,
    on_metrics: Callable[[dict[str, Any]], None] = lambda _: None,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Train on `count` pairs, on two ranks unless `changes` of launch say otherwise; returns the curve."""
    run(folder, "sweetspot.trainer", job(folder, model, dpo, deepspeed, count), on_metrics, **changes)
    return history(folder)


def run(
    folder: Path,
    module: str,
    wanted: dict[str, Any],
    on_metrics: Callable[[dict[str, Any]], None] = lambda _: None,
    **changes: Any,
) -> None:
    """Run a training job on two ranks unless `changes` of launch say otherwise."""
    launch = tiny.launch(**{"devices": 2, **changes})
    more = ranks.deepspeed_environment() if wanted["deepspeed"]["stage"] else {}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environments = [{**one, **more, "PYTHONPATH": path} for one in ranks.environments(launch)]
    ranks.run(module, wanted, folder / "train", environments, on_metrics, launch.timeout_seconds)


def history(folder: Path) -> list[dict[str, Any]]:
    """The curve of the policy in folder/policy."""
    return [json.loads(line) for line in (folder / "policy" / "history.jsonl").read_text().splitlines()]
