"""lm-eval on a task of one's own with local data, end to end on a tiny model."""

from pathlib import Path
from typing import Any

import pytest

from sweetspot import launch
from sweetspot.component import to_config
from sweetspot.eval.lm_eval import LmEval
from sweetspot.model import Model
from sweetspot.report.results import evaluated
from sweetspot.report.words import NOTHING
from sweetspot.schema import ACADEMIC
from sweetspot.store import read_tile
from tests import tiny


def evaluation(folder: Path, **changes: Any) -> LmEval:
    fields: dict[str, Any] = {
        "tasks": {"rhymes": 0},
        "include_path": str(folder),
        "chat_template": True,
        "dtype": "float32",
        "limit": None,
        "seed": 0,
        "device": "cpu",
        "batch_size": 4,
    }
    return LmEval(**{**fields, **changes})


def work(job: dict[str, Any], folder: Path) -> None:
    environment = {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hub")}
    launch.run("sweetspot.eval.lm_eval", job, folder / "job", environment, lambda _: None)


@pytest.mark.slow
def test_a_policy_is_measured_on_a_local_task(tiny_model: Model, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    tiny.save_task(tmp_path)
    job = {"evaluation": to_config(evaluation(tmp_path)), "model": to_config(tiny_model)}
    work({**job, "figures": str(tmp_path / "academic.parquet")}, tmp_path)
    table, facts = read_tile(tmp_path / "academic.parquet", ACADEMIC)
    (row,) = table.to_pylist()
    assert (row["task"], row["metric"], row["n"], row["fewshot"]) == ("rhymes", "acc", 12, 0)
    assert 0 <= row["value"] <= 1
    assert row["standard_error"] > 0
    assert facts["partial"] is False


def test_the_report_shows_start_and_policy_task_by_task() -> None:
    row = {"task": "rhymes", "metric": "acc", "value": 0.25, "standard_error": 0.125, "fewshot": 5, "n": 12}
    unknown = {**row, "task": "odd", "standard_error": None}
    found = {"name": "academic", "kind": "lm_eval", "lm_eval": "0.4.13", "partial": False, "tasks": [row, unknown]}
    section = evaluated({**found, "start_tasks": [{**row, "value": 0.5}, unknown]})
    assert section.title == "academic: 2 tasks of lm-eval 0.4.13, start → policy"
    assert section.lines[0] == ("rhymes", "acc 0.500 → 0.250 (standard error 0.125), 12 documents, 5 shots")
    assert f"standard error {NOTHING}" in section.lines[1][1]


@pytest.mark.slow
def test_an_unknown_task_is_one_line(tiny_model: Model, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    job = {"evaluation": to_config(evaluation(tmp_path, tasks={"nonsense": 0})), "model": to_config(tiny_model)}
    with pytest.raises(launch.WorkerError, match="must be tasks of lm-eval, got nonsense"):
        work({**job, "figures": str(tmp_path / "academic.parquet")}, tmp_path)
