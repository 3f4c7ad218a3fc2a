"""Arena-Hard: hard questions, each pair judged in both orders, verdicts from A>>B to B>>A.

The published judge prompts are not shipped. `system_prompt` is our own wording with the published labels, so figures
are comparable among policies judged here, and with the leaderboard only where `system_prompt_path` names the published
text. Style control is left out: it needs the judgements of all other models of a leaderboard.

Source: Li et al. 2024, From Crowdsourced Data to High-Quality Benchmarks, 2406.11939.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from sweetspot.component import component
from sweetspot.eval.benchmark import Baseline, Judged, text_of
from sweetspot.eval.judged import preference_of
from sweetspot.statistics import as_floats, bootstrap_ratio
from sweetspot.visible import encodable, halves

LABEL = re.compile(r"\[\[([AB<>=]+)\]\]")
# of the answer shown first: its preference, and how often the verdict counts (a strong one three times, as published)
LABELS = {
    **dict.fromkeys(("A>>B", "B<<A"), (1.0, 3.0)),
    **dict.fromkeys(("A>B", "B<A"), (1.0, 1.0)),
    **dict.fromkeys(("A=B", "B=A"), (0.5, 1.0)),
    **dict.fromkeys(("A<B", "B>A"), (0.0, 1.0)),
    **dict.fromkeys(("A<<B", "B>>A"), (0.0, 3.0)),
}
TEMPLATE = (
    "<|User Prompt|>\n{question}\n\n"
    "<|The Start of Assistant A's Answer|>\n{first}\n<|The End of Assistant A's Answer|>\n\n"
    "<|The Start of Assistant B's Answer|>\n{second}\n<|The End of Assistant B's Answer|>"
)


@component
class ArenaHard(Judged):
    """One response to each question, judged against the baseline's in both orders."""

    version: ClassVar[int] = 1
    questions_path: str = Field(min_length=1)
    baseline_path: str = Field(min_length=1)
    category: str | None
    system_prompt: str = Field(min_length=1)
    system_prompt_path: str | None
    max_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0)

    def settings(self) -> dict[str, Any]:
        """What the judge is sent beside the pair."""
        text = self.system_prompt
        if self.system_prompt_path is not None:
            text = text_of(self.system_prompt_path, "eval.system_prompt_path")
        return {"system_prompt": text, "max_tokens": self.max_tokens, "temperature": self.temperature}


def read(evaluation: ArenaHard) -> Baseline:
    """The questions with the baseline's answers, joined by uid, in the questions' order.

    Raises:
        ValueError: one line for a missing file, a bad row, a question that stands there twice or has no baseline.
    """
    questions = _rows(evaluation.questions_path, "eval.questions_path", ("uid", "prompt"))
    if evaluation.category is not None:
        questions = [row for row in questions if row.get("category") == evaluation.category]
    if not questions:
        raise ValueError(f"eval.category must be one of the questions', got {evaluation.category}")
    listed = _rows(evaluation.baseline_path, "eval.baseline_path", ("uid", "model", "messages"))
    answers = {row["uid"]: row for row in listed}
    lacking = [row["uid"] for row in questions if row["uid"] not in answers]
    if lacking:
        raise ValueError(f"eval.baseline_path must answer every question, {len(lacking)} are missing: {lacking[0]} ...")
    prompts = encodable([row["prompt"] for row in questions])
    if len(set(prompts)) < len(prompts):
        raise ValueError(f"eval.questions_path must have every question once, got {evaluation.questions_path}")
    kept = questions[: evaluation.limit]
    outputs = [_answer(answers[row["uid"]]) for row in kept]
    model, changed = str(answers[kept[0]["uid"]]["model"]), halves([[row["prompt"] for row in kept], outputs])
    return Baseline(encodable(model), prompts[: evaluation.limit], encodable(outputs), len(questions), changed)


def _rows(path: str, at: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a JSONL file, each with these fields; lines end at \\n alone (the texts hold other separators)."""
    try:
        rows = [json.loads(line) for line in text_of(path, at).split("\n") if line]
    except json.JSONDecodeError as error:
        raise ValueError(f"{at} must be a JSONL file, got {path} ({error})") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not set(names) <= row.keys():
            raise ValueError(f"{at}: row {number} of {path} must have {', '.join(names)}")
    return rows


def _answer(row: Mapping[str, Any]) -> str:
    """The text that an answer's last message holds."""
    try:
        text = row["messages"][-1]["content"]["answer"]
    except (LookupError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f"eval.baseline_path: the last message of {row['uid']} must have a text content.answer")
    return text


def annotate(
    rows: Sequence[Mapping[str, Any]],
    complete: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    system_prompt: str,
    max_tokens: int,
    temperature: float,
) -> list[list[dict[str, Any]]]:
    """For each row of PAIRINGS its two ORDERS: the baseline's answer as A, then the policy's as A."""
    bodies = [
        {
            "messages": [
                {"role": "system", "content": system_prompt},
                {"role": "user", "content": shown(row, policy_first)},
            ],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        for row in rows
        for policy_first in (False, True)
    ]
    labels = [LABELS[str(label({"choice": choice}))] for choice in complete(bodies)]
    return [
        [
            {"policy_first": first, "preference": value if first else 1 - value, "weight": weight}
            for first, (value, weight) in zip((False, True), labels[2 * number : 2 * number + 2], strict=True)
        ]
        for number in range(len(rows))
    ]


def shown(row: Mapping[str, Any], policy_first: bool) -> str:
    """The pair as the judge reads it."""
    sides = (row["response"], row["baseline"]) if policy_first else (row["baseline"], row["response"])
    parts = {"question": row["instruction"], "first": sides[0], "second": sides[1]}
    return re.sub(r"\{(question|first|second)\}", lambda match: parts[match[1]], TEMPLATE)


def label(answer: Mapping[str, Any]) -> str | None:
    """The one verdict in an answer's text; None where there is none, an unknown one, or several that differ."""
    found = set(LABEL.findall(answer["choice"]["text"] or ""))
    return found.pop() if len(found) == 1 and found <= set(LABELS) else None


def verdict(answer: Mapping[str, Any]) -> float | None:
    """The preference for the answer shown first, or None without a verdict."""
    found = label(answer)
    return None if found is None else LABELS[found][0]


def figures(orders: Sequence[Sequence[Mapping[str, Any]]], resamples: int, seed: int) -> dict[str, Any]:
    """The published score: the share of verdicts for the policy in percent, strong ones counted three times."""
    weights = as_floats([sum(one["weight"] for one in row) for row in orders])
    wins = weights * as_floats([preference_of(row) for row in orders])
    found = bootstrap_ratio(wins, weights, resamples, seed)
    return {"score": 100 * found.mean, "score_low": 100 * found.low, "score_high": 100 * found.high}
