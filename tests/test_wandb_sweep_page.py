"""The page and the table of a sweep in Weights & Biases, of axes whose values must not leave this machine."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweetspot.component import to_config
from sweetspot.sweep import collect, folder, summary
from sweetspot.sweep.folder import Job, Sweep
from sweetspot.sweep.outcome import Outcome
from sweetspot.sweep.points import point_name
from tests.reported import make_sweep
from tests.test_logger import wandb_logger

PAIRS = [("max", "min"), ("random", "random")]
WORDS = [f"geheim{number:03}" for number in range(150)]
PROMPTS = (" ".join(WORDS), "Alpha,beta=Rosebud = [x] forever")  # 1499 characters; one that looks like an override
PLACES = ("/x/tresor/a.jsonl", "/x/other tresor/a.jsonl")
DONE = Outcome("done", "", "", "")


def private_sweep(place: Path, logger: dict[str, Any]) -> Sweep:
    """Two pairs by two data sets by two system prompts; the last point failed."""
    axes = [(path, prompt) for path in PLACES for prompt in PROMPTS]
    made = make_sweep(place, [pair for _ in axes for pair in PAIRS])
    jobs: list[Job] = []
    for job in made.jobs:
        path, prompt = axes[job.number // len(PAIRS)]
        words = [f"data.path={path}", f"model.system_prompt={prompt}"]
        typed = [re.sub(r"(?<!path)(?<!prompt)([ ,=\[\]])", r"\\\1", word) for word in words]  # as Hydra does
        mine = (*job.overrides, *typed)
        jobs.append(replace(job, name=point_name(typed + list(job.overrides)), overrides=mine))
        file = made.path(job) / "manifest.json"
        told = json.loads(file.read_text())
        told["config"] |= {"data": {"path": path}, "logger": {"wandb": logger}}
        told["config"]["model"]["system_prompt"] = prompt
        told["rounds"][0]["rewards"]["reward_model"] = "/x/tresor/judge"
        file.write_text(json.dumps(told))
        made.path(job).rename(made.path(jobs[-1]))
    (made.path(jobs[-1]) / "manifest.json").unlink()
    command = f"python run.py -m data.path={','.join(PLACES)} 'model.system_prompt={PROMPTS[0]}'"
    sweep = replace(made, jobs=tuple(jobs), command=command)
    folder.write(sweep)
    return sweep


@pytest.mark.slow
@pytest.mark.parametrize("text", [False, True])
def test_the_page_in_wandb_has_results_and_nothing_private(tmp_path: Path, text: bool) -> None:
    pytest.importorskip("wandb")
    sweep = private_sweep(tmp_path, to_config(wandb_logger(mode="offline", text=text, table_rows=100)))
    last = sweep.jobs[-1].number
    failed = Outcome("failed", f"no file {PLACES[1]} for {PROMPTS[1]}", "", "")
    collect.write(sweep, {job.number: failed if job.number == last else DONE for job in sweep.jobs})
    kept = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    whole = b"".join(path.read_bytes() for path in kept)
    for word in ("tresor", "%2Fx", "-x-", str(tmp_path), *([] if text else ["geheim", "Rosebud", "Alpha"])):
        assert word.encode() not in whole, word
    (page,) = [path.read_text() for path in kept if b"<!doctype html>" in path.read_bytes()[:200]]
    assert "7 of 8 points are done" in page
    settings = set(re.findall(r"<td>(data\.path=…-[0-9a-f]{8}) model\.system_prompt=([^<]*)</td>", page))
    assert len(settings) == 4  # what is hidden still tells the points apart
    assert all(re.fullmatch("…-[0-9a-f]{8}", prompt) is None for _, prompt in settings) == text
    assert "scored by …/judge" in page
    assert ("<article" in page, "sky is blue" in page, "litres" in page) == (text, text, text)
    assert "Reward distribution</h2>" in page
    assert re.findall(r'href="(?!#)', page) == []
    own = (tmp_path / "sweep.html").read_text()
    assert "tresor" in own and "geheim000" in own and "<article" in own


def test_a_secret_in_a_mapping_that_a_failed_job_was_given_is_hidden_in_its_name(tmp_path: Path) -> None:
    typed = ["+eval.judge.extra={api_key:short,n:[{token:s3cr3t-enough}]}", "data.path={broken", r"x.note=a\ b"]
    found = summary._typed(typed)
    n = {"eval.judge.extra.api_key": "short", "eval.judge.extra.n": [{"token": "s3cr3t-enough"}]}
    assert found == {**n, "data.path": "{broken", "x.note": "a b"}
    sweep = make_sweep(tmp_path, PAIRS)
    job = replace(sweep.jobs[0], overrides=tuple(typed), name=point_name(typed))
    hidden = summary._private(replace(sweep, jobs=(job,)), [], [], True)
    assert re.fullmatch(r"\+eval.judge.extra=-…-[0-9a-f]{8}", hidden.name(job.name, found))
    assert hidden.text("s3cr3t-enough is wrong") == "… is wrong"


def test_a_logger_that_is_not_there_or_has_other_settings_ends_no_collect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    older = {**to_config(wandb_logger()), "notes": None}
    own = make_sweep(tmp_path, PAIRS), {"mine": {"_target_": "nowhere.at.all.Logger"}, "no": None}
    told = make_sweep(tmp_path / "other", PAIRS), {"wandb": older}
    for sweep, loggers in (own, told):
        for job in sweep.jobs:
            file = sweep.path(job) / "manifest.json"
            manifest = json.loads(file.read_text())
            file.write_text(json.dumps({**manifest, "config": {**manifest["config"], "logger": loggers}}))
        assert collect.write(sweep, {job.number: DONE for job in sweep.jobs})[-1].exists()
        assert not (sweep.folder / "wandb").exists()
    words = "warning: the sweep has no summary in W&B: logger.wandb.notes: unknown key; the keys are project, "
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(words)
