"""Workers: a fresh process each, errors as one line, no orphan after a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sweetspot import launch
from tests import tiny

ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parent.parent)}


def main(job: dict[str, Any], emit: launch.Emit) -> None:
    """The worker of these tests: does what its job says."""
    match job["do"]:
        case "tell":
            emit({"progress": {"done": 1, "total": 1, "unit": "tiles"}})
            emit({"metrics": {"pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]}})
        case "raise":
            raise ValueError("sampler.size must be\n even, got 3")
        case "break":
            raise KeyError("absent")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "tile":
            tile(job, emit)
        case "one" if os.environ["NUMBER"] == "1":
            while not Path(job["pid"]).exists():
                time.sleep(0.01)
            raise ValueError("no luck")
        case _:
            Path(job["pid"]).write_text(str(os.getpid()))
            time.sleep(600)


def tile(job: dict[str, Any], emit: launch.Emit) -> None:
    """Makes the tile t, after as many failures as the job says, of the kind it says."""
    emit({"tile": "t"})
    before = Path(job["failures"]).read_text() if Path(job["failures"]).exists() else ""
    if len(before) < job["times"]:
        Path(job["failures"]).write_text(before + "x")
        match job["how"]:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)
            case "engine":
                raise launch.TileError("t", "RuntimeError: engine core died")
            case _:
                raise ValueError("reward_model: rewards must be finite")
    emit({"made": "t"})


def start(job: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    metrics: list[dict[str, Any]] = []
    launch.run(
        "tests.test_launch",
        job,
        folder,
        {**ENVIRONMENT, **tiny.launch(threads=3, devices=None, lease_seconds=60).environment()},
        metrics.append,
    )
    return metrics


def test_a_worker_is_another_process_with_its_own_environment(tmp_path: Path) -> None:
    (told,) = start({"do": "tell"}, tmp_path / "job")
    assert told["pid"] != os.getpid()
    assert told["threads"] == "3"


def test_a_worker_s_error_comes_back_as_one_line_and_the_trace_stays_in_its_log(tmp_path: Path) -> None:
    with pytest.raises(launch.WorkerError) as failed:
        start({"do": "raise"}, tmp_path / "sample")
    assert str(failed.value).startswith("sample: sampler.size must be even, got 3 (log: ")
    assert "Traceback" in (tmp_path / "sample" / "log.txt").read_text()


def test_a_fault_that_is_no_user_s_error_names_its_type(tmp_path: Path) -> None:
    with pytest.raises(launch.WorkerError, match="KeyError: 'absent'"):
        start({"do": "break"}, tmp_path / "job")


def test_a_killed_worker_is_told_by_its_signal(tmp_path: Path) -> None:
    with pytest.raises(launch.WorkerError, match=r"killed by SIGKILL \(out of memory\?\)"):
        start({"do": "die"}, tmp_path / "job")


def fail(how: str, times: int, folder: Path) -> int:
    """How many tiles were placed, by a worker that fails so often before."""
    job = {"do": "tile", "how": how, "times": times, "failures": str(folder / "failures")}
    return launch.run_workers("tests.test_launch", job, folder / "score", [ENVIRONMENT], lambda _: None)


@pytest.mark.parametrize("how", ["die", "exit", "engine"])
def test_a_worker_that_dies_or_whose_engine_fails_is_started_again_for_its_tile(how: str, tmp_path: Path) -> None:
    assert fail(how, 2, tmp_path) == 1
    assert (tmp_path / "failures").read_text() == "xx"


@pytest.mark.parametrize(("how", "told"), [("die", "killed by SIGKILL"), ("engine", "RuntimeError: engine core died")])
def test_a_tile_that_fails_three_times_is_named_and_ends_the_job(how: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(launch.WorkerError, match=rf"^score: tile t failed 3 times, the last time: .*{told}.* \(log: "):
        fail(how, 9, tmp_path)
    assert (tmp_path / "failures").read_text() == "xxx"


def test_an_error_of_the_user_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(launch.WorkerError, match=r"^score: reward_model: rewards must be finite \(log"):
        fail("user", 9, tmp_path)
    assert (tmp_path / "failures").read_text() == "x"


def test_several_workers_have_their_own_folders_and_environments(tmp_path: Path) -> None:
    metrics: list[dict[str, Any]] = []
    environments = [{**ENVIRONMENT, "OMP_NUM_THREADS": str(number)} for number in (1, 2)]
    launch.run_workers("tests.test_launch", {"do": "tell"}, tmp_path / "job", environments, metrics.append)
    assert {row["threads"] for row in metrics} == {"1", "2"}
    assert len({row["pid"] for row in metrics}) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job-0", "job-1"]


def test_the_error_of_one_worker_ends_the_others(tmp_path: Path) -> None:
    job = {"do": "one", "pid": str(tmp_path / "pid")}
    began = time.monotonic()
    with pytest.raises(launch.WorkerError, match="job-1: no luck"):
        environments = [{**ENVIRONMENT, "NUMBER": str(number)} for number in range(2)]
        launch.run_workers("tests.test_launch", job, tmp_path / "job", environments, lambda _: None)
    assert time.monotonic() - began < 60
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose nvidia-smi lists four GPUs."""
    lister = tmp_path / "bin" / "nvidia-smi"
    lister.parent.mkdir()
    lister.write_text('#!/bin/sh\nfor number in 0 1 2 3; do echo "GPU $number: Some GPU (UUID: GPU-$number)"; done\n')
    lister.chmod(0o755)
    monkeypatch.setenv("PATH", f"{lister.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return lister


def seen(devices: int | None, group: int) -> list[str]:
    workers = tiny.launch(threads=1, devices=devices, lease_seconds=60).workers(group)
    return [worker["CUDA_VISIBLE_DEVICES"] for worker in workers]


@pytest.mark.usefixtures("gpus")
def test_every_worker_sees_its_own_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen(None, 1) == ["0", "1", "2", "3"]
    assert seen(None, 2) == ["0,1", "2,3"]
    assert seen(3, 1) == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7, GPU-5")
    assert seen(None, 1) == ["GPU-7", "GPU-5"]
    assert seen(1, 1) == ["GPU-7"]


@pytest.mark.usefixtures("gpus")
def test_devices_that_are_not_there_or_do_not_divide_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^launch.devices must be <= 4, the GPUs that are visible, got 5$"):
        seen(5, 1)
    with pytest.raises(ValueError, match=r"^launch.devices must be a multiple of tensor_parallel \(2\), got 3$"):
        seen(3, 2)


def test_without_gpus_devices_are_processes_that_share_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    two = tiny.launch(threads=None, devices=2, lease_seconds=60).workers(1)
    assert [worker["OMP_NUM_THREADS"] for worker in two] == ["4", "4"]
    assert len(tiny.launch(threads=None, devices=None, lease_seconds=60).workers(1)) == 1


def test_a_worker_does_not_outlive_a_killed_run(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.test_launch import start; "
        "start({'do': 'sleep', 'pid': sys.argv[1]}, Path(sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "pid"), str(tmp_path / "job")]
    parent = subprocess.Popen(arguments, env={**os.environ, **ENVIRONMENT})
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the worker is still there"
        time.sleep(0.05)
