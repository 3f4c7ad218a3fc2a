"""Measure how fast each stage's work goes: a small real run in a store of its own, and what its workers told of it.

The time of a token is that between two events of a worker that has begun; what a stage took beyond its tokens is its
start.
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import sweetspot
from sweetspot.sweep.rates import Calibration, Kind, Rate, label

PROGRAM = Path(sweetspot.__file__).parent.parent / "run.py"
TILE = 16  # prompts and samples of a tile, at most
RESPONSES = 128  # that are drawn at least
MADE = {"sample": "samples", "score": "rewards", "train": "policy"}  # where the manifest tells of it
KINDS = ("sample", "score", "reference", "train")
SETTINGS = ["strategy=max_min", "eval=none", "rounds=1", "until=train", "dpo.epochs=1", "launch.devices=1"]


def calibrate(overrides: Sequence[str]) -> Calibration:
    """What a small run with these overrides takes; it prints as it goes.

    Args:
        overrides: of run.py; they win over the small sizes.

    Raises:
        ValueError: one line, when the run fails or is too small to tell.
    """
    config = compose([*SETTINGS, *overrides])
    with tempfile.TemporaryDirectory(prefix="sweetspot-calibrate-") as scratch:
        place = Path(scratch)
        own = [*SETTINGS, *sizes(config), *overrides, "logger=none", "launcher=local", f"store={place}/store"]
        began = time.monotonic()
        ended = subprocess.run([sys.executable, str(PROGRAM), *own, f"hydra.run.dir={place}/run"], check=False)
        if ended.returncode:
            raise ValueError("calibrate: the run above must end well")
        manifest: dict[str, Any] = json.loads((place / "run" / "manifest.json").read_text())
        threads = config["launch"]["threads"]
        where = f"{datetime.now().astimezone():%Y-%m-%d %H:%M} on {socket.gethostname()}"
        device = where if threads is None else f"{where}, {threads} threads"
        return Calibration(tuple(measured(manifest, place / "run", time.monotonic() - began)), device)


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The plain configuration that overrides make of conf/."""
    import hydra
    from omegaconf import OmegaConf

    with hydra.initialize_config_dir(str(PROGRAM.parent / "conf"), version_base="1.3"):
        plain: Any = OmegaConf.to_container(hydra.compose("config", list(overrides)), resolve=True)
    return plain


def sizes(config: Mapping[str, Any]) -> list[str]:
    """Overrides for two tiles at least, of the sampler's size where that is not large."""
    sampler = config["sampler"]
    prompts, samples = (min(TILE, sampler[name]) for name in ("tile_prompts", "tile_samples"))
    n = max(2, samples)
    limit = max(2 * prompts, -(-RESPONSES // n))
    return [
        *(f"sampler.tile_prompts={prompts}", f"sampler.tile_samples={samples}"),
        *(f"n_samples={n}", f"data.limit={limit}"),
    ]


def measured(manifest: Mapping[str, Any], folder: Path, wall: float) -> list[Rate]:
    """The rates that a run in a folder shows.

    Args:
        manifest: of the run.
        folder: where its workers' events lie.
        wall: seconds of the whole process.

    Raises:
        ValueError: when a stage made too little to tell.
    """
    rates = [Rate("job", "job", wall - sum(stage["seconds"] for stage in manifest["stages"]))]
    for number, stage in enumerate(manifest["stages"]):
        if stage["name"] == "prepare":
            rates.append(Rate("prepare", "prepare", stage["seconds"]))
        elif stage["name"] in KINDS and stage["made"]:
            told = (folder / "jobs" / f"{number:02d}-{stage['name']}" / "events.jsonl").read_text().splitlines()
            rates.append(_rate(stage["name"], manifest, stage["seconds"], [json.loads(line) for line in told]))
    return rates


def _rate(kind: Kind, manifest: Mapping[str, Any], stage_seconds: float, told: Sequence[Mapping[str, Any]]) -> Rate:
    store, found = Path(manifest["store"]), manifest["rounds"][0]
    mean = found["samples"]["mean_tokens"]
    artefact = store / found[MADE[kind]]["folder"] if kind != "reference" else store / "logprobs"
    sizes = {path.stem: pq.read_metadata(path).num_rows for path in artefact.rglob("*.parquet")}
    if kind == "train":
        sizes = {"policy": 2 * found["policy"]["pairs"] * manifest["config"]["dpo"]["epochs"]}
    share, seconds = span(kind, told, sizes)
    whole = sum(sizes.values()) * mean
    if not share * whole:
        raise ValueError(f"calibrate: {kind} made too little to tell its rate; take more prompts (data.limit=64)")
    per_token = seconds / (share * whole)
    start = max(0.0, stage_seconds - per_token * whole)
    size = sum(path.stat().st_size for path in artefact.rglob("*") if path.is_file())
    disk = {"bytes_each": float(size)} if kind == "train" else {"bytes_per_token": size / whole}
    return Rate(
        kind, label(kind, manifest["config"]), start, per_token, **disk, tokens=mean if kind == "sample" else None
    )


def span(kind: Kind, told: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> tuple[float, float]:
    """The share of a stage's work that lies between two events of its worker, and the seconds between them.

    Args:
        kind: sample and score: from the beginning of the second tile to the last word; reference: from the choice of
            the forward pass to the last word; train: from the end of the first step to that of the last.
        told: the worker's events.
        sizes: of sampling and scoring, the responses of each tile.
    """
    last = [event for event in told if "progress" in event][-1]
    if kind == "train":
        steps = [event for event in told if "step" in event.get("metrics", {})]
        return (len(steps) - 1) / len(steps), steps[-1]["at"] - steps[0]["at"]
    if kind == "reference":
        return 1.0, last["at"] - next(event["at"] for event in told if "forward/batching" in event.get("metrics", {}))
    begun = [event for event in told if "tile" in event][1:]
    share = sum(sizes[event["tile"]] for event in begun) / sum(sizes.values())
    return share, last["at"] - begun[0]["at"] if begun else 0.0
