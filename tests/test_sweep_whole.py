"""Whole runs that are requeued on a real SLURM, and many processes on one store."""

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweetspot.schema import REWARDS
from sweetspot.store import read_tile
from sweetspot.sweep import slurm
from sweetspot.sweep.folder import read_status
from sweetspot.sweep.submit import submit
from tests.test_sweep_slurm import ROOT, end_of, sweep_of, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("slurm")]


def overrides(folder: Path, policy: Path, reward: Path) -> list[str]:
    """A run on tiny models, 8 prompts of which 2 are held out."""
    for name, count in (("train", 6), ("held_out", 2)):
        lines = [json.dumps({"prompt": f"{name} {number}: why?"}) + "\n" for number in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return [
        *(
            "model=other",
            f"model.path={policy}",
            "sampler=transformers",
            "sampler.dtype=float32",
            "sampler.max_tokens=8",
        ),
        *(
            "data=jsonl",
            f"data.path={folder}/train.jsonl",
            f"data.held_out_path={folder}/held_out.jsonl",
            "n_samples=8",
        ),
        *("reward_model=sequence_classifier", f"reward_model.path={reward}", "reward_model.dtype=float32"),
        *("sampler.tile_prompts=1", "sampler.tile_samples=4", "strategy=max_min", "launch.threads=1", "eval=none"),
        *("dpo.epochs=2", "dpo.autocast=null", "dpo.save_every=1", "dpo.batch_size=2", "dpo.device_batch_size=2"),
    ]


def tiles(store: Path) -> dict[str, bytes]:
    kinds = ("samples", "rewards", "pairs")
    found = [path for kind in kinds for path in (store / kind).glob("*/*.parquet") if not path.name.startswith(".")]
    return {str(path.relative_to(store)): path.read_bytes() for path in found}


def test_a_run_disturbed_in_each_of_its_stages_ends_as_an_undisturbed_one(
    cluster: Path, tmp_path: Path, tiny_policy: Path, tiny_reward: Path
) -> None:
    """Requeued, cancelled, driven off a drained node, ended by SLURM's signal, and on a node that goes down."""
    assert cluster.exists()
    words = [one for one in overrides(tmp_path, tiny_policy, tiny_reward) if one != "eval=none"]
    judge = ["reward_model@eval.judge=sequence_classifier", f"eval.judge.path={tiny_reward}"]
    words += [*judge, "eval.judge.dtype=float32", "eval.judge_name=tiny", "eval.n_samples=2", "eval.kl_samples=0"]
    command = [sys.executable, "run.py", *words, f"store={tmp_path}/alone", f"hydra.run.dir={tmp_path}/run"]
    alone = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        sweep = sweep_of(ROOT / "run.py", [[*words, f"store={tmp_path}/store"]], memory_gb=3)
        sweep = submit(replace(sweep, folder=tmp_path / "sweep"), [0])
        place = sweep.path(sweep.jobs[0])

        def begun(stage: str) -> tuple[str, str]:
            """Waits until the stage has begun; the job's number and node."""
            now = until(sweep, lambda _: list(place.glob(f"jobs/*-{stage}/events.jsonl")), 240)
            assert sweep.jobs[0].last
            return str(sweep.jobs[0].last.slurm_id), next(iter(now.values())).node

        until(sweep, lambda _: any(path.suffix == ".parquet" for path in (tmp_path / "store").glob("samples/*/[!.]*")))
        slurm.call("scontrol", "requeue", begun("sample")[0])
        slurm.cancel([begun("score")[0]])
        until(sweep, lambda now: all(one.standing == "stopped" for one in now.values()))
        sweep = submit(sweep, [0])
        name, node = begun("reference")
        slurm.call("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
        slurm.call("scontrol", "requeue", name)
        name, other = begun("train")
        assert other != node
        slurm.call("scontrol", "update", f"nodename={node}", "state=resume")
        slurm.call("scancel", "--signal=USR2", name)
        node = begun("sample-policy")[1]
        slurm.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")  # it comes back by itself
        assert [one.standing for one in end_of(sweep, 300).values()] == ["done"]
        assert alone.wait(timeout=300) == 0
    finally:
        alone.kill()
    assert tiles(tmp_path / "store") == tiles(tmp_path / "alone")
    found, expected = (json.loads((at / "manifest.json").read_text()) for at in (place, tmp_path / "run"))
    for key in ("loss_first", "loss_last"):
        losses = [one["rounds"][0]["policy"][key] for one in (found, expected)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert found["evaluations"] == expected["evaluations"]
    status = read_status(place)
    assert status is not None
    assert len(sweep.jobs[0].attempts) == 2


def test_a_hundred_processes_fill_one_pool_with_each_tile_once(tmp_path: Path) -> None:
    """All are started within 10 s on 300 tiny tiles; none is lost, torn or made twice, and no process goes round."""
    pool = tmp_path / "pool"
    command = [sys.executable, "-c", FILLER, str(pool)]
    began = time.monotonic()
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(100)]
    assert time.monotonic() - began < 10
    try:
        told = [process.communicate(timeout=300)[0].split() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * 100
    assert Counter(name for words in told for name in words[1:]) == Counter(str(number) for number in range(300))
    assert sorted(path.name for path in pool.iterdir()) == sorted(f"{number}.parquet" for number in range(300))
    assert [read_tile(pool / f"{number}.parquet", REWARDS)[0]["reward"].to_pylist() for number in range(300)] == [
        [float(number)] for number in range(300)
    ]
    seconds = sorted(float(words[0]) for words in told)
    print(f"100 processes: {seconds[0]:.1f} to {seconds[-1]:.1f} s of filling, median {seconds[50]:.1f} s")


FILLER = """
import sys, time
from pathlib import Path
from sweetspot.fill import absent, fill
from tests.test_fill import place, todos

began, made, pool = time.monotonic(), [], Path(sys.argv[1])

def make(_, todo, told):
    time.sleep(0.02)
    told.add(work=1, responses=2)
    return lambda: place(todo)

def emit(event):
    if "made" in event:
        made.append(event["made"])

fill(lambda: absent(todos(pool, 300)), lambda: None, make, emit, 60, "tokens/s")
print(time.monotonic() - began, *made)
"""


def test_twelve_runs_at_once_sample_and_score_each_tile_once(
    tmp_path: Path, tiny_policy: Path, tiny_reward: Path
) -> None:
    """12 tiles of samples and 12 of rewards; as many runs as a small machine's memory takes."""
    count = 12
    words = [*overrides(tmp_path, tiny_policy, tiny_reward), "until=score", f"store={tmp_path}/store"]
    processes: list[subprocess.Popen[bytes]] = []
    for number in range(count):
        with (tmp_path / f"{number}.log").open("wb") as log:
            command = [sys.executable, "run.py", *words, f"hydra.run.dir={tmp_path}/run-{number}"]
            processes.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * count, [(tmp_path / f"{number}.log").read_text()[-300:] for number in range(count)]
    manifests: list[dict[str, Any]] = [
        json.loads((tmp_path / f"run-{number}" / "manifest.json").read_text()) for number in range(count)
    ]
    made = Counter({"sample": 0, "score": 0})
    for manifest in manifests:
        made.update({stage["name"]: stage["made"] for stage in manifest["stages"] if stage["name"] in made})
    assert made == {"sample": 12, "score": 12}
    assert len(tiles(tmp_path / "store")) == 24
    assert len({json.dumps(manifest["rounds"][0]["rewards"], sort_keys=True) for manifest in manifests}) == 1


def test_two_nodes_with_two_ranks_each_train_as_one_process(
    cluster: Path, tmp_path: Path, tiny_policy: Path, tiny_reward: Path
) -> None:
    """By ZeRO-2 through launcher=slurm, the pool's jobs on a node each; the status is the first node's."""
    assert cluster.exists()
    pytest.importorskip("deepspeed")
    words = [*overrides(tmp_path, tiny_policy, tiny_reward), "until=train", "dpo.batch_size=4", "dpo.save_every=100"]
    command = [sys.executable, "run.py", *words, f"store={tmp_path}/alone", f"hydra.run.dir={tmp_path}/run"]
    alone = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        asked = [
            "launcher=slurm",
            "launcher.cpus=2",
            "launcher.memory_gb=6",
            "launcher.pool_jobs=1",
            "launcher.pool.memory_gb=3",
        ]
        spread = ["deepspeed=zero2", "launch.nodes=2", "launch.devices=2", "deepspeed.bucket_size=4096"]
        where = [f"store={tmp_path}/store", f"hydra.sweep.dir={tmp_path}/sweep"]
        ended = subprocess.run(
            [sys.executable, "run.py", *words, *asked, *spread, *where],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        logs = "".join(path.read_text()[-2000:] for path in (tmp_path / "sweep").glob("logs/*.out"))
        assert ended.returncode == 0, ended.stdout + ended.stderr + logs
        assert alone.wait(timeout=300) == 0
    finally:
        alone.kill()
    (manifest,) = (tmp_path / "sweep").glob("*/manifest.json")
    assert losses(tmp_path / "store") == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)
    ranks = {path.name for path in (tmp_path / "sweep").rglob("*train-rank-*")}
    assert {name[-6:] for name in ranks} == {"rank-0", "rank-1", "rank-2", "rank-3"}
    assert read_status(manifest.parent).state == "done"  # pyright: ignore[reportOptionalMemberAccess]


def losses(store: Path) -> list[float]:
    (curve,) = store.glob("policies/*/history.jsonl")
    return [json.loads(line)["loss"] for line in curve.read_text().splitlines()]
