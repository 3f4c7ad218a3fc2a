"""Arena-Hard: labels, joining by uid, lines that hold other line separators, and the score that counts strong verdicts
three times."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sweetspot.eval.arena import ArenaHard, figures, label, read, shown
from tests.alpaca import DATA
from tests.test_alpaca import evaluation

ARENA = DATA / "arena_hard"


def arena(folder: Path, questions: Path, baseline: Path, **changes: Any) -> ArenaHard:
    common = evaluation(folder)
    fields: dict[str, Any] = {
        "judge": common.judge,
        "sampler": common.sampler,
        "questions_path": str(questions),
        "baseline_path": str(baseline),
        "category": None,
        "system_prompt": "Judge.",
        "system_prompt_path": None,
        "max_tokens": 64,
        "temperature": 0.0,
        "limit": None,
        "resamples": 1000,
        "max_cost": None,
    }
    return ArenaHard(**{**fields, **changes})


def files(folder: Path, answered: list[str]) -> tuple[Path, Path]:
    """Two questions, the first with a line separator inside, and the baseline's answers in the other order."""
    questions = [
        {"uid": "a", "category": "hard_prompt", "prompt": "One\u2028line?"},
        {"uid": "b", "category": "creative_writing", "prompt": "Two?"},
    ]
    answers = [
        {"uid": uid, "model": "base", "messages": [{}, {"role": "assistant", "content": {"answer": f"Answer {uid}."}}]}
        for uid in answered
    ]
    (folder / "q.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in questions))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in answers).encode()))
    return folder / "q.jsonl", folder / "a.jsonl.gz"


def test_questions_and_answers_are_joined_by_uid(tmp_path: Path) -> None:
    found = read(arena(tmp_path, *files(tmp_path, ["b", "a"])))
    assert found.instructions == ["One\u2028line?", "Two?"]
    assert found.outputs == ["Answer a.", "Answer b."]
    assert (found.generator, found.whole) == ("base", 2)


def test_a_category_or_a_limit_takes_a_part_and_a_missing_answer_is_one_line(tmp_path: Path) -> None:
    places = files(tmp_path, ["a"])
    assert read(arena(tmp_path, *places, category="hard_prompt")).outputs == ["Answer a."]
    with pytest.raises(ValueError, match=r"must answer every question, 1 are missing: b"):
        read(arena(tmp_path, *places))
    with pytest.raises(ValueError, match=r"eval.category must be one of the questions', got poems"):
        read(arena(tmp_path, *places, category="poems"))


def test_a_row_of_another_form_is_one_line(tmp_path: Path) -> None:
    questions, answers = files(tmp_path, ["b", "a"])
    (tmp_path / "bad.jsonl").write_text('{"uid": "a", "model": "base", "messages": [{"content": "text"}]}\n[]\n')
    bad = tmp_path / "bad.jsonl"
    with pytest.raises(ValueError, match=r"eval.questions_path: row 1 of .*bad.jsonl must have uid, prompt"):
        read(arena(tmp_path, bad, answers))
    with pytest.raises(ValueError, match=r"eval.baseline_path: row 2 of .*bad.jsonl must have uid, model, messages"):
        read(arena(tmp_path, questions, bad))
    bad.write_text("".join(bad.read_text().splitlines(keepends=True)[:1]))
    with pytest.raises(ValueError, match=r"the last message of a must have a text content.answer"):
        read(arena(tmp_path, questions, bad, category="hard_prompt"))
    answers.write_bytes(answers.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"eval.baseline_path must be a text file, maybe gzipped, got .*a.jsonl.gz"):
        read(arena(tmp_path, questions, answers))


def test_a_verdict_is_the_one_label_of_the_answer() -> None:
    def said(text: str) -> str | None:
        return label({"choice": {"text": text}})

    assert said("So [[A>B]].") == "A>B"
    assert said("[[B>>A]], I repeat: [[B>>A]]") == "B>>A"
    assert said("[[A>B]] or [[B>A]]") is None
    assert said("[[A]]") is None
    assert said("none") is None


def test_the_texts_cannot_fill_each_other_s_places() -> None:
    row = {"instruction": "Explain {first}.", "response": "policy {second}", "baseline": "base"}
    text = shown(row, policy_first=True)
    assert "Explain {first}." in text
    assert text.index("policy {second}") < text.index("base\n")


def test_strong_verdicts_count_three_times() -> None:
    # won strongly (3 of 3) and lost (0 of 1) for one question, two draws for the other: (3 + 0 + .5 + .5) / 6
    orders = [
        [{"preference": 1.0, "weight": 3.0}, {"preference": 0.0, "weight": 1.0}],
        [{"preference": 0.5, "weight": 1.0}, {"preference": 0.5, "weight": 1.0}],
    ]
    assert figures(orders, 1000, 0)["score"] == pytest.approx(100 * 4 / 6)


@pytest.mark.skipif(not ARENA.is_dir(), reason="Arena-Hard's public data are not here")
def test_both_published_versions_are_read(tmp_path: Path) -> None:
    old = read(arena(tmp_path, ARENA / "question_v0.1.jsonl", ARENA / "baseline_v0.1_gpt-4-0314.jsonl.gz"))
    assert (len(old.instructions), old.generator) == (500, "gpt-4-0314")
    new = ARENA / "question_v2.0.jsonl", ARENA / "baseline_v2.0_o3-mini-2025-01-31.jsonl.gz"
    assert len(read(arena(tmp_path, *new, category="hard_prompt")).instructions) == 500
    assert len(read(arena(tmp_path, *new)).instructions) == 750
