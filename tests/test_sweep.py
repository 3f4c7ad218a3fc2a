"""Sweeps without a cluster: names, axes, the folder, what SLURM's words mean, and what a batch script asks for."""

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweetspot.component import build
from sweetspot.sweep import folder as folders
from sweetspot.sweep import job as jobs
from sweetspot.sweep import slurm, submit
from sweetspot.sweep.check import check_seen, file_system, gpus_of
from sweetspot.sweep.folder import Attempt, Job, Status, Sweep
from sweetspot.sweep.launcher import Slurm
from sweetspot.sweep.outcome import outcomes
from sweetspot.sweep.points import axes, check_axes, own, point_name, pool_points, sweep_name

LAUNCHER: dict[str, Any] = {
    "_target_": "sweetspot.sweep.launcher.Slurm",
    **dict.fromkeys(["partition", "account", "qos", "constraint", "reservation", "exclude", "dependency"]),
    **dict.fromkeys(["container", "python", "shared", "memory_gb"]),
    **{"plan": "simple", "dry_run": False, "wait": True, "nodes": 1, "gpus": 0, "cpus": 2, "minutes": 60},
    "pool": {"_target_": "sweetspot.sweep.launcher.Shape", "gpus": 1, "cpus": 4, "memory_gb": 1.5, "minutes": 30},
    **{"pool_jobs": 2, "array_parallelism": 3, "signal_seconds": 120, "requeues": 1, "setup": ["module load cuda"]},
    "more": {"mail-type": "END"},
}


def launcher(**changes: Any) -> Slurm:
    return build({**LAUNCHER, **changes}, "launcher")


def sweep_of(folder: Path, *attempts: Attempt) -> Sweep:
    program = folder / "run.py"
    of = {"_target_": "sweetspot.sweep.launcher.SubmititLocal", "dry_run": False, "wait": True}
    job = Job(0, "n_samples=5", ("n_samples=5",), "run", attempts)
    return Sweep(folder, "python run.py -m", "2026-01-01", str(program), str(folder), of, "simple", None, (job,))


def test_a_point_is_named_by_what_varies_and_by_a_hash_where_a_file_name_cannot_hold_it() -> None:
    assert point_name(["n_samples=5", "strategy=max_min"]) == "n_samples=5,strategy=max_min"
    odd = [point_name([f"model.path=a{sign}b"]) for sign in "/ '\\"]
    assert len(set(odd)) == 4
    assert all("/" not in name and name.startswith("model.path=a-b-") for name in odd)
    long = [point_name([f"x={'y' * 400}{last}"]) for last in "ab"]
    assert len(set(long)) == 2
    assert max(len(name) for name in long) <= 130


def test_a_sweep_of_the_same_axes_has_the_same_name_whatever_its_values_and_their_order() -> None:
    one = sweep_name(["n_samples=5,20", "strategy=max_min,scalable", "seed=1", "launcher=slurm"])
    assert one == sweep_name(["strategy=random,max_min", "n_samples=50,64", "seed=1", "launcher.partition=x"])
    assert one.startswith("n_samples+strategy-")
    assert one != sweep_name(["n_samples=5,20", "strategy=max_min,scalable", "seed=2"])
    assert one != sweep_name(["n_samples=5,20", "strategy=max_min", "seed=1"])


def test_axes_are_the_overrides_that_sweep_and_neither_hydra_nor_launcher_are_part_of_a_point() -> None:
    assert axes(["n_samples=5,20", "seed=1", "strategy=choice(max_min,random)", "rounds=range(1,3)"]) == [
        "n_samples",
        "strategy",
        "rounds",
    ]
    assert own(["hydra.verbose=true", "launcher=slurm", "+launcher.more.nice=1", "launch.threads=1", "seed=1"]) == [
        "launch.threads=1",
        "seed=1",
    ]


def test_an_axis_that_changes_nothing_of_a_run_is_refused() -> None:
    def compose(point: list[str] | tuple[str, ...]) -> dict[str, Any]:
        values = dict(one.split("=") for one in point)
        return {"n_samples": int(values["n_samples"]), "store": values["store"]}

    good = [["n_samples=5", "store=a"], ["n_samples=20", "store=a"]]
    check_axes(good, ["n_samples"], compose)
    bad = [["n_samples=5", "store=a"], ["n_samples=5", "store=b"]]
    with pytest.raises(ValueError, match=r"^store: .*store=a and store=b make the same"):
        check_axes(bad, ["n_samples", "store"], compose)


def test_a_sweep_is_read_as_it_was_written_and_a_folder_without_one_is_named(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, Attempt("12_4", "logs/12_4_0_log.out", "2026-01-01T00:00:00+00:00"))
    folders.write(sweep)
    assert folders.read(tmp_path) == sweep
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.json"]
    with pytest.raises(ValueError, match=f"must have a jobs.json, got {tmp_path}/nowhere"):
        folders.read(tmp_path / "nowhere")


def test_a_job_is_a_command_that_can_be_typed(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    assert jobs.command(sweep, sweep.jobs[0]) == [
        sys.executable,
        f"{tmp_path}/run.py",
        "n_samples=5",
        "launcher=local",
        f"hydra.run.dir='{tmp_path}/n_samples=5'",
    ]


def test_what_a_job_of_this_machine_says_is_held_against_its_process(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, Attempt(None, None, "2026-01-02"))
    path, here = tmp_path / "n_samples=5", socket.gethostname()
    running = Status("running", None, None, 0, here, os.getpid(), None, "2026-01-03", None)

    def standing(status: Status) -> tuple[str, str]:
        folders.write_status(path, status)
        found = outcomes(sweep)[0]
        return found.standing, found.reason

    assert outcomes(sweep_of(tmp_path))[0].standing == "not submitted"
    assert outcomes(sweep)[0].standing == "waiting"
    assert standing(running) == ("running", "")
    assert standing(replace(running, pid=2**22 + 1)) == ("failed", "was killed")
    assert standing(replace(running, started="2026-01-01")) == ("waiting", "")  # of an attempt before
    assert standing(replace(running, state="failed", reason="boom")) == ("failed", "boom")
    assert standing(replace(running, state="done")) == ("done", "")


def test_squeue_and_sacct_are_read() -> None:
    assert slurm._queued("12_4|PENDING|(Resources)||1:00:00") == (
        "12_4",
        slurm.Known("PENDING", "Resources", "", ""),
    )
    assert slurm._queued("7|RUNNING|node1|node1|59:01")[1] == slurm.Known("RUNNING", "", "node1", "59:01")
    ended = slurm._ended("12_5|CANCELLED by 0|0:15|node2")[1]
    assert ended == slurm.Known("CANCELLED", "0:15", "node2", "")
    assert (ended.lives, slurm._queued("7|RUNNING|node1|node1|1")[1].lives) == (False, True)
    assert slurm._ended("3|FAILED|1:0|None assigned")[1].node == ""


@pytest.mark.parametrize(
    ("gres", "count"), [("gpu:2", 2), ("gpu:a100:4(S:0-1),shard:8", 4), ("(null)", 0), ("gpu:a:2,gpu:b:3", 5)]
)
def test_the_gpus_of_a_node_are_counted(gres: str, count: int) -> None:
    assert gpus_of(gres) == count


def test_a_folder_that_only_this_machine_sees_is_refused_where_there_are_other_nodes(tmp_path: Path) -> None:
    mounts = "/dev/sda / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\ntmpfs /home/a tmpfs rw 0 0\n"
    assert file_system(Path("/home/b/store"), mounts) == "nfs4"
    assert file_system(Path("/home/a/store"), mounts) == "tmpfs"
    assert file_system(Path("/homes"), mounts) == "ext4"
    check_seen("store", tmp_path, [socket.gethostname()], None)
    check_seen("store", tmp_path / "a", ["far"], [str(tmp_path)])
    with pytest.raises(ValueError, match=r"store must lie under one of launcher\.shared"):
        check_seen("store", tmp_path.parent, ["far"], [str(tmp_path)])


def test_a_batch_script_asks_for_what_the_launcher_says() -> None:
    wanted = submit.parameters(
        launcher(gpus=8, memory_gb=64.0, partition="a,b", dependency="afterok:7", reservation="mine"),
        "run",
        ["12"],
        "name",
    )
    assert {name: wanted[name] for name in ("gpus_per_node", "mem", "time", "cpus_per_task", "partition")} == {
        "gpus_per_node": 8,
        "mem": "65536MB",
        "time": 60,
        "cpus_per_task": 2,
        "partition": "a,b",
    }
    assert wanted["dependency"] == "afterok:12,afterok:7"
    assert wanted["additional_parameters"] == {
        "requeue": True,
        "kill-on-invalid-dep": "yes",
        "reservation": "mine",
        "mail-type": "END",
    }
    assert "account" not in wanted
    pool = submit.parameters(launcher(), "pool", [], "name")
    assert (pool["gpus_per_node"], pool["mem"], pool["time"], "dependency" in pool) == (1, "1536MB", 30, False)


def test_python_on_a_node_may_lie_in_a_container() -> None:
    assert submit.python_command(launcher()) == sys.executable
    inside = launcher(container="apptainer exec --nv image.sif", python="python3")
    assert submit.python_command(inside) == "apptainer exec --nv image.sif python3"


def test_sbatch_s_refusal_is_one_line() -> None:
    text = "Traceback\n  File x\nsbatch: error: invalid partition specified: no\nsbatch: error: Batch job failed\n"
    assert submit.told_by(text) == "sbatch: invalid partition specified: no; Batch job failed"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"signal_seconds": 1800}, "signal_seconds must be < the time of a job"),
        ({"dependency": "after that"}, "dependency must be as sbatch takes it"),
        ({"gpus": -1}, "launcher.gpus"),
        ({"partion": "a"}, "launcher.partion: unknown key"),
    ],
)
def test_a_launcher_that_cannot_be_is_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        launcher(**changes)
    assert "\n" not in str(refused.value)


def test_points_that_differ_in_strategy_and_n_share_a_pool_of_the_largest_n_and_a_lonely_point_has_none() -> None:
    def compose(point: list[str] | tuple[str, ...]) -> dict[str, Any]:
        values = dict(one.split("=") for one in point)
        same = {"data": 1, "sampler": 1, "reward_model": 1, "seed": 0, "strategy": values["strategy"]}
        return {**same, "model": values.get("model", "a"), "n_samples": int(values["n_samples"])}

    points = [[f"n_samples={n}", f"strategy={name}", "until=train"] for n in (5, 50, 20) for name in ("x", "y")]
    points.append(["n_samples=9", "strategy=x", "model=b"])
    assert pool_points(points, compose) == [("n_samples=50", "strategy=x", "until=score")]
