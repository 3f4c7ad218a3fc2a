"""Judging over real HTTP: faults, kills and bad judges; what is paid is kept, and all prompts are judged or none."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sweetspot.component import component
from sweetspot.eval import worker
from sweetspot.eval.judge import OpenAIJudge, PairJudge
from tests.judge_server import JudgeServer, quality
from tests.judging import CONCURRENCY, job, judge, pairs, scores, swapped

ROOT = Path(__file__).parent.parent
FAULTS = {"500": 0.05, "429": 0.05, "no_logprobs": 0.02, "html": 0.01, "drop": 0.02}


def run(
    rows: list[dict[str, Any]], asked: OpenAIJudge | PairJudge, folder: Path, **changes: Any
) -> tuple[Any, dict[str, Any]]:
    """Rows and metrics of a judging in this process."""
    worker.main(job(rows, asked, folder, **changes), lambda _: None)
    return scores(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """805 pairs judged in one go."""
    with JudgeServer() as server:
        found = run(pairs(805), judge(server.url), tmp_path_factory.mktemp("undisturbed"))
        assert server.counts == {"answered": 797}  # eight pairs are equal and not asked for
        return found


@pytest.mark.slow
def test_805_prompts_are_judged_in_one_go(undisturbed: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
    rows, metrics = undisturbed
    for row, pair in zip(rows, pairs(805), strict=True):
        assert row["prompt_id"] == pair["prompt_id"]
        expected = 1 / (1 + 2.718281828459045 ** (quality(pair["baseline"]) - quality(pair["response"])))
        assert row["preference"] == pytest.approx(expected, abs=1e-9)
    assert (metrics["n_total"], metrics["n_draws"], metrics["spent"]["requests"]) == (805, 8, 797)
    assert metrics["win_rate"] == pytest.approx(100 * sum(row["preference"] for row in rows) / 805)
    assert metrics["length_controlled_winrate"] is None
    assert metrics["lc_note"] == "not the 805 published prompts in their order"
    assert metrics["spent"]["served_by"] == ["judge-2026"]


@pytest.mark.slow
def test_faults_and_three_kills_change_nothing_and_cost_nothing_twice(
    undisturbed: tuple[list[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    with JudgeServer(FAULTS, delay=0.02) as server:
        spec = job(pairs(805), judge(server.url), tmp_path)
        (tmp_path / "job.json").write_text(json.dumps(spec))
        command = [sys.executable, "-m", "tests.judging", str(tmp_path / "job.json"), str(tmp_path)]
        for stop_at in (150, 400, 650):
            process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
            while server.requests < stop_at:
                assert process.poll() is None
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
        assert server.requests <= 797 + server.failures + CONCURRENCY * 3
        assert set(server.counts) == {"answered", *FAULTS}
    rows, metrics = scores(tmp_path)
    assert rows == undisturbed[0]
    assert {name: metrics[name] for name in ("win_rate", "standard_error", "shown_first")} == {
        name: undisturbed[1][name] for name in ("win_rate", "standard_error", "shown_first")
    }
    kept = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(kept) == len({row["key"] for row in kept}) == 797


def test_a_finished_judging_asks_nothing_again(tmp_path: Path) -> None:
    with JudgeServer() as server:
        first = run(pairs(30), judge(server.url), tmp_path)
        (tmp_path / "scores.parquet").unlink()
        again = run(pairs(30), judge(server.url), tmp_path)
        assert server.requests == 30
    assert again[0] == first[0]
    assert again[1]["spent"]["requests"] == 0


def test_a_larger_set_asks_only_for_what_is_new(tmp_path: Path) -> None:
    with JudgeServer() as server:
        run(pairs(10), judge(server.url), tmp_path)
        for name in ("scores.parquet", "pairs.parquet"):
            (tmp_path / name).unlink()
        run(pairs(30), judge(server.url), tmp_path)
        assert server.requests == 30


def test_a_line_that_a_kill_cut_short_is_asked_for_again(tmp_path: Path) -> None:
    with JudgeServer() as server:
        first = run(pairs(10), judge(server.url), tmp_path)
        path = tmp_path / "answers.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
        (tmp_path / "scores.parquet").unlink()
        assert run(pairs(10), judge(server.url), tmp_path)[0] == first[0]
        assert server.requests == 11


def test_swapped_responses_give_one_minus_the_preference(tmp_path: Path) -> None:
    with JudgeServer() as server:
        there, _ = run(pairs(60), judge(server.url), tmp_path / "there")
        back, _ = run(swapped(pairs(60)), judge(server.url), tmp_path / "back")
    for one, other in zip(there, back, strict=True):
        assert other["preference"] == pytest.approx(1 - one["preference"], abs=1e-12)


def test_a_judge_that_always_answers_with_the_first_is_caught(tmp_path: Path) -> None:
    with JudgeServer(always="m") as server:
        _, metrics = run(pairs(99), judge(server.url), tmp_path)
    assert metrics["shown_first"] == pytest.approx(1.0)
    assert "prefers the response shown first: mean preference for the first 1.00" in metrics["order_warning"]


def test_a_judge_that_reads_the_texts_has_no_warning(
    undisturbed: tuple[list[dict[str, Any]], dict[str, Any]],
) -> None:
    metrics = undisturbed[1]
    assert metrics["shown_first_low"] <= 0.5 <= metrics["shown_first_high"]
    assert metrics["order_warning"] is None


def test_arena_hard_asks_both_orders_through_the_same_loop(tmp_path: Path) -> None:
    settings = {"system_prompt": "Judge.", "max_tokens": 64, "temperature": 0.0}
    with JudgeServer() as server:
        rows, metrics = run(pairs(40), judge(server.url), tmp_path, benchmark="arena_hard", settings=settings)
        assert server.requests == 80
    assert all([one["policy_first"] for one in row["orders"]] == [False, True] for row in rows)
    assert 0 <= metrics["score_low"] <= metrics["score"] <= metrics["score_high"] <= 100
    with JudgeServer(always="A") as server:
        _, biased = run(pairs(40), judge(server.url), tmp_path / "always", benchmark="arena_hard", settings=settings)
    assert biased["shown_first"] == pytest.approx(1.0)
    assert biased["score"] == pytest.approx(50.0)  # won once and lost once for every question


@component
class Fixed(PairJudge):
    """A judge of somebody's own that always says the same of the response shown first."""

    first: float

    def prefer(self, instruction: str, first: str, second: str) -> float:  # noqa: ARG002
        """The same."""
        return self.first


def test_a_judge_in_python_is_asked_in_both_orders_so_that_its_bias_shows(tmp_path: Path) -> None:
    rows, metrics = run(pairs(20), Fixed(name="fixed", first=0.75), tmp_path / "a")
    assert [one["preference"] for one in rows[0]["orders"]] == [0.75, 0.25]
    assert (metrics["win_rate"], metrics["shown_first"]) == (50.0, 0.75)
    assert "fixed prefers the response shown first" in metrics["order_warning"]
    settings = {"system_prompt": "Judge.", "max_tokens": 64, "temperature": 0.0}
    _, arena = run(pairs(20), Fixed(name="f", first=0.5), tmp_path / "b", benchmark="arena_hard", settings=settings)
    assert arena["score"] == 50.0
    with pytest.raises(ValueError, match=r"Fixed must prefer by a number from 0 to 1, got 1[.]5"):
        run(pairs(20), Fixed(name="fixed", first=1.5), tmp_path / "c")


@pytest.mark.parametrize(
    ("faults", "words", "most"),
    [
        ({"text": 1.0}, "the test request was answered without a verdict: 'I like both.' without log-prob", 2),
        ({"no_logprobs": 1.0}, "without log-probabilities", 2),
        ({"quota": 1.0}, "exceeded your current quota", 1),
        ({"500": 1.0}, "The server had an error", 8),
        ({"html": 1.0}, "no chat completion: '<html><body>Bad gateway", 8),
        ({"drop": 1.0}, "cannot be reached", 8),
    ],
)
def test_a_judge_that_cannot_judge_ends_in_one_line_after_two_answers_at_most(
    tmp_path: Path, faults: dict[str, float], words: str, most: int
) -> None:
    with JudgeServer(faults) as server, pytest.raises(ValueError) as stopped:
        run(pairs(50), judge(server.url), tmp_path)
    assert words in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert "0 of 50 answers are kept; the same command asks for the rest" in str(stopped.value)
    assert server.requests == most
    assert not (tmp_path / "scores.parquet").exists()


def test_a_judge_that_stops_giving_verdicts_is_not_asked_for_all_the_rest(tmp_path: Path) -> None:
    with JudgeServer(delay=0.005) as server:

        def spoil() -> None:
            while server.requests < 20:
                time.sleep(0.001)
            server.faults = {"text": 1.0}

        threading.Thread(target=spoil).start()
        with pytest.raises(ValueError, match=r"40 answers in a row hold no verdict, the last: 'I like both.'"):
            run(pairs(99), judge(server.url, concurrency=4, attempts=8), tmp_path)
        assert 40 <= server.counts["text"] <= 40 + 2 * 3  # those under way at the end, and beside the last good answer
        assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == server.counts["answered"]


def test_an_unreachable_address_and_a_refused_key_or_model_end_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with JudgeServer(key="secret") as server:
        monkeypatch.setenv("SOME_KEY", "wrong")
        with pytest.raises(ValueError, match="refused with 401"):
            run(pairs(5), judge(server.url, key_variable="SOME_KEY"), tmp_path)
        assert server.requests == 1
        monkeypatch.delenv("SOME_KEY")
        with pytest.raises(ValueError, match="the environment variable SOME_KEY is not set"):
            judge(server.url, key_variable="SOME_KEY").check()
        with pytest.raises(ValueError, match=r"must be one that .* serves"):
            judge(server.url, model="another").check()
        with pytest.raises(ValueError, match="/models answered 404"):
            judge(server.url.removesuffix("/v1")).check()
        judge(server.url).check()
        assert server.requests == 1
    with pytest.raises(ValueError, match="must be the address of an OpenAI-compatible judge"):
        judge("http://127.0.0.1:9/v1").check()
    with pytest.raises(ValueError, match="must be the address of an OpenAI-compatible judge"):
        judge("http://127.0.0.1:9/v1", lists_models=False).check()


def test_a_judge_that_lists_no_models_only_has_to_answer() -> None:
    with JudgeServer() as server:
        judge(server.url.removesuffix("/v1"), lists_models=False).check()
        assert server.requests == 0


@pytest.mark.parametrize("address", ["localhost:8000/v1", "http://", "http://host:port/v1", "ftp://host/v1"])
def test_an_address_that_is_none_is_refused_when_the_judge_is_made(address: str) -> None:
    with pytest.raises(ValueError, match="base_url must start with http:// or https:// and name a host"):
        judge(address)


@pytest.mark.slow
def test_a_run_that_stops_half_way_keeps_what_was_answered(tmp_path: Path) -> None:
    with JudgeServer({"quota": 0.02}) as server:
        with pytest.raises(ValueError, match="exceeded your current quota"):
            run(pairs(300), judge(server.url, concurrency=4), tmp_path)
        answered = server.counts["answered"]
        assert 0 < answered < 297
        assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == answered
        server.faults = {}
        run(pairs(300), judge(server.url, concurrency=4), tmp_path)
        assert server.counts["answered"] == 297


@pytest.mark.slow
def test_answers_without_a_verdict_fail_the_whole_and_are_asked_for_again(tmp_path: Path) -> None:
    with JudgeServer({"no_logprobs": 0.3}) as server:
        with pytest.raises(ValueError, match=r"answers hold no verdict after 2 attempts each; \d+ of 99 answers"):
            run(pairs(100), judge(server.url, attempts=2, concurrency=1), tmp_path)
        assert not (tmp_path / "scores.parquet").exists()
        server.faults = {}
        rows, _ = run(pairs(100), judge(server.url, attempts=2), tmp_path)
        assert len(rows) == 100
        assert server.counts["answered"] == 99


def test_the_price_is_forecast_and_a_limit_stops_before_anything_is_asked(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    with JudgeServer() as server:
        with pytest.raises(ValueError, match=r"eval.max_cost must cover .*100 requests.* USD\), got 0.01"):
            worker.main(job(pairs(101), judge(server.url), tmp_path, max_cost=0.01), events.append)
        assert server.requests == 0
    plan = next(event["metrics"] for event in events if "metrics" in event)
    assert plan["judge/forecast_requests"] == 100
    assert plan["judge/forecast_price"] == pytest.approx(plan["judge/forecast_tokens"] * 1e-5 + 100 * 3e-5)


def test_a_cost_above_the_limit_stops_while_asking(tmp_path: Path) -> None:
    with JudgeServer() as server:
        asked = judge(server.url, price_out=1e4, concurrency=1)  # 0.01 USD a verdict, and about 0.004 for reading
        with pytest.raises(ValueError, match=r"eval.max_cost is 0.50 USD and 0.5\d are spent"):
            ask_with_a_wrong_forecast(asked, tmp_path)
        assert 20 <= server.requests <= 60


def ask_with_a_wrong_forecast(asked: OpenAIJudge, folder: Path) -> None:
    """Ask for 100 verdicts with a limit that only the real count of tokens passes."""
    from sweetspot.eval.alpaca import annotate, verdict
    from sweetspot.eval.answers import Answers
    from sweetspot.eval.asking import ask

    answers = Answers(folder / "answers.jsonl")
    annotate(
        pairs(99),
        lambda bodies: [row["choice"] for row in ask(bodies, asked, answers, verdict, 0.5, lambda *_: None)[0]],
    )


def test_the_requests_are_those_of_alpaca_eval_s_own_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's annotator with its own OpenAI client, and ours, send the same bodies for the same pairs."""
    from alpaca_eval.annotators import PairwiseAnnotator

    from sweetspot.eval.alpaca import ANNOTATOR, annotation

    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with JudgeServer(model="gpt-4-1106-preview") as server:
        theirs = PairwiseAnnotator(annotators_config=ANNOTATOR, caching_path=None, is_avoid_reannotations=False)
        (single,) = theirs.annotators.values()
        single.completions_kwargs |= {"client_kwargs": {"base_url": server.url}, "num_procs": 4}
        expected = theirs.annotate_pairs([annotation(row, "policy", "baseline") for row in pairs(30)])
        sent_by_them = sorted(json.dumps(body, sort_keys=True) for body in server.bodies)
        server.bodies.clear()
        rows, _ = run(pairs(30), judge(server.url, model="gpt-4-1106-preview"), tmp_path)
        assert sorted(json.dumps(body, sort_keys=True) for body in server.bodies) == sent_by_them
    assert [row["preference"] for row in rows] == [row["preference"] - 1 for row in expected]
