"""IFEval: checkers by hand on texts that do and do not follow, offline; and every kind of the published prompts."""

import json
from pathlib import Path
from typing import Any

import pytest

from sweetspot.eval.ifeval import IFEval, check, checkers, figures, main, read
from sweetspot.schema import CHECKED, prompt_id
from sweetspot.stages.checked import asked
from sweetspot.store import read_tile, write_tile
from tests.alpaca import DATA
from tests.test_alpaca import evaluation

PUBLISHED = DATA / "ifeval" / "input_data.jsonl"


def row(response: str, instructions: list[str], settings: list[dict[str, Any]]) -> dict[str, Any]:
    named = {"instructions": json.dumps(instructions), "settings": json.dumps(settings)}
    return {"prompt_id": "p", "prompt": "Do it.", "response": response, **named}


@pytest.mark.parametrize(
    ("response", "name", "settings", "strict", "loose"),
    [
        ("No commas here", "punctuation:no_comma", {}, True, True),
        ("One, two", "punctuation:no_comma", {}, False, False),
        ("Sure, here:\nno commas", "punctuation:no_comma", {}, False, True),  # without the first line
        ("a b c", "length_constraints:number_words", {"relation": "at least", "num_words": 3}, True, True),
        ("a b", "length_constraints:number_words", {"relation": "at least", "num_words": 3}, False, False),
        (
            "Dr. Smith went home. He was tired.",  # two sentences: "Dr." ends none
            "length_constraints:number_sentences",
            {"relation": "less than", "num_sentences": 3},
            True,
            True,
        ),
        (
            "One. Two. Three.",
            "length_constraints:number_sentences",
            {"relation": "less than", "num_sentences": 3},
            False,
            False,
        ),
        (
            "I SAID it LOUD",
            "change_case:capital_word_frequency",
            {"capital_relation": "at least", "capital_frequency": 3},
            True,
            True,
        ),
        ("", "punctuation:no_comma", {}, False, False),
    ],
)
def test_a_response_follows_an_instruction_or_not(
    response: str, name: str, settings: dict[str, Any], strict: bool, loose: bool
) -> None:
    found = check(row(response, [name], [settings]), checkers())
    assert (found["strict"], found["loose"]) == ([strict], [loose])


def test_an_unknown_instruction_is_refused() -> None:
    with pytest.raises(ValueError, match="no checker knows the instruction magic:spell"):
        check(row("x", ["magic:spell"], [{}]), checkers())


def test_accuracy_by_prompt_needs_all_instructions_and_by_instruction_counts_each() -> None:
    checked = [
        {"instructions": ["a", "b"], "strict": [True, False], "loose": [True, True], "response": "x"},
        {"instructions": ["a"], "strict": [True], "loose": [True], "response": ""},
    ]
    found = figures(checked, 1000, 0)
    assert found["prompt_strict"] == 50.0
    assert found["instruction_strict"] == pytest.approx(200 / 3)
    assert found["prompt_loose"] == found["instruction_loose"] == 100.0
    assert (found["n_instructions"], found["empty"]) == (3, 1)


def ifeval(folder: Path, path: Path) -> IFEval:
    return IFEval(sampler=evaluation(folder).sampler, path=str(path), limit=None, resamples=1000)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{}", "line 1 of .* must have prompt, instruction_id_list and as many kwargs"),
        ('{"prompt": "x", "instruction_id_list": ["a"], "kwargs": []}', "as many kwargs"),
        ("no json", "line 1 of"),
        ("", "must hold every prompt once"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "data.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=words):
        read(ifeval(tmp_path, tmp_path / "data.jsonl"))


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="IFEval's prompts are not here")
def test_every_published_prompt_is_checked_offline(tmp_path: Path) -> None:
    rows, whole, _ = read(ifeval(tmp_path, PUBLISHED))
    assert whole == len(rows) == 541
    table = asked(rows, ["This is a short answer. It has two sentences."] * len(rows))
    write_tile(tmp_path / "responses.parquet", table, {})
    places = {"responses": str(tmp_path / "responses.parquet"), "checked": str(tmp_path / "checked.parquet")}
    main({**places, "facts": {"partial": False}, "resamples": 1000, "seed": 0}, lambda _: None)
    checked, found = read_tile(tmp_path / "checked.parquet", CHECKED)
    assert checked.num_rows == 541
    assert found["n_instructions"] == 834
    assert 0 < found["prompt_strict"] < found["instruction_strict"] < 50
    assert found["instruction_strict"] <= found["instruction_loose"]
    assert checked["prompt_id"][0].as_py() == prompt_id([{"role": "user", "content": rows[0]["prompt"]}])
