"""Judged evaluations through run.py: what is tested before a run, what a rerun needs, what kills and bad input cost."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweetspot.schema import SCORES
from sweetspot.store import read_tile
from tests.judge_server import JudgeServer
from tests.running import ROOT, finish, start

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("runs")]
CONNECTIONS = 4  # to the judge
FAULTS = {"500": 0.05, "429": 0.05, "no_logprobs": 0.02, "html": 0.01, "drop": 0.02}
ROWS = [{"instruction": f"Say {n}.", "output": f"It is {n}.", "generator": "base"} for n in range(805)]


@pytest.fixture
def judged(tiny_overrides: list[str], tmp_path: Path) -> list[str]:
    """The overrides of a run that six prompts of a made-up benchmark end, without the judge's address."""
    (tmp_path / "baseline.json").write_text(json.dumps(ROWS))
    (tmp_path / "df_gamed.csv").write_text("index\n")
    return [
        *(line for line in tiny_overrides if "eval" not in line),
        "eval=alpaca_eval_2",
        "judge@eval.judge=openai",
        "eval.judge.name=loopback",
        "eval.judge.model=judge",
        f"eval.judge.concurrency={CONNECTIONS}",
        "eval.judge.backoff=0.01",
        f"eval.baseline_path={tmp_path}/baseline.json",
        f"eval.gamed_path={tmp_path}/df_gamed.csv",
        "eval.limit=6",
        "sampler@eval.sampler=transformers",
        "eval.sampler.dtype=float32",
        "eval.sampler.max_tokens=8",
        "eval.sampler.tile_prompts=10",
        "eval.resamples=1000",
    ]


def stopped(overrides: list[str], store: Path, folder: Path) -> str:
    """The one line that a run ends with, warnings aside."""
    process = start(overrides, store, folder)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1, output
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert output.endswith(line + "\n")
    return line


def made(manifest: dict[str, Any]) -> list[str]:
    """The stages that made something."""
    return [stage["name"] for stage in manifest["stages"] if stage["made"]]


def kill(process: "subprocess.Popen[str]", when: Callable[[], bool]) -> None:
    """kill -9 of run.py itself."""
    while not when():
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()


def test_bad_input_ends_a_run_in_one_line_before_anything_is_made_or_paid(
    judged: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    (tmp_path / "few.json").write_text(json.dumps(ROWS[:804]))
    (tmp_path / "twice.json").write_text(json.dumps([*ROWS[:804], ROWS[0]]))
    with JudgeServer() as server:
        for change, words in (
            ("eval.judge.key_variable=NO_SUCH_KEY", "the environment variable NO_SUCH_KEY is not set"),
            (
                "eval.judge.base_url=http://127.0.0.1:9/v1",
                "eval.judge.base_url must be the address of an OpenAI-compat",
            ),
            (f"eval.judge.base_url={server.url.removesuffix('/v1')}", "/models answered 404"),
            ("eval.judge.model=another", f"eval.judge.model must be one that {server.url} serves (judge), got another"),
            ("eval.gamed_path=nowhere.csv", "eval.gamed_path must be an existing file, got nowhere.csv"),
            (f"eval.baseline_path={tmp_path}/few.json", "eval.baseline_path must have 805 rows, got 804"),
            (f"eval.baseline_path={tmp_path}/twice.json", "rows 1 and 805 of"),
        ):
            told = stopped([*judged, f"eval.judge.base_url={server.url}", change], tmp_path / "store", tmp_path / "bad")
            assert words in told
        assert server.requests == 0
    assert not list((tmp_path / "store").glob("samples/*/*.parquet"))


def test_a_judge_without_a_verdict_ends_a_run_before_anything_is_sampled_and_costs_two_answers(
    judged: list[str], tmp_path: Path
) -> None:
    for fault, words in (("text", "'I like both.' without log-probabilities"), ("no_logprobs", "without log-prob")):
        with JudgeServer({fault: 1.0}) as server:
            told = stopped([*judged, f"eval.judge.base_url={server.url}"], tmp_path / "store", tmp_path / fault)
            assert "the test request was answered without a verdict" in told
            assert words in told
            assert server.requests == 2
    assert not list((tmp_path / "store").glob("samples/*/*.parquet"))


def test_the_test_is_paid_once_and_a_finished_run_needs_neither_key_nor_address(
    finished: tuple[Path, dict[str, Any]], judged: list[str], tmp_path: Path
) -> None:
    with JudgeServer() as server:
        overrides = [*judged, f"eval.judge.base_url={server.url}"]
        first = finish(overrides, finished[0], tmp_path / "first")
        assert server.requests == 1 + 6
        assert made(first)[0] == "test the judge of alpaca_eval_2"
        more = finish([*overrides, "eval.limit=8"], finished[0], tmp_path / "more")
        assert server.requests == 1 + 8
        assert made(more) == ["sample alpaca_eval_2", "evaluate alpaca_eval_2"]
    # the server is gone
    keyless = [*overrides, "eval.judge.key_variable=NO_SUCH_KEY"]
    again = finish(keyless, finished[0], tmp_path / "again")
    assert (again["made"], again["evaluations"]) == (0, first["evaluations"])
    # other intervals are worked out from the answers that are there
    other = finish([*keyless, "eval.resamples=2000"], finished[0], tmp_path / "other")
    assert other["evaluations"][0]["win_rate"] == first["evaluations"][0]["win_rate"]
    told = stopped([*overrides, "strategy=random"], finished[0], tmp_path / "stopped")
    assert "eval.judge.base_url must be the address of an OpenAI-compatible judge" in told


def test_a_run_is_judged_by_several_evaluations_and_compared_with_another(
    finished: tuple[Path, dict[str, Any]], judged: list[str], tiny_reward: Path, tmp_path: Path
) -> None:
    judged += [
        "+eval@also.reward=alpaca_eval_2",
        "judge@also.reward.judge=reward_model",
        "reward_model@also.reward.judge.reward_model=sequence_classifier",
        f"also.reward.judge.reward_model.path={tiny_reward}",
        "also.reward.judge.name=tiny",
        f"also.reward.baseline_path={tmp_path}/baseline.json",
        f"also.reward.gamed_path={tmp_path}/df_gamed.csv",
        "also.reward.limit=6",
        "sampler@also.reward.sampler=transformers",
        "also.reward.sampler.dtype=float32",
        "also.reward.sampler.max_tokens=8",
        "also.reward.sampler.tile_prompts=10",
    ]
    with JudgeServer() as server:
        url = f"eval.judge.base_url={server.url}"
        one = finish([*judged, url], finished[0], tmp_path / "one")
        two = finish([*judged, url, "strategy=random"], finished[0], tmp_path / "two")
        assert server.requests == 1 + 6 + 6
    asked, rewarded = one["evaluations"]
    assert (asked["name"], asked["judge"], asked["partial"]) == ("alpaca_eval_2", "loopback", True)
    assert asked["length_controlled_winrate"] is None
    assert (rewarded["name"], rewarded["judge"], rewarded["n_prompts"]) == ("reward", "tiny", 6)
    assert "partial result" in (tmp_path / "one" / "report.html").read_text()
    manifests = [str(tmp_path / name / "manifest.json") for name in ("one", "two")]
    command = [sys.executable, "-m", "sweetspot.eval", "compare", *manifests, "--out", str(tmp_path / "out")]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert "alpaca_eval_2 against base by loopback, partial" in shown
    assert "alpaca_eval_2 against base by tiny, partial" in shown
    assert two["evaluations"][0]["key"] != asked["key"]


def test_a_run_that_is_killed_while_it_samples_and_three_times_while_it_judges_pays_each_answer_once(
    finished: tuple[Path, dict[str, Any]], judged: list[str], tmp_path: Path
) -> None:
    store = shutil.copytree(finished[0], tmp_path / "store")  # the policy is there, its answers and judgements are not
    judged = [*judged, "eval.limit=150"]
    with JudgeServer() as server:
        whole = finish([*judged, f"eval.judge.base_url={server.url}"], finished[0], tmp_path / "whole")
        needed = server.requests
    with JudgeServer(FAULTS, 0.05) as server:
        overrides = [*judged, f"eval.judge.base_url={server.url}"]
        folder = tmp_path / "killed_sampling"
        kill(start(overrides, store, folder), lambda: events(folder, "sample-alpaca_eval_2").count('"made"') >= 1)
        assert server.counts["answered"] == 1  # the test
        for stop_at in (20, 60, 100):
            folder = tmp_path / f"killed_at_{stop_at}"
            kill(start(overrides, store, folder), lambda at=stop_at: server.requests >= at)
        last = finish(overrides, store, tmp_path / "last")
        assert server.requests <= needed + server.failures + 4 * CONNECTIONS
    tables = [
        read_tile(place / run["evaluations"][0]["path"], SCORES)[0]
        for place, run in ((finished[0], whole), (store, last))
    ]
    assert tables[0].equals(tables[1])
    assert last["evaluations"][0]["spent"]["requests"] < needed


def events(folder: Path, stage: str) -> str:
    """What the workers of a stage told so far."""
    return "".join(path.read_text() for path in folder.glob(f"jobs/*-{stage}/events.jsonl"))
