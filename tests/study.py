"""Sweeps of experiments at size=tiny, in this process: a worker is a call of its `main`, which saves the seconds that a
process takes to import torch. Workers in processes of their own are tested in test_run."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

import run
from sweetspot.sweep import folder as folders
from sweetspot.sweep.folder import Job, Sweep
from sweetspot.sweep.points import point_name
from tests import tiny

ROOT = Path(__file__).parent.parent


def workers_here(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have workers run in this process, and relative paths start in the folder, where the tiny models are written."""

    def run_workers(
        module: str,
        job: Mapping[str, Any],
        place: Path,
        _environments: Sequence[Mapping[str, str]],
        on_metrics: Callable[[dict[str, Any]], None],
    ) -> int:
        made: set[str] = set()

        def emit(event: dict[str, Any]) -> None:
            made.update([event["made"]] if "made" in event else [])
            if "metrics" in event:
                on_metrics(event["metrics"])

        place.mkdir(parents=True, exist_ok=True)
        importlib.import_module(module).main(dict(job), emit)
        return len(made)

    patch.setattr("sweetspot.launch.run_workers", run_workers)
    patch.chdir(folder)
    tiny.save_all(folder / "tiny")


def sweep(name: str, points: Sequence[Sequence[str]]) -> Path:
    """The folder of a sweep that has been run: its jobs.json and the manifests of its points."""
    jobs = [Job(number, point_name(point), tuple(point)) for number, point in enumerate(points)]
    made = Sweep(
        Path("runs", name), name, folders.now(), str(ROOT / "run.py"), str(Path.cwd()), {}, "simple", None, tuple(jobs)
    )
    folders.write(made)
    for job in jobs:
        run_point(job.overrides, made.path(job))
    return made.folder


def run_point(overrides: Sequence[str], folder: Path) -> Path:
    """The manifest of a run."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(composed)
    with open_dict(composed):
        del composed["hydra"]
    plain: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    folder.mkdir(parents=True, exist_ok=True)
    return run.pipeline(run.settings_of(plain), plain, folder, " ".join(overrides))


def swept(experiment: str, size: str = "tiny") -> dict[str, list[str]]:
    """The values that an experiment sweeps at a size, by key."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", [f"experiment={experiment}", f"size={size}"], return_hydra_config=True)
    params = OmegaConf.to_container(composed.hydra.sweeper.params or OmegaConf.create({}))
    assert isinstance(params, dict)
    return {str(key): str(value).replace(" ", "").strip(",").split(",") for key, value in params.items()}


def shipped(experiment: str) -> list[list[str]]:
    """The points of an experiment at size=tiny, as its command sweeps them."""
    axes = [[f"{key}={value}" for value in values] for key, values in swept(experiment).items()]
    return [[f"experiment={experiment}", "size=tiny", *point] for point in product(*axes)]
