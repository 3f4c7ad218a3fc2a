"""Sweeps without SLURM: names, the folder, what is refused, the batch script's options, and a local sweep."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sweetspot.component import build, key
from sweetspot.sweep import folder as folders
from sweetspot.sweep import job as jobs
from sweetspot.sweep import local
from sweetspot.sweep.check import check_seen, check_writable, file_system, gpus_of, minutes_of
from sweetspot.sweep.command import main
from sweetspot.sweep.folder import Attempt, Job, Status, Sweep
from sweetspot.sweep.launcher import Local, Shape, Slurm
from sweetspot.sweep.launching import Asked, keyed, written
from sweetspot.sweep.outcome import Outcome, outcomes
from sweetspot.sweep.points import Composed, axes, check_axes, composed, own, point_name, run_name, sweep_name
from sweetspot.sweep.submit import hand_over, parameters, python_command, submit, told_by

ROOT = Path(__file__).parent.parent


def test_a_point_is_named_by_what_varies() -> None:
    assert point_name(["n_samples=5", "strategy=max_min"]) == "n_samples=5,strategy=max_min"
    assert point_name([]) == "default"


def test_points_that_differ_have_names_that_differ() -> None:
    values = ["a/b", "a-b", "a b", "a'b", "", "mu+2sigma", "mu-2sigma", "[1,2]", "x" * 200, "x" * 201, "é", ".", ".."]
    names = [point_name([f"model.path={value}"]) for value in values] + [point_name([".."]), point_name(["."])]
    assert len(set(names)) == len(names)
    assert all(len(name.encode()) < 200 and "/" not in name and name not in (".", "..") for name in names)


def test_a_sweep_with_the_same_axes_and_the_same_rest_has_the_same_name() -> None:
    name = sweep_name(["n_samples=5,20", "strategy=max_min,scalable", "seed=1"])
    assert name.startswith("n_samples+strategy-")
    assert name == sweep_name(["seed=1", "strategy=random,max_min", "n_samples=range(4,9)", "launcher=slurm"])
    assert name == sweep_name(
        ["n_samples=5,20", "strategy=max_min,random", "seed=1", "launcher.gpus=2", "hydra.verbose=true"]
    )
    assert name != sweep_name(["n_samples=5,20", "strategy=max_min,scalable", "seed=2"])
    assert name != sweep_name(["n_samples=5,20", "strategy=max_min,scalable"])
    assert name != sweep_name(["n_samples=5,20", "seed=1"])


def test_a_sweep_whose_axes_an_experiment_brings_along_is_named_by_it() -> None:
    name = sweep_name(["experiment=pair_grid", "size=tiny"])
    assert name.startswith("pair_grid-")
    assert name != sweep_name(["experiment=pair_grid", "size=embedded"])
    assert sweep_name([]).startswith("point-")


def test_a_run_is_named_by_its_own_overrides() -> None:
    assert run_name(["strategy=max_min", "launcher=local", "hydra.verbose=true"]) == "strategy=max_min"
    assert own(["launch.threads=1", "launcher.wait=false", "+launcher.more.a=1"]) == ["launch.threads=1"]


def test_choices_ranges_and_globs_are_axes() -> None:
    assert axes(["a=1,2", "b=[1,2]", "c=glob(x*)", "d=range(1,3)", "e='1,2'", "f=choice(a,b)"]) == ["a", "c", "d", "f"]


def plain(point: Any) -> dict[str, Any]:
    values = dict(word.split("=") for word in point)
    launch = {"_target_": "sweetspot.launch.Launch", "threads": 1, "devices": None, "lease_seconds": 60.0}
    return {
        "n_samples": values.get("n", "1"),
        "seed": "0",
        "launch": {**launch, "threads": int(values.get("threads", "1"))},
    }


def test_an_axis_that_changes_no_result_is_named() -> None:
    points = [[f"n={n}", f"threads={threads}"] for n in (5, 20) for threads in (1, 2)]
    with pytest.raises(ValueError, match=r"threads: an axis .* threads=1 and threads=2 make the same"):
        check_axes(composed(points, plain, dict), ["n", "threads"])
    check_axes(composed([["n=5"], ["n=20"]], plain, dict), ["n"])


def test_an_adaptive_budget_makes_another_result_than_a_uniform_one_and_the_same_pool() -> None:
    sampler = {"_target_": "sweetspot.sampler.TransformersSampler", "seed": 0, "temperature": 1.0, "top_p": 1.0}
    sampler |= {"max_tokens": 8, "max_prompt_tokens": 8, "dtype": "float32", "tile_prompts": 1, "tile_samples": 4}
    sampler |= {"pilot_samples": 4, "mean_samples": 8, "gain_threshold": 0.0, "tail": "upper", "batch_size": 1}

    def compose(point: Any) -> dict[str, Any]:
        values = dict(word.split("=") for word in point)
        return {"sampler": {**sampler, "budget": values["budget"], "mean_samples": int(values.get("mean", "8"))}}

    check_axes(composed([["budget=adaptive"], ["budget=uniform"]], compose, dict), ["budget"])
    check_axes(composed([["budget=adaptive", f"mean={mean}"] for mean in (8, 12)], compose, dict), ["mean"])
    with pytest.raises(ValueError, match="mean=8 and mean=12 make the same"):
        check_axes(composed([["budget=uniform", f"mean={mean}"] for mean in (8, 12)], compose, dict), ["mean"])
    pools = {key(build(compose([f"budget={one}"])["sampler"])) for one in ("adaptive", "uniform")}
    assert len(pools) == 1


def sweep_in(folder: Path, *sets: Job) -> Sweep:
    local = {
        "_target_": "sweetspot.sweep.launcher.Local",
        "dry_run": False,
        "calibration": "none",
        "price_per_device_hour": None,
    }
    return Sweep(folder, "python run.py -m", "2026-01-01", "/run.py", str(folder), local, "simple", None, sets)


def test_what_is_written_of_a_sweep_is_read_again(tmp_path: Path) -> None:
    attempt = Attempt("12_3", "logs/12_3_0_log.out", "2026-01-01T00:00:00+00:00")
    sweep = sweep_in(tmp_path, Job(0, "n=5", ("n=5", "a=b"), "run", (attempt,)), Job(1, "pool-0", (), "pool"))
    folders.write(sweep)
    assert folders.read(tmp_path) == sweep
    assert sweep.log(sweep.jobs[0]) == tmp_path / "logs/12_3_0_log.out"
    with pytest.raises(ValueError, match=r"a sweep's folder must have a jobs.json, got .*nowhere"):
        folders.read(tmp_path / "nowhere")


def test_a_second_sweep_keeps_the_jobs_of_the_first_and_adds_its_own(tmp_path: Path) -> None:
    first = sweep_in(tmp_path, Job(0, "n=5", ("n=5", "seed=1")), Job(1, "n=20", ("n=20", "seed=1")))
    folders.write(first)
    points = [["n=20", "seed=1"], ["n=50", "seed=1"]]
    asked = Asked(tmp_path, "again", Path("/run.py"), first.launcher, ["n=20,50", "seed=1"], points, plain, dict)
    local = Local(dry_run=False, calibration="none", price_per_device_hour=None)
    assert written(asked, ["n"], local, composed(points, plain, dict)).jobs == (
        *first.jobs,
        Job(2, "n=50", ("n=50", "seed=1")),
    )


def test_a_job_keeps_the_key_of_what_it_made_unless_another_is_known(tmp_path: Path) -> None:
    """Number 0 is done without a key, 1 runs, 2 is done and edited since, 3 failed and is none of the points."""
    points = [(f"n={n}",) for n in range(3)]
    jobs = [Job(number, f"n={number}", (f"n={number}",), key="old" if number else None) for number in range(4)]
    now = composed(points, plain, dict)
    done, running, failed = (Outcome(one, "", "", "") for one in ("done", "running", "failed"))
    standing = {0: done, 1: running, 2: done, 3: failed}
    found = keyed(sweep_in(tmp_path, *jobs), standing, [2, 3], now).jobs
    new = [one.key for one in now.values() if isinstance(one, Composed)]
    assert [job.key for job in found] == [new[0], "old", new[2], "old"]


def test_a_job_that_says_it_runs_but_has_no_process_was_killed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    attempt = Attempt(None, None, "2026-01-01T00:00:00+00:00")
    sweep = sweep_in(
        tmp_path, *(Job(number, str(number), (), "run", (attempt,)) for number in range(2)), Job(2, "2", ())
    )
    for number, pid in enumerate([ended.pid, os.getpid()]):
        now = Status("running", None, None, 0, os.uname().nodename, pid, None, "2026-01-01T00:00:01+00:00", None)
        folders.write_status(tmp_path / str(number), now)
    found = outcomes(sweep)
    assert [(one.standing, one.reason) for one in found.values()] == [
        ("failed", "was killed"),
        ("running", ""),
        ("not submitted", ""),
    ]


class AtOnce:
    """An executor whose jobs have failed before it returns."""

    def map_array(self, _function: Any, places: list[str], numbers: list[int], _slurm: list[bool]) -> list[Any]:
        """Leave a failed job's word in each folder."""
        for place, number in zip(places, numbers, strict=True):
            time = folders.now()
            status = Status("failed", "n must be 5", 1, 0, os.uname().nodename, os.getpid(), None, time, time)
            folders.write_status(Path(place) / str(number), status)
        return [
            SimpleNamespace(job_id=str(os.getpid()), paths=SimpleNamespace(stdout=Path(place) / "logs" / "out"))
            for place in places
        ]


def test_a_job_that_ends_while_it_is_submitted_has_ended(tmp_path: Path) -> None:
    """Twice: what the first attempt left is not taken for the second's before that begins."""
    job = Job(0, "0", ())
    sweep = sweep_in(tmp_path, job)
    for _ in range(2):
        (attempt,) = hand_over(sweep, [job], AtOnce(), slurm=False)
        sweep = sweep.with_jobs({0: Job(0, "0", (), "run", (attempt,))})
        assert [(one.standing, one.reason) for one in outcomes(sweep).values()] == [("failed", "n must be 5")]
    later = Attempt(None, None, folders.now())
    assert outcomes(sweep.with_jobs({0: Job(0, "0", (), "run", (later,))}))[0].standing == "waiting"


def test_a_job_whose_run_dies_of_a_signal_before_its_own_comes_was_stopped(tmp_path: Path) -> None:
    """SLURM signals the processes of a job one after the other."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, subprocess\n"
        "subprocess.Popen(['sh', '-c', f'sleep 0.1; kill -TERM {os.getppid()}'])\n"
        "os.kill(os.getpid(), signal.SIGTERM)"
    )
    job = Job(0, "a=0", ())
    sweep = replace(sweep_in(tmp_path, job), program=str(program))
    folders.write(sweep)
    late: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: late.append(number))
    try:
        with pytest.raises(SystemExit, match="75"):
            jobs.run(str(sweep.folder), 0, slurm=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    status = folders.read_status(sweep.path(job))
    assert status
    assert (status.state, status.reason, late) == ("stopped", "was stopped by a signal", [])


def test_a_job_s_folder_is_quoted_for_hydra(tmp_path: Path) -> None:
    job = Job(0, "n=5,a=b", ("n=5",))
    words = jobs.command(sweep_in(tmp_path, job), job)
    assert words[1:] == ["/run.py", "n=5", "launcher=local", "hydra.mode=RUN", f"hydra.run.dir='{tmp_path}/n=5,a=b'"]


def test_a_job_finds_the_choices_that_the_command_line_named(tmp_path: Path) -> None:
    job = Job(0, "n=5", ("n=5",), key="abc")
    folders.write(replace(sweep_in(tmp_path, job), search=("file:///my conf", "pkg://mine")))
    sweep = folders.read(tmp_path)
    assert sweep.jobs == (job,)
    words = jobs.command(sweep, job)
    assert words[3] == "hydra.searchpath=['file:///my conf', 'pkg://mine']"
    (parsed,) = OverridesParser.create().parse_overrides([words[3]])
    assert parsed.value() == ["file:///my conf", "pkg://mine"]


def slurm(**changes: Any) -> Slurm:
    shape: dict[str, Any] = {"gpus": 8, "cpus": 64, "memory_gb": 0.5, "minutes": 90}
    none = dict.fromkeys(
        ["partition", "account", "qos", "constraint", "reservation", "exclude", "dependency", "container"]
    )
    rest: dict[str, Any] = {"plan": "simple", "dry_run": False, "wait": True, "pool_jobs": 1, "setup": [], "nodes": 1}
    rest |= {"calibration": "none", "price_per_device_hour": None}
    limits: dict[str, Any] = {"array_parallelism": 8, "signal_seconds": 30, "requeues": 3, "shared": None, "more": {}}
    pool = Shape(gpus=1, cpus=8, memory_gb=None, minutes=30)
    return Slurm(**{**none, **rest, **limits, **shape, "python": None, "pool": pool, **changes})


def test_every_field_reaches_sbatch() -> None:
    named = {"partition": "p", "account": "a", "qos": "q", "constraint": "c", "exclude": "e"}
    given = slurm(**named, reservation="r", dependency="afterok:7", setup=["module load x"], more={"mail-type": "END"})
    found = parameters(given, "run", ["12"], "name")
    assert {key: found[key] for key in named} == named
    assert (found["gpus_per_node"], found["cpus_per_task"], found["mem"], found["time"]) == (8, 64, "512MB", 90)
    assert (found["nodes"], found["dependency"], found["array_parallelism"]) == (1, "afterok:12,afterok:7", 8)
    assert (found["setup"], found["signal_delay_s"]) == (["module load x"], 30)
    assert found["additional_parameters"] == {
        "requeue": True,
        "kill-on-invalid-dep": "yes",
        "reservation": "r",
        "mail-type": "END",
    }
    assert parameters(slurm(nodes=2), "run", [], "name")["nodes"] == 2
    assert parameters(slurm(nodes=2), "pool", [], "name")["nodes"] == 1
    pool = parameters(given, "pool", [], "name")
    assert (pool["gpus_per_node"], pool["cpus_per_task"], pool["time"], "mem" in pool) == (1, 8, 30, False)
    assert python_command(slurm(container="apptainer exec a.sif", python="python3")) == "apptainer exec a.sif python3"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"signal_seconds": 1800}, "signal_seconds must be < the time of a job"),
        ({"dependency": "after that"}, "dependency must be as sbatch takes it"),
        ({"gpus": -1}, "greater than or equal to 0"),
        ({"minutes": "1:00:00"}, "valid integer"),
    ],
)
def test_a_wrong_field_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        slurm(**changes)


def test_gpus_are_read_from_slurm_s_words() -> None:
    assert [gpus_of(word) for word in ("gpu:2", "gpu:a100:4(S:0-1),shard:8", "(null)", "gpu:a:1,gpu:b:2", "gpu")] == [
        2,
        4,
        0,
        3,
        1,
    ]


def test_time_limits_are_read_from_slurm_s_words() -> None:
    assert [minutes_of(limit) for limit in ("infinite", "1-12:00:00", "1:30:00", "30:00", "n/a")] == [
        float("inf"),
        2160,
        90,
        30,
        float("inf"),
    ]


MOUNTS = "overlay / overlay rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\nserver:/home /home nfs4 rw 0 0\n"


def test_a_folder_of_this_machine_alone_is_refused_for_other_nodes(tmp_path: Path) -> None:
    assert [file_system(Path(place), MOUNTS) for place in ("/dev/shm/a", "/home/me/x", "/homes/x")] == [
        "tmpfs",
        "nfs4",
        "overlay",
    ]
    with pytest.raises(
        ValueError, match=r"store must lie where every node sees it, got .* \(tmpfs\); .*launcher.shared"
    ):
        check_seen("store", Path("/dev/shm/store"), ["elsewhere"], None)
    check_seen("store", Path("/dev/shm/store"), [os.uname().nodename], None)
    check_seen("store", tmp_path / "store", ["elsewhere"], [str(tmp_path)])
    with pytest.raises(ValueError, match=r"store must lie under one of launcher.shared"):
        check_seen("store", tmp_path / "store", ["elsewhere"], [str(tmp_path / "sto")])


def test_a_store_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    check_writable("store", tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"store must be a folder that can be written, got .*/file/store"):
        check_writable("store", tmp_path / "file" / "store")
    assert not (tmp_path / "a").exists()


def test_sbatch_s_own_words_are_what_is_told() -> None:
    text = "Command failed\nsbatch: error: Batch job submission failed: Invalid account\nTraceback ..."
    assert told_by(text) == "sbatch: Batch job submission failed: Invalid account"


def test_without_sbatch_nothing_is_made(tmp_path: Path) -> None:
    ended = command(tmp_path, ["launcher=slurm", "n_samples=5,20"], PATH=str(tmp_path))
    assert ended.returncode == 1
    assert (
        ended.stderr == "error: launcher=slurm must find sbatch on PATH: log in to a cluster, or take launcher=local\n"
    )
    assert not list(tmp_path.glob("sweep/*/"))


def test_a_plan_needs_no_cluster_and_says_that_it_found_none(tmp_path: Path) -> None:
    """SLURM's commands without a cluster: a sweep is refused in a line that says what to do, its plan is made."""
    for name in ("sbatch", "sinfo"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{name}: fatal: no configuration' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    why = (
        "launcher=slurm must reach a cluster: log in to one or set SLURM_CONF, or take launcher=local; "
        "SLURM says: sinfo: fatal: no configuration\n"
    )
    refused = command(tmp_path, ["launcher=slurm", "n_samples=5,20"], PATH=path)
    assert (refused.returncode, refused.stderr) == (1, f"error: {why}")
    planned = command(tmp_path, ["launcher=slurm", "n_samples=5,20", "launcher.dry_run=true"], PATH=path)
    assert (planned.returncode, planned.stderr) == (0, "")
    assert planned.stdout.startswith(f"caution   the request is not held against a cluster: {why}")
    assert "device-hours" in planned.stdout
    assert not (tmp_path / "sweep" / "jobs.json").exists()


def test_a_logger_that_cannot_be_opened_is_refused_before_anything_is_submitted(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    words = ["n_samples=5,20", "logger=[wandb,jsonl]", "logger.wandb.mode=online"]
    ended = command(tmp_path, words, NETRC="/nowhere", WANDB_API_KEY="")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: logger.wandb.mode must be auto or offline without a W&B key")
    assert not list((tmp_path / "sweep").glob("*/")) and not (tmp_path / "store").exists()


def test_a_choice_that_is_no_yaml_ends_in_one_line(tmp_path: Path) -> None:
    own = tmp_path / "conf" / "strategy"
    own.mkdir(parents=True)
    (own / "broken.yaml").write_text("_target_: [\n")
    program = [sys.executable, str(ROOT / "run.py"), "strategy=broken", "size=tiny", f"store={tmp_path}/store"]
    ended = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: while parsing a flow")
    assert "conf/strategy/broken.yaml" in line


def command(folder: Path, words: list[str], **environment: str) -> "subprocess.CompletedProcess[str]":
    arguments = [sys.executable, "run.py", "-m", f"store={folder}/store", f"hydra.sweep.dir={folder}/sweep", *words]
    env = {**os.environ, **environment}
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300, env=env)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "submitit_local"])
def test_a_refused_point_ends_no_other_and_the_sweep_fails(tmp_path: Path, tiny_policy: Path, launcher: str) -> None:
    (tmp_path / "few.jsonl").write_text('{"prompt": "Why?"}\n')
    data = [
        "data=jsonl",
        f"data.path={tmp_path}/few.jsonl",
        "n_samples=4,5",
        "strategy=scalable",
        "sampler=transformers",
    ]
    data += [
        f"launcher={launcher}",
        "model=other",
        f"model.path={tiny_policy}",
        "until=sample",
        "sampler.max_tokens=4",
        "sampler.tile_samples=5",
        "launch.threads=1",
    ]
    ended = command(tmp_path, data)
    assert ended.returncode == 1
    assert "1 of 2 jobs failed" in ended.stderr.splitlines()[-1]
    assert "n_samples=4: n_samples must be >= 5 for the strategy's positions, got 4" in ended.stderr
    assert "Traceback" in (tmp_path / "sweep" / "n_samples=4" / "error.txt").read_text()
    assert (
        json.loads((tmp_path / "sweep" / "n_samples=5" / "manifest.json").read_text())["rounds"][0]["samples"]["drawn"]
        == 5
    )
    assert f"report    {tmp_path}/sweep/sweep.html" in ended.stdout
    assert "1 of 2 points are done" in (tmp_path / "sweep" / "sweep.html").read_text()
    again = command(tmp_path, data)
    assert "1 to submit" in again.stdout
    assert "1 done already" in again.stdout


def until(holds: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
def test_cancelling_ends_jobs_of_this_machine_that_run_and_those_that_have_not_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, sys, time\npathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\ntime.sleep(300)"
    )
    submitit = {"_target_": "sweetspot.sweep.launcher.SubmititLocal", "dry_run": False, "wait": False}
    submitit |= {"calibration": "none", "price_per_device_hour": None}
    both = tuple(Job(number, f"a={number}", (str(tmp_path / f"pid-{number}"),)) for number in range(2))
    sweep = Sweep(tmp_path / "sweep", "", "", str(program), str(ROOT), submitit, "simple", None, both)
    sweep = submit(sweep, [0])
    pid = tmp_path / "pid-0"
    until(lambda: pid.exists() and pid.read_text() != "")
    sweep = submit(sweep, [1])
    main(["cancel", str(sweep.folder)])
    assert capsys.readouterr().out == "2 of 2 jobs cancelled\n"
    until(lambda: not any(one.lives for one in outcomes(sweep).values()))
    assert [(one.standing, one.reason) for one in outcomes(sweep).values()] == [
        ("stopped", "was stopped by a signal"),
        ("stopped", "ended before it began"),
    ]
    assert not local.lives(int(pid.read_text()))
    assert not (tmp_path / "pid-1").exists()


@pytest.mark.slow
def test_a_run_keeps_command_and_commit_and_is_the_latest(tmp_path: Path) -> None:
    words = ["until=select", "data.path=nowhere.jsonl", "data=jsonl", f"store={tmp_path}/store"]
    ended = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    (run,) = [path for path in (tmp_path / "runs").iterdir() if path.name != "latest"]
    assert run.name.split("_", 2)[2].startswith("until=select,data.path=nowhere.jsonl,data=jsonl,store=")
    assert (tmp_path / "runs" / "latest").resolve() == run
    assert (run / "command.txt").read_text().split()[1:] == [str(ROOT / "run.py"), *words]
    assert "data.path must be an existing file, got nowhere.jsonl" in (run / "error.txt").read_text()
