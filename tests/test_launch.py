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
        case _:
            Path(job["pid"]).write_text(str(os.getpid()))
            time.sleep(600)


def start(job: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    metrics: list[dict[str, Any]] = []
    launch.run(
        "tests.test_launch",
        job,
        folder,
        {**ENVIRONMENT, **launch.Launch(threads=3, devices=None, lease_seconds=60).environment()},
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
