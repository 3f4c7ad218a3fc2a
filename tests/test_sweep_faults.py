"""A sweep of real runs of which most go wrong, each in its own way, on a real SLURM."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sweetspot.sweep import folder as folders
from sweetspot.sweep import slurm
from tests.test_sweep_slurm import ROOT
from tests.test_sweep_whole import overrides

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("slurm")]

# reward functions that do harm while the file FAULTS is there; a worker calls them, and run.py is its parent
REWARDS = """
import os, pathlib, signal, time

def faulty():
    return pathlib.Path(os.environ["FAULTS"]).exists()

def good(messages, response):
    return float(len(response))

def raises(messages, response):
    if faulty():
        raise RuntimeError("a planned fault")
    return float(len(response))

def killed(messages, response):
    if faulty():
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return float(len(response))

def hungry(messages, response):
    if faulty():
        held = bytearray(os.urandom(1 << 20)) * 2600
        time.sleep(60)
    return float(len(response))

def slow(messages, response):
    if faulty():
        time.sleep(600)
    return float(len(response))
"""


def test_each_failure_is_told_with_its_log_and_resubmit_completes_exactly_the_missing_ones(
    cluster: Path, tmp_path: Path, tiny_policy: Path, tiny_reward: Path
) -> None:
    """One raises, one is killed, one passes its memory, one reaches its time limit twice; one ends well."""
    assert cluster.exists()
    (tmp_path / "rewards.py").write_text(REWARDS)
    faults = tmp_path / "faults"
    faults.touch()
    ways = ("good", "raises", "killed", "hungry", "slow")
    words = [one for one in overrides(tmp_path, tiny_policy, tiny_reward) if not one.startswith("reward_model")]
    words += ["reward_model=python_function", f"reward_model.function={','.join(f'rewards.{way}' for way in ways)}"]
    asked = ["launcher=slurm", "launcher.plan=simple", "launcher.minutes=1", "launcher.signal_seconds=10"]
    asked += ["launcher.requeues=1", "launcher.memory_gb=2", "launcher.cpus=1", "until=select"]
    place = tmp_path / "sweep"
    environment = {**os.environ, "FAULTS": str(faults), "PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def call(*command: str) -> "subprocess.CompletedProcess[str]":
        whole = [sys.executable, *command]
        return subprocess.run(
            whole, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600
        )

    # the samples are there, so that a minute is enough for those that do no harm
    alone = [*words[:-1], "reward_model.function=rewards.good", "until=sample", f"hydra.run.dir={tmp_path}/alone"]
    assert call("run.py", *alone, f"store={tmp_path}/store").returncode == 0
    ended = call("run.py", "-m", *words, *asked, f"store={tmp_path}/store", f"hydra.sweep.dir={place}")
    assert ended.returncode == 1
    assert "4 of 5 jobs failed" in ended.stderr, ended.stderr
    assert call("-m", "sweetspot.sweep", "collect", str(place)).returncode == 0
    table = {row["job"].rpartition(".")[2]: row for row in pq.read_table(place / "sweep.parquet").to_pylist()}
    assert {name: row["standing"] for name, row in table.items()} == {
        way: "done" if way == "good" else "failed" for way in ways
    }
    assert table["good"]["kept"] == 6
    reasons = {
        "raises": "RuntimeError: a planned fault",
        "killed": "run.py was killed by SIGKILL",
        "hungry": "memory",
        "slow": "reached its time limit 2 times, launcher.requeues is 1",
    }
    page = (place / "sweep.html").read_text()
    for way, words_ in reasons.items():
        assert words_ in table[way]["reason"], (way, table[way])
        assert words_ in page
        assert table[way]["reason"] in ended.stderr
        assert Path(table[way]["log"]).is_file()
        assert table[way]["log"] in page
    told = Path(table["raises"]["log"]).read_text()
    assert "Traceback" in told
    assert "RuntimeError: a planned fault" in told
    ids = {job.name.rpartition(".")[2]: str(job.last and job.last.slurm_id) for job in folders.read(place).jobs}
    states = slurm.states(list(ids.values()))
    assert {way: states[one].state == "COMPLETED" for way, one in ids.items()} == {way: way == "good" for way in ways}
    faults.unlink()
    again = call("-m", "sweetspot.sweep", "resubmit", str(place))
    assert "4 of 5 jobs submitted" in again.stdout, again.stderr
    assert call("-m", "sweetspot.sweep", "status", str(place), "--watch", "2").returncode == 0
    assert call("-m", "sweetspot.sweep", "collect", str(place)).returncode == 0
    rows = pq.read_table(place / "sweep.parquet").to_pylist()
    assert [(row["standing"], row["kept"]) for row in rows] == [("done", 6)] * 5
    attempts = {job.name.rpartition(".")[2]: len(job.attempts) for job in folders.read(place).jobs}
    assert attempts == {way: 1 if way == "good" else 2 for way in ways}
