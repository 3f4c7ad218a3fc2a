"""Sweeps on a real SLURM, started on this machine for the tests by slurm/local_cluster.sh."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from sweetspot.sweep import folder as folders
from sweetspot.sweep.folder import Sweep
from sweetspot.sweep.outcome import Outcome, outcomes

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "slurm" / "local_cluster.sh"
NEEDED = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def ended(sweep: Sweep, seconds: float) -> dict[int, Outcome]:
    """How the jobs stand when none waits or runs any more."""
    end = time.monotonic() + seconds
    while any(one.lives for one in outcomes(sweep).values()):
        assert time.monotonic() < end, outcomes(sweep)
        time.sleep(1)
    return outcomes(sweep)


def standings(found: Mapping[int, Outcome]) -> list[str]:
    return [found[number].standing for number in sorted(found)]


def test_the_cluster_is_idempotent_and_says_what_runs(cluster: Path) -> None:
    before = {path.name: path.read_text() for path in (cluster / "run").glob("*.pid")}
    subprocess.run([CLUSTER, "up", cluster], check=True, timeout=180)
    assert {path.name: path.read_text() for path in (cluster / "run").glob("*.pid")} == before
    told = subprocess.run([CLUSTER, "status", cluster], capture_output=True, text=True, check=True, timeout=60).stdout
    assert told.count(" runs (process") == 6
    assert told.count("gpu:2") == 4  # two nodes in two partitions
    nothing = subprocess.run([CLUSTER, "status", f"{cluster}x"], capture_output=True, timeout=60, check=False)
    assert nothing.returncode == 1


def run(tmp_path: Path, *overrides: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    place = [f"hydra.sweep.dir={tmp_path}/sweep", f"store={tmp_path}/store"]
    return subprocess.run(
        [sys.executable, "run.py", *overrides, *place],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_without_sbatch_the_launcher_says_so(tmp_path: Path) -> None:
    refused = run(tmp_path, "-m", "launcher=slurm", "n_samples=5,6", PATH="/nowhere")
    assert refused.stderr.startswith("error: launcher=slurm must find sbatch on PATH")
    assert not (tmp_path / "sweep" / "jobs.json").exists()


def test_a_sweep_outlives_its_launcher_and_shares_one_pool(
    tmp_path: Path, tiny_policy: Path, tiny_reward: Path
) -> None:
    """Two prompts of 2 blocks of 5: 10 samples each, in 2 tiles; both points select from them."""
    rows = "".join(json.dumps({"prompt": f"Tell me about {thing}."}) + "\n" for thing in ("cats", "rain"))
    (tmp_path / "train.jsonl").write_text(rows)
    parts = ["model=other", f"model.path={tiny_policy}", "data=jsonl", f"data.path={tmp_path}/train.jsonl"]
    sampler = ["sampler=transformers", "sampler.dtype=float32", "sampler.max_tokens=8", "sampler.tile_prompts=2"]
    reward = ["reward_model=sequence_classifier", f"reward_model.path={tiny_reward}", "reward_model.dtype=float32"]
    rest = [
        "sampler.tile_samples=5",
        "until=select",
        "eval=none",
        "launch.threads=1",
        "launcher.wait=false",
        "launcher.pool_jobs=2",
    ]
    began = time.monotonic()
    asked = ["-m", "launcher=slurm", "n_samples=5,10", "strategy=max_min,scalable", *parts, *sampler, *reward, *rest]
    left = run(tmp_path, *asked)
    assert left.returncode == 0, left.stderr
    assert time.monotonic() - began < 60
    sweep = folders.read(tmp_path / "sweep")
    assert [job.name for job in sweep.jobs] == [
        "pool-0",
        "pool-1",
        "n_samples=5,strategy=max_min",
        "n_samples=5,strategy=scalable",
        "n_samples=10,strategy=max_min",
        "n_samples=10,strategy=scalable",
    ]
    assert standings(ended(sweep, 400)) == ["done"] * 6
    manifests = [json.loads((sweep.path(job) / "manifest.json").read_text()) for job in sweep.jobs]
    made = {
        name: sum(stage["made"] for one in manifests for stage in one["stages"] if stage["name"] == name)
        for name in ("sample", "score", "select")
    }
    assert made == {"sample": 2, "score": 2, "select": 4}
    again = run(tmp_path, *asked)
    assert "0 to submit" in again.stdout
    assert folders.read(tmp_path / "sweep").jobs == sweep.jobs
    for command, words in (
        ("status", "done"),
        ("collect", "sweep.md"),
        ("resubmit", "0 of 6 jobs"),
        ("cancel", "0 of 6"),
    ):
        told = subprocess.run(
            [sys.executable, "-m", "sweetspot.sweep", command, sweep.folder],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert words in told.stdout
    assert (sweep.folder / "sweep.md").read_text().count("| done |") == 4
