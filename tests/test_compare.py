"""Comparing runs: real judgements by the path of a run, judges kept apart, and prompts that must be the same."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sweetspot.eval import worker
from sweetspot.eval.compare import main, read, tables
from sweetspot.eval.comparison import Settings
from sweetspot.schema import SCORES, prompt_id
from sweetspot.store import read_tile
from tests.alpaca import GAMED, annotations, needs_alpaca
from tests.judging import job, judge

SETTINGS = Settings(resamples=200, seed=0, planned=None, effect=1.0)


def manifest(folder: Path, name: str, rows: list[dict[str, Any]], **facts: Any) -> Path:
    """The manifest of a run whose judgements are the given preferences."""
    store = folder / "store"
    told = {"judge": "gpt4_1106", "judge_key": "j1", "baseline": "base", "partial": False, **facts}
    spec = job(rows, judge("http://127.0.0.1:9/v1"), store / name, judge=None, gamed=str(GAMED), facts=told)
    worker.main({**spec, "store": str(store), "label": told["judge"]}, lambda _: None)
    metrics = read_tile(store / name / "scores.parquet", SCORES)[1]
    found = {"name": "alpaca_eval_2", "kind": "alpaca_eval_2", "key": name, "path": f"{name}/scores.parquet", **metrics}
    rounds = [{"pairs": {"strategy": name}, "samples": {"n_samples": 64}}]
    (folder / f"{name}.json").write_text(json.dumps({"store": str(store), "rounds": rounds, "evaluations": [found]}))
    return folder / f"{name}.json"


def published(model: str) -> list[dict[str, Any]]:
    """A model's published judgements as PAIRINGS."""
    return [
        {
            "prompt_id": prompt_id([{"role": "user", "content": row["instruction"]}]),
            "instruction": row["instruction"],
            "response": row["output_2"],
            "baseline": row["output_1"],
            "preference": 0.5 if row["preference"] == 0 else row["preference"] - 1,
        }
        for row in annotations(model)
    ]


def made_up(n: int, shift: float) -> list[dict[str, Any]]:
    return [
        {
            **{"prompt_id": f"{number:016x}", "instruction": f"q{number}", "response": "r", "baseline": "b"},
            "preference": min(1.0, (number * 7 % 10) / 10 + shift),
        }
        for number in range(n)
    ]


@pytest.mark.slow
@needs_alpaca
def test_published_judgements_are_compared_by_win_rate_and_by_refitted_length_control(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = "FuseChat-Llama-3.1-8B-Instruct"
    paths = [manifest(tmp_path, first, published(first)), manifest(tmp_path, "gemma", published("gemma-7b-it"))]
    facts = read(paths)[0].facts
    assert facts["win_rate"] == pytest.approx(63.3319, abs=1e-3)
    assert facts["length_controlled_winrate"] == pytest.approx(65.3862, abs=0.01)
    assert "not the published" in facts["difficulty"]
    main([*map(str, paths), "--out", str(tmp_path / "out"), "--resamples", "200", "--planned-n", "1610"])
    shown = capsys.readouterr().out
    assert "alpaca_eval_2 against base by gpt4_1106" in shown
    rows = {row["figure"]: row for row in pq.read_table(tmp_path / "out" / "comparison.parquet").to_pylist()}
    wins, length = rows["win rate (%)"], rows["length-controlled win rate (%)"]
    assert wins["difference"] == pytest.approx(6.937 - 63.332, abs=0.01)
    assert length["difference"] == pytest.approx(10.426 - 65.386, abs=0.05)
    assert length["low"] < length["difference"] < length["high"] < 0
    assert wins["verdict"] == f"{first} n=64 is better"
    assert (wins["n"], wins["planned_n"]) == (805, 1610)
    assert wins["planned_detectable"] == pytest.approx(wins["detectable"] / 2**0.5)
    assert "| win rate (%): gemma n=64 - " in (tmp_path / "out" / "comparison.md").read_text()


@needs_alpaca
def test_a_policy_whose_judgements_barely_differ_is_not_distinguishable(tmp_path: Path) -> None:
    rows = published("gemma-7b-it")
    other = [
        {**row, "preference": rows[(number + 1) % 805]["preference"]} if number % 4 == 0 else row
        for number, row in enumerate(rows)
    ]
    paths = [manifest(tmp_path, "one", rows), manifest(tmp_path, "two", other)]
    (found,) = tables(read(paths), SETTINGS).values()
    assert {one.verdict for one in found} == {"not distinguishable"}
    length = found[1]
    assert abs(length.difference) < 3
    assert length.detectable > 1


def test_different_judges_never_share_a_table(tmp_path: Path) -> None:
    one = manifest(tmp_path, "one", made_up(20, 0.0))
    two = manifest(tmp_path, "two", made_up(20, 0.1), judge="gpt4_1", judge_key="j2")
    with pytest.raises(
        ValueError, match=r"no two runs share a benchmark, a baseline and a judge .*gpt4_1106.*gpt4_1\)"
    ):
        tables(read([one, two]), SETTINGS)
    three = manifest(tmp_path, "three", made_up(20, 0.1))
    four = manifest(tmp_path, "four", made_up(20, 0.2), judge="gpt4_1", judge_key="j2")
    found = tables(read([one, two, three, four]), SETTINGS)
    assert [(title.split()[-1], len(compared)) for title, compared in found.items()] == [
        ("gpt4_1106", 1),
        ("gpt4_1", 1),
    ]
    # two judges of one name are still two judges
    five = manifest(tmp_path, "five", made_up(20, 0.1), judge_key="j3")
    with pytest.raises(ValueError, match="no two runs share"):
        tables(read([one, five]), SETTINGS)


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    paths = [manifest(tmp_path, "one", made_up(20, 0.0)), manifest(tmp_path, "two", made_up(19, 0.0))]
    with pytest.raises(ValueError, match="must have the same prompts, got one n=64 20, two n=64 19"):
        tables(read(paths), SETTINGS)


def test_three_runs_are_compared_in_pairs_and_adjusted_over_them(tmp_path: Path) -> None:
    paths = [manifest(tmp_path, f"run{number}", made_up(50, 0.05 * number)) for number in range(3)]
    (found,) = tables(read(paths), SETTINGS).values()
    assert [(one.first, one.second) for one in found] == [
        ("run0 n=64", "run1 n=64"),
        ("run0 n=64", "run2 n=64"),
        ("run1 n=64", "run2 n=64"),
    ]
    assert all(one.p_holm >= one.p_bh >= one.p for one in found)
    assert found[0].difference == pytest.approx(5.0, abs=0.6)


def test_what_is_no_manifest_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "page.json").write_text("<html>")
    (tmp_path / "early.json").write_text('{"evaluations": [], "rounds": []}')
    with pytest.raises(ValueError, match=r"page.json must be a manifest.json"):
        read([tmp_path / "page.json"])
    with pytest.raises(ValueError, match=r"early.json must be the manifest of a run that was evaluated"):
        read([tmp_path / "early.json"])
    with pytest.raises(ValueError, match="two manifests or more"):
        main([str(tmp_path / "early.json")])
