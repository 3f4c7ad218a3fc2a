"""A reward model against local preferences: forms of files, accuracies worked by hand, and the calibrating scale."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweetspot.component import build
from sweetspot.eval.reward_bench import Pair, RewardBench, calibrated, figures, of_rows, read, scale_interval

CLASSIFIER = {
    "_target_": "sweetspot.reward_model.SequenceClassifier",
    **{"path": "some/classifier", "revision": None, "dtype": "float32", "max_tokens": 64},
    **{"trust_remote_code": False, "batch_tokens": 64},
}


def bench(folder: Path, files: dict[str, str], **changes: Any) -> RewardBench:
    fields: dict[str, Any] = {"half": None, "limit": None, "resamples": 1000, "seed": 0}
    return RewardBench(reward_model=build(CLASSIFIER), folder=str(folder), files=files, **{**fields, **changes})


def test_four_forms_of_rows_are_read() -> None:
    votes = {"annotator1": "2", "annotator2": "2", "annotator3": "0"}
    rows: list[dict[str, Any]] = [
        {"instruction": "Say it.", "input": "Now.", "response1": "a", "response2": True, **votes},
        {"instruction": "Split.", "input": "", "response1": "a", "response2": "b", **votes, "annotator3": "1"},
        {"input": "q", "output_1": "x", "output_2": "y", "label": "1"},
        {"instruction": "q", "output_1": "x", "output_2": "y", "preference": 1.9},
        {"instruction": "draw", "output_1": "x", "output_2": "y", "preference": 1.5},
        {"prompt": "q", "chosen": "yes", "rejected": "no"},
    ]
    assert list(of_rows("s", rows)) == [
        Pair("s", "Say it.\n\nNow.", "True", "a"),
        Pair("s", "q", "x", "y"),
        Pair("s", "q", "y", "x"),
        Pair("s", "q", "yes", "no"),
    ]
    with pytest.raises(ValueError, match="a row must have prompt, chosen, rejected, got text"):
        list(of_rows("s", [{"text": "x"}]))


def test_accuracy_counts_ties_as_halves_and_stands_beside_longer_wins() -> None:
    pairs = [
        Pair("a", "p", "long text", "short"),  # right
        Pair("a", "p", "tiny", "much longer"),  # wrong
        Pair("b", "q", "tiny", "much longer"),  # right
        Pair("b", "r", "same", "size"),  # a tie, of equal length
    ]
    found = figures(pairs, np.array([1.0, -1.0, 2.0, 0.0]), 1000, 0)
    whole, near, first, second = found["parts"]
    assert (whole["n"], whole["accuracy"], whole["longer"]) == (4, 2.5 / 4, 1.5 / 4)
    assert whole["balanced"] == pytest.approx((1.0 + 0.5) / 2)  # longer chosen: 1 of 1; shorter chosen: 1 of 2
    assert (near["name"], near["n"]) == ("lengths within 25%", 1)
    assert (first["name"], first["accuracy"], second["accuracy"]) == ("a", 0.5, 0.75)
    assert (found["n_pairs"], found["n_prompts"]) == (4, 3)


def test_the_calibrating_scale_is_that_of_the_logistic_law() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=20_000)  # logits
    agreed = rng.uniform(size=20_000) < 1 / (1 + np.exp(-truth))
    scale, loss = calibrated(np.where(agreed, truth, -truth) / 3.0)  # a reward in units three times as large
    assert scale == pytest.approx(3.0, rel=0.1)
    assert loss < np.log(2)


def test_the_interval_of_the_scale_holds_the_known_one_and_is_wider_for_pairs_of_one_prompt() -> None:
    rng, held, margins = np.random.default_rng(1), 0, np.zeros(300)
    prompts = [str(number) for number in range(300)]
    for _ in range(400):  # a scale of 0.5: nineteen in twenty intervals hold it
        margins = rng.normal(0, 4, size=300)
        margins = np.where(rng.uniform(size=300) < 1 / (1 + np.exp(-0.5 * margins)), margins, -margins)
        low, high = scale_interval(calibrated(margins)[0], margins, prompts)
        held += low <= 0.5 <= high
    assert 0.91 <= held / 400 <= 0.98
    scale, _ = calibrated(margins)
    once = np.diff(scale_interval(scale, margins, prompts))
    thrice = np.diff(scale_interval(scale, np.tile(margins, 3), prompts * 3))
    assert thrice == pytest.approx(once)  # three copies of each pair say nothing new


def test_halves_are_disjoint_by_prompt_and_a_limit_cuts_each_source(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{number // 2}", "chosen": f"c{number}", "rejected": "r"} for number in range(80)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"own": "own.jsonl"}
    halves = [{pair.prompt for pair in read(bench(tmp_path, files, half=half))} for half in (0, 1)]
    assert halves[0].isdisjoint(halves[1])
    assert len(halves[0] | halves[1]) == 40
    assert len(read(bench(tmp_path, files, limit=7))) == 7
    with pytest.raises(ValueError, match=r"eval.files.own must be an existing file, got .*nowhere"):
        read(bench(tmp_path / "nowhere", files))
