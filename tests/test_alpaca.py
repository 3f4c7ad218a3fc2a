"""AlpacaEval's prompts and baseline: every fault of a file is one line, and the order of rows decides about LC only."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sweetspot.component import build
from sweetspot.eval.alpaca import AlpacaEval, read_baseline, verdict
from sweetspot.eval.judge import forecast
from sweetspot.stages import check
from sweetspot.stages.judged import JUDGE_PROMPT_CHARACTERS
from tests.alpaca import annotations, needs_alpaca, outputs
from tests.judging import judge

ROWS = [{"instruction": f"Do {number}.", "output": f"Done {number}.", "generator": "base"} for number in range(805)]


def written(folder: Path, rows: Any, name: str = "baseline.json") -> Path:
    text = json.dumps(rows).encode()
    (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return folder / name


def test_a_baseline_is_read_plain_or_gzipped_and_cut_by_the_limit(tmp_path: Path) -> None:
    whole = read_baseline(written(tmp_path, ROWS), None)
    assert (whole.generator, len(whole.instructions), whole.whole) == ("base", 805, 805)
    part = read_baseline(written(tmp_path, ROWS, "baseline.json.gz"), 20)
    assert part.outputs == [f"Done {number}." for number in range(20)]
    assert part.whole == 805


def test_another_order_gives_the_same_prompts(tmp_path: Path) -> None:
    there = read_baseline(written(tmp_path, ROWS), None)
    back = read_baseline(written(tmp_path, ROWS[::-1], "back.json"), None)
    assert back.prompt_ids == there.prompt_ids[::-1]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ROWS[:-1], "must have 805 rows, got 804"),
        ([*ROWS[:-1], ROWS[0]], "rows 1 and 805 of .* have the same instruction"),
        ([*ROWS[:-1], {"instruction": "x"}], "row 805 of .* must have the texts instruction and output"),
        ({"rows": ROWS}, "must hold a list of rows, got dict"),
    ],
)
def test_a_bad_baseline_is_one_line(tmp_path: Path, rows: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        read_baseline(written(tmp_path, rows), None)
    assert "\n" not in str(refused.value)


def test_a_missing_or_unreadable_baseline_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be an existing file, got .*nowhere"):
        read_baseline(tmp_path / "nowhere.json", None)
    (tmp_path / "page.json").write_text("<html>")
    with pytest.raises(ValueError, match="must be a JSON file"):
        read_baseline(tmp_path / "page.json", None)


def evaluation(folder: Path, **changes: Any) -> AlpacaEval:
    sampler = {
        "seed": 0,
        "temperature": 0.8,
        "top_p": 1.0,
        "max_tokens": 8,
        "max_prompt_tokens": 64,
        "dtype": "float32",
    }
    target = {
        "_target_": "sweetspot.sampler.TransformersSampler",
        "tile_prompts": 8,
        "tile_samples": 1,
        "budget": "uniform",
        "pilot_samples": 16,
        "mean_samples": None,
        "gain_threshold": 0.0,
        "tail": "upper",
        "batch_size": 8,
    }
    fields: dict[str, Any] = {
        "judge": judge("http://127.0.0.1:9/v1"),
        "sampler": build({**sampler, **target}),
        "baseline_path": str(written(folder, ROWS)),
        "gamed_path": None,
        "revision": "main",
        "limit": None,
        "resamples": 1000,
        "max_cost": None,
    }
    return AlpacaEval(**{**fields, **changes})


def test_a_run_tells_the_price_and_what_will_be_missing_before_it_starts(tmp_path: Path) -> None:
    told = check({"alpaca": evaluation(tmp_path, limit=100)})
    assert told[0] == "alpaca: df_gamed.csv was not found, so there is a win rate and no length-controlled one"
    assert told[1].startswith("alpaca: 100 of 805 prompts: a partial result")
    # ten rows of 1,419 characters are 309 tokens each, ninety of 1,422 are 310
    assert "100 requests, about 30,990 tokens and at most 0.31 USD" in told[2]
    assert len(told) == 3


def test_what_would_stop_a_run_at_its_end_stops_it_at_its_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"eval.max_cost must cover judging by loopback \(805 requests.*, got 0.5"):
        check({"alpaca": evaluation(tmp_path, max_cost=0.5)})
    with pytest.raises(ValueError, match=r"eval.gamed_path must be an existing file, got nowhere"):
        check({"alpaca": evaluation(tmp_path, gamed_path="nowhere.csv")})
    with pytest.raises(ValueError, match="must have 805 rows"):
        check({"alpaca": evaluation(tmp_path, baseline_path=str(written(tmp_path, ROWS[:9], "few.json")))})


@needs_alpaca
def test_difficulties_that_will_be_needed_are_read_before_the_run_and_another_order_is_told(tmp_path: Path) -> None:
    (tmp_path / "df_gamed.csv").write_text("index\n")
    gamed = str(tmp_path / "df_gamed.csv")
    published = outputs("gpt4_1106_preview")
    there = evaluation(tmp_path, gamed_path=gamed, baseline_path=str(written(tmp_path, published, "there.json")))
    with pytest.raises(ValueError, match=r"eval.gamed_path must have the columns"):
        check({"alpaca": there})
    back = evaluation(tmp_path, gamed_path=gamed, baseline_path=str(written(tmp_path, published[::-1], "back.json")))
    assert "alpaca: not the 805 published prompts in their order" in check({"alpaca": back})[0]


def test_a_verdict_needs_one_of_the_two_tokens() -> None:
    def answer(*rows: tuple[str, float]) -> dict[str, Any]:
        listed = [{"token": token, "logprob": value} for token, value in rows]
        return {"choice": {"logprobs": {"content": [{"top_logprobs": listed}]}}}

    assert verdict(answer(("m", -0.6931471805599453), ("M", -0.6931471805599453))) == pytest.approx(0.5)
    assert verdict(answer(("The", -0.1), ("m", -3.0))) == 1.0
    assert verdict(answer(("The", -0.1))) is None
    assert verdict({"choice": {"logprobs": None}}) is None
    assert verdict({"choice": {"logprobs": {"content": []}}}) is None


@needs_alpaca
@pytest.mark.parametrize("model", ["gpt-3.5-turbo-1106", "alpaca-7b", "gemma-7b-it", "NullModel"])
def test_the_forecast_of_tokens_is_within_10_percent_of_what_the_published_judgements_took(model: str) -> None:
    rows = [row for row in annotations(model) if row["price_per_example"]]
    tokens = sum(row["price_per_example"] for row in rows) / 1e-5  # 0.01 USD for 1,000
    lengths = [len(row["instruction"] + row["output_1"] + row["output_2"]) + JUDGE_PROMPT_CHARACTERS for row in rows]
    assert forecast(judge("http://127.0.0.1:9/v1"), lengths, 1)["tokens"] == pytest.approx(tokens, rel=0.1)
