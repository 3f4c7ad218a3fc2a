"""Measure how fast each stage's work goes: a small real run in a store of its own, and what its workers told of it.

The time of a token is that between two events of a worker that has begun; what a stage took beyond its tokens is its
start.
"""

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq

import sweetspot
from sweetspot.component import refusal
from sweetspot.sweep.rates import Calibration, Kind, Rate, label

PROGRAM = Path(sweetspot.__file__).parent.parent / "run.py"
TILE = 16  # prompts and samples of a tile, at most
RESPONSES = 128  # that are drawn at least
MADE = {"sample": "samples", "score": "rewards", "train": "policy"}  # where the manifest tells of it
KINDS = ("sample", "score", "reference", "train")
SETTINGS = ["strategy=max_min", "eval=none", "rounds=1", "dpo.epochs=1", "launch.devices=1", "logger=none"]
# of a sweep's overrides, those that say nothing about the speed of its parts, or that are set here
OTHERS = re.compile(r"[+~]*((strategy|eval|also|launcher|logger|hydra|store|n_samples)\b|[\w/]+@(eval|also)\b)")


def calibrate(overrides: Sequence[str], prompts: int | None, at_once: int) -> Calibration:
    """What a small run with these overrides takes; it prints as it goes, unless there are several.

    Args:
        overrides: those of the sweep, as they are; strategy, n_samples and evaluation are set here.
        prompts: to sample for; None = as many as two tiles or RESPONSES take.
        at_once: such runs that are made at once, where jobs of the sweep will share a machine's cores.

    Raises:
        ValueError: one line, when a run fails or is too small to tell.
    """
    if at_once < 1:
        raise ValueError(f"calibrate: --at-once must be >= 1, got {at_once}")
    given = ["until=train", *(one for one in overrides if not OTHERS.match(one)), *SETTINGS]
    config = compose(given)
    words = [*given, *sizes(config, prompts), "launcher=local"]
    with tempfile.TemporaryDirectory(prefix="sweetspot-calibrate-") as scratch:
        places = [Path(scratch) / str(number) for number in range(at_once)]
        with ThreadPoolExecutor(at_once) as pool:
            found = list(pool.map(lambda place: _run(words, place, shown=at_once == 1), places))
    when = f"{datetime.now().astimezone():%Y-%m-%d %H:%M} on {socket.gethostname()}, {at_once} at once"
    return Calibration(tuple(mean(one) for one in zip(*found, strict=True)), when)


def _run(words: Sequence[str], place: Path, shown: bool) -> list[Rate]:
    command = [sys.executable, str(PROGRAM), *words, f"store={place}/store", f"hydra.run.dir={place}/run"]
    began = time.monotonic()
    ended = subprocess.run(command, check=False, capture_output=not shown, text=True)
    if ended.returncode:
        line = ended.stderr.strip().splitlines()[-1] if ended.stderr else "see above"
        raise ValueError(f"calibrate: the run must end well: {line.removeprefix('error: ')}")
    manifest: dict[str, Any] = json.loads((place / "run" / "manifest.json").read_text())
    return measured(manifest, place / "run", time.monotonic() - began)


def mean(several: Sequence[Rate]) -> Rate:
    """The mean of rates of the same thing that were measured at once."""
    return replace(
        several[0],
        start=fmean(rate.start for rate in several),
        per_token=fmean(rate.per_token for rate in several),
    )


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The plain configuration that overrides make of conf/.

    Raises:
        ValueError: one line, where they make none.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        with hydra.initialize_config_dir(str(PROGRAM.parent / "conf"), version_base="1.3"):
            plain: Any = OmegaConf.to_container(hydra.compose("config", list(overrides)), resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"calibrate: {refusal(error)}") from None
    return plain


def sizes(config: Mapping[str, Any], prompts: int | None) -> list[str]:
    """Overrides for two tiles at least, of the sampler's size where that is not large."""
    sampler = config["sampler"]
    width, samples = (min(TILE, sampler[name]) for name in ("tile_prompts", "tile_samples"))
    n = max(2, samples)
    limit = prompts or max(2 * width, -(-RESPONSES // n))
    return [
        *(f"sampler.tile_prompts={width}", f"sampler.tile_samples={samples}"),
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
        raise ValueError(f"calibrate: {kind} made too little to tell its rate; take more with --prompts")
    per_token = min(seconds / share, stage_seconds) / whole  # a part that was slowed down cannot stand for the whole
    start = stage_seconds - per_token * whole
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
