"""Sweeps on a real SLURM, the one of slurm/local_cluster.sh: what happens to jobs that fail, are killed or requeued."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sweetspot.sweep import folder as folders
from sweetspot.sweep import slurm
from sweetspot.sweep.folder import Job, Sweep
from sweetspot.sweep.outcome import Outcome, outcomes
from sweetspot.sweep.points import point_name
from sweetspot.sweep.submit import submit

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("slurm")]

# what a job runs in place of run.py: it does as its first override says
PROGRAM = """
import pathlib, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(words["hydra.run.dir"].strip("'"))
turns = len((folder / "turns").read_text()) + 1 if (folder / "turns").exists() else 1
(folder / "turns").write_text("." * turns)
match words["do"]:
    case "raise":
        raise ValueError("a planned fault")
    case "twice":
        time.sleep(300 if turns == 1 else 0)
    case "wait":
        while not pathlib.Path(words["for"]).exists():
            time.sleep(0.1)
(folder / "manifest.json").write_text("{}")
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path / "program.py"


def launcher(**changes: Any) -> dict[str, Any]:
    shape: dict[str, Any] = {"gpus": 0, "cpus": 1, "memory_gb": 0.6, "minutes": 5}
    none = dict.fromkeys(
        ["partition", "account", "qos", "constraint", "reservation", "exclude", "dependency", "container", "python"]
    )
    rest: dict[str, Any] = {"plan": "simple", "dry_run": False, "wait": True, "pool_jobs": 1, "setup": [], "nodes": 1}
    rest |= {"calibration": "none", "price_per_device_hour": None}
    limits: dict[str, Any] = {"array_parallelism": 8, "signal_seconds": 30, "requeues": 3, "shared": None, "more": {}}
    pool = {"_target_": "sweetspot.sweep.launcher.Shape", **shape}
    return {"_target_": "sweetspot.sweep.launcher.Slurm", **none, **rest, **limits, **shape, "pool": pool, **changes}


def sweep_of(program: Path, points: list[list[str]], **changes: Any) -> Sweep:
    jobs = tuple(Job(number, point_name([point[0]]), tuple(point)) for number, point in enumerate(points))
    place = program.parent / "sweep"
    return Sweep(place, "", "", str(program), str(ROOT), launcher(**changes), "simple", None, jobs)


def end_of(sweep: Sweep, seconds: float = 240) -> dict[str, Outcome]:
    """How each job stands once none lives, by name."""
    return until(sweep, lambda now: not any(one.lives for one in now.values()), seconds)


def until(sweep: Sweep, holds: Any, seconds: float = 120) -> dict[str, Outcome]:
    end = time.monotonic() + seconds
    while True:
        now = {job.name: one for job, one in zip(sweep.jobs, outcomes(sweep).values(), strict=True)}
        if holds(now):
            return now
        assert time.monotonic() < end, (
            now,
            [(path, path.read_text()[-500:]) for path in sweep.folder.glob("logs/*.out")],
        )
        time.sleep(1)


def test_a_job_at_its_time_limit_requeues_itself_and_goes_on(cluster: Path, program: Path) -> None:
    assert cluster.exists()
    sweep = submit(sweep_of(program, [["do=twice"]], minutes=1, requeues=1, signal_seconds=45), [0])
    assert end_of(sweep)["do=twice"].standing == "done"
    assert (sweep.path(sweep.jobs[0]) / "turns").read_text() == ".."


def test_a_cancelled_job_stays_cancelled_and_is_done_when_submitted_again(cluster: Path, program: Path) -> None:
    assert cluster.exists()
    flag = program.parent / "flag"
    sweep = submit(sweep_of(program, [["do=wait", f"for={flag}"]]), [0])
    until(sweep, lambda now: now["do=wait"].standing == "running" and (sweep.folder / "do=wait" / "turns").exists())
    assert sweep.jobs[0].last
    slurm.cancel([str(sweep.jobs[0].last.slurm_id)])
    assert end_of(sweep)["do=wait"] == Outcome("stopped", "was cancelled", "node1", "")
    flag.touch()
    again = submit(folders.read(sweep.folder), [0])
    assert len(again.jobs[0].attempts) == 2
    assert end_of(again)["do=wait"].standing == "done"


def test_a_requeued_job_goes_on_under_its_number(cluster: Path, program: Path) -> None:
    assert cluster.exists()
    flag = program.parent / "flag"
    sweep = submit(sweep_of(program, [["do=wait", f"for={flag}"]]), [0])
    turns = sweep.folder / "do=wait" / "turns"
    until(sweep, lambda _: turns.exists())
    assert sweep.jobs[0].last
    slurm.call("scontrol", "requeue", str(sweep.jobs[0].last.slurm_id))
    until(sweep, lambda _: turns.read_text() == "..")
    flag.touch()
    assert end_of(sweep)["do=wait"].standing == "done"


def test_a_job_goes_on_after_its_node_went_down_and_after_a_preemption(cluster: Path, program: Path) -> None:
    assert cluster.exists()
    flag = program.parent / "flag"
    sweep = sweep_of(program, [["do=wait", f"for={flag}"]], partition="preemptible", cpus=4)
    sweep = submit(sweep, [0])
    turns = sweep.folder / "do=wait" / "turns"
    node = until(sweep, lambda now: turns.exists() and now["do=wait"].standing == "running")["do=wait"].node
    slurm.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")  # it comes back by itself
    until(sweep, lambda _: turns.read_text() == "..")
    urgent = ["--nodes=2", "--cpus-per-task=4", "--mem=100", "--output=/dev/null", "--wrap=sleep 3"]
    slurm.call("sbatch", "--partition=main", *urgent)
    until(sweep, lambda _: turns.read_text() == "...")
    flag.touch()
    assert end_of(sweep)["do=wait"].standing == "done"


def test_a_node_that_fails_ends_the_job_on_both_and_is_named(cluster: Path, program: Path) -> None:
    assert cluster.exists()
    program.write_text(
        "import os, sys, time\nif os.environ['SLURM_NODEID'] == '1':\n    sys.exit('no room')\ntime.sleep(300)"
    )
    sweep = submit(sweep_of(program, [["do=fail"]], nodes=2), [0])
    found = end_of(sweep)["do=fail"]
    assert (found.standing, found.reason) == ("failed", "node 1: no room")


TWO_NODES = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[-1].split("=", 1)[1].strip("'"))
if os.environ["SLURM_NODEID"] == "1":
    time.sleep(300)  # ended when the first node has
turns = len((folder / "turns").read_text()) + 1 if (folder / "turns").exists() else 1
(folder / "turns").write_text("." * turns)
time.sleep(300 if turns == 1 else 0)
"""


def test_a_job_on_two_nodes_that_slurm_signals_requeues_itself_and_they_leave_together(
    cluster: Path, program: Path
) -> None:
    assert cluster.exists()
    program.write_text(TWO_NODES)
    sweep = submit(sweep_of(program, [["do=twice"]], nodes=2), [0])
    turns = sweep.folder / "do=twice" / "turns"
    until(sweep, lambda _: turns.exists())
    assert sweep.jobs[0].last
    slurm.call("scancel", "--signal=USR2", str(sweep.jobs[0].last.slurm_id))
    assert end_of(sweep)["do=twice"].standing == "done"
    assert turns.read_text() == ".."


def test_the_pool_comes_first_and_a_failed_pool_keeps_the_runs_from_starting(cluster: Path, program: Path) -> None:
    assert cluster.exists()
    for does, standing in (("ok", "done"), ("raise", "stopped")):
        sweep = sweep_of(program, [["do=fine"], [f"do={does}"]])
        jobs = (sweep.jobs[0], Job(1, "pool-0", sweep.jobs[1].overrides, "pool"))
        sweep = submit(Sweep(**{**vars(sweep), "jobs": jobs, "folder": program.parent / does}), [0, 1])
        found = end_of(sweep)
        assert found["do=fine"].standing == standing
        if does == "ok":
            pool, run = (folders.read_status(sweep.path(job)) for job in reversed(sweep.jobs))
            assert pool and run and pool.ended and pool.ended <= run.started


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["launcher.partition=nowhere"], "launcher.partition must be one of main, preemptible, got nowhere"),
        (["launcher.gpus=3"], "launcher.gpus must be <= 2, the most that a node of partition main has, got 3"),
        (["launcher.minutes=1441"], "launcher.minutes must be <= 1440, the time limit of partition main, got 1441"),
        (["launcher.memory_gb=900"], "SLURM refuses such a job"),
        (["launcher.shared=[/somewhere]"], "store must lie under one of launcher.shared (/somewhere), got"),
        (["strategy=glob(nothing*)"], "a sweep must have at least one point"),
        (["launcher.cpus=1,2"], "launcher.cpus: an axis of a sweep must change what a run makes"),
        (["strategy=scalable", "n_samples=3,4"], "n_samples must be >= 5 for the strategy's positions, got 3"),
        (["launch.threads=1,2"], "launch.threads: an axis of a sweep must change what a run makes"),
    ],
)
def test_what_the_cluster_would_refuse_is_one_line_and_nothing_is_submitted(
    cluster: Path, tmp_path: Path, overrides: list[str], words: str
) -> None:
    assert cluster.exists()
    before = slurm.call("squeue", "--me", "--noheader")
    size = [] if any(one.startswith("n_samples=") for one in overrides) else ["n_samples=5,20"]
    arguments = ["-m", *size, "launcher=slurm", f"store={tmp_path}/store", f"hydra.sweep.dir={tmp_path}/s"]
    ended = subprocess.run(
        [sys.executable, "run.py", *arguments, *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert ended.returncode == 1
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert words in ended.stderr
    assert not (tmp_path / "s" / "jobs.json").exists()
    assert slurm.call("squeue", "--me", "--noheader") == before
