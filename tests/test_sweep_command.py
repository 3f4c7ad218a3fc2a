"""python -m sweetspot.sweep: the table of a sweep, and what is refused."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sweetspot.sweep import folder as folders
from sweetspot.sweep import slurm
from sweetspot.sweep.collect import markdown, stage_seconds
from sweetspot.sweep.command import main, stage
from sweetspot.sweep.folder import Attempt, Job, Status, Sweep

LOCAL = {"_target_": "sweetspot.sweep.launcher.SubmititLocal", "dry_run": False, "wait": True}
LOCAL |= {"calibration": "none", "price_per_device_hour": None}


def sweep_of(folder: Path, names: list[str]) -> Sweep:
    """A sweep of jobs of this machine that were submitted."""
    attempt = (Attempt(None, "logs/1_0_log.out", "2026-01-01"),)
    jobs = tuple(Job(number, name, (name,), "run", attempt) for number, name in enumerate(names))
    sweep = Sweep(folder, "typed", "2026-01-01", "run.py", str(folder), LOCAL, "simple", None, jobs)
    folders.write(sweep)
    return sweep


def status(state: folders.State, reason: str | None = None, pid: int = os.getpid()) -> Status:
    return Status(state, reason, None, 0, socket.gethostname(), pid, None, "2026-01-02", None)


def test_collecting_gives_a_row_for_every_job_whatever_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of(tmp_path, ["n_samples=5", "n_samples=20"])
    pairs = {"kept": 12, "chosen_z": 1.5, "rejected_z": -0.5, "margin": 2.0, "strategy": "(max, min)"}
    judge = {"role": "judge", "difference": 0.25, "low": 0.125, "high": 0.5}
    evaluation = {"name": "held_out", "kind": "held_out", "judges": [judge]}
    manifest = {"rounds": [{"pairs": pairs}], "evaluations": [evaluation], "made": 3, "config": {"logger": {}}}
    folders.write_status(sweep.path(sweep.jobs[0]), status("done"))
    (sweep.path(sweep.jobs[0]) / "manifest.json").write_text(json.dumps({**manifest, "seconds": 9.0}))
    folders.write_status(sweep.path(sweep.jobs[1]), status("failed", "boom | bang"))
    for _ in range(2):
        main(["collect", str(tmp_path)])
    table = pq.read_table(tmp_path / "sweep.parquet").to_pylist()
    assert [(row["job"], row["standing"], row["kept"], row["evaluations/held_out/judges/0/low"]) for row in table] == [
        ("n_samples=5", "done", 12.0, 0.125),
        ("n_samples=20", "failed", None, None),
    ]
    assert "| n_samples=5 | done |  | 12 | 1.5 | -0.5 | 2 |" in (tmp_path / "sweep.md").read_text()
    assert "| n_samples=20 | failed | boom \\| bang |" in capsys.readouterr().out
    page = (tmp_path / "sweep.html").read_text()
    assert "1 of 2 points are done" in page
    for words in ("+0.250 (95%: +0.125 to +0.500)", "+1.50", "boom | bang", f"{tmp_path}/logs/1_0_log.out"):
        assert f">{words}<" in page, words


def test_the_time_of_the_stages_is_added_up_over_the_jobs_once_all_are_done(tmp_path: Path) -> None:
    """Two jobs from :00 to :10, each with 7.75 s of stages: 2.25 s of start and end, and half a second of selecting."""
    sweep = sweep_of(tmp_path, ["a=1", "a=2"])
    names = {"select": 0.5, "train": 6.0, "sample start": 1.0, "sample": 0.25}
    stages = [{"name": name, "seconds": seconds} for name, seconds in names.items()]
    for job in sweep.jobs:
        assert stage_seconds(sweep, [0, 1]) is None
        ended = replace(status("done"), started="2026-01-02T00:00:00", ended="2026-01-02T00:00:10")
        folders.write_status(sweep.path(job), ended)
        (sweep.path(job) / "manifest.json").write_text(json.dumps({"stages": stages}))
    found = stage_seconds(sweep, [0, 1])
    assert found == {
        "prepare": 0,
        "sample": 0.5,
        "score": 0,
        "reference": 0,
        "train": 12,
        "evaluate": 2,
        "start and end": 5.5,
    }


def test_status_names_stage_and_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of(tmp_path, ["a=1"])
    folders.write_status(sweep.path(sweep.jobs[0]), status("failed", "boom"))
    worker = sweep.path(sweep.jobs[0]) / "jobs" / "01-score"
    worker.mkdir(parents=True)
    told = {"progress": {"done": 3, "total": 6, "unit": "responses"}}
    (worker / "events.jsonl").write_text(json.dumps(told) + '\n{"prog')  # the last line is half written
    assert stage(sweep.path(sweep.jobs[0])) == "01-score 3/6 responses"
    assert stage(tmp_path / "nothing") == ""
    main(["status", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "failed" in shown
    assert "boom" in shown


def test_resubmitting_a_sweep_that_is_done_submits_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of(tmp_path, ["a=1"])
    folders.write_status(sweep.path(sweep.jobs[0]), status("done"))
    main(["resubmit", str(tmp_path)])
    assert capsys.readouterr().out == "0 of 1 jobs submitted\n"
    assert folders.read(tmp_path).jobs == sweep.jobs


def test_a_folder_without_a_sweep_and_jobs_of_another_machine_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must have a jobs\.json"):
        main(["status", str(tmp_path)])
    sweep = sweep_of(tmp_path, ["a=1"])
    away = Attempt(None, None, "2026-01-01", "elsewhere", os.getpid())
    folders.write(sweep.with_jobs({0: replace(sweep.jobs[0], attempts=(away,))}))
    folders.write_status(sweep.path(sweep.jobs[0]), status("running"))
    with pytest.raises(ValueError, match=r"cancel must be called where the jobs run, got a=1 on another machine"):
        main(["cancel", str(tmp_path)])


def test_a_table_leaves_empty_what_a_row_lacks() -> None:
    assert markdown(("a", "b"), [{"a": 1.23456}]) == "| a | b |\n| --- | --- |\n| 1.235 |  |\n"


def test_the_tasks_of_an_array_that_never_began_are_told_apart() -> None:
    assert slurm.each("26_[0-2,7%4]") == ["26_0", "26_1", "26_2", "26_7"]
    assert slurm.each("26_[5]") == ["26_5"]
    assert (slurm.each("26_3"), slurm.each("26")) == (["26_3"], ["26"])
