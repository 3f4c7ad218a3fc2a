"""How often a reward model agrees with preferences that others made, beside "the longer one wins"."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from sweetspot.component import component
from sweetspot.eval.benchmark import text_of
from sweetspot.reward_model import RewardModel
from sweetspot.statistics import Floats, Interval, as_floats, bootstrap_ratio
from sweetspot.visible import encodable, halves

ALIKE = float(np.log(1.25))  # a ratio of lengths up to 1.25


@component
class RewardBench:
    """Pairwise accuracy of a reward model on local preference sets, overall, by source and balanced by length.

    `half` keeps only the prompts in one half of the hash by which the embedded heads were trained: `select` saw half 0,
    `gold` half 1, so the other half says what each is worth.
    """

    version: ClassVar[int] = 2  # 2: the calibrating scale has an interval
    reward_model: Any
    folder: str = Field(min_length=1)
    files: dict[str, str] = Field(min_length=1)
    half: Literal[0, 1] | None
    limit: int | None = Field(ge=1)
    resamples: int = Field(ge=1000)
    seed: int = Field(ge=0)

    def __post_init__(self) -> None:
        if not isinstance(self.reward_model, RewardModel):
            raise ValueError(f"reward_model must be a reward model, got {type(self.reward_model).__name__}")


@dataclass(frozen=True)
class Pair:
    """Two responses of which somebody preferred the first."""

    source: str
    prompt: str
    chosen: str
    rejected: str

    @property
    def longer(self) -> float:
        """1 when the chosen response has more characters, 0 when fewer, 0.5 when equal."""
        return 0.5 + 0.5 * float(np.sign(len(self.chosen) - len(self.rejected)))

    def bucket(self, salt: str, n: int) -> int:
        """0 .. n-1, decided by the prompt alone, so that no prompt lies in two buckets."""
        return hashlib.sha256(f"{salt}{self.prompt}".encode()).digest()[0] % n


def read(evaluation: RewardBench) -> list[Pair]:
    """The pairs of all sources, each once, at most `limit` of a source, taken by the hash of the prompt.

    Raises:
        ValueError: one line for a missing file, an unknown form, or sets without a pair.
    """
    found: list[Pair] = []
    for source, name in evaluation.files.items():
        listed = rows(source, Path(evaluation.folder) / name)
        pairs = [
            pair for pair in dict.fromkeys(of_rows(source, listed)) if pair.chosen.strip() != pair.rejected.strip()
        ]
        if evaluation.half is not None:
            pairs = [pair for pair in pairs if pair.bucket("half ", 2) == evaluation.half]
        pairs.sort(key=lambda pair: hashlib.sha256(pair.prompt.encode()).digest())
        found += pairs[: evaluation.limit]
    if not found:
        raise ValueError(f"eval.files must hold a pair, got none in {evaluation.folder}")
    return found


def changed(evaluation: RewardBench) -> int:
    """How many texts of the files held half a surrogate pair, which stands in the pairs as its escape."""
    listed = (rows(source, Path(evaluation.folder) / name) for source, name in evaluation.files.items())
    return sum(map(halves, listed))


def rows(source: str, path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON or JSONL file, maybe gzipped."""
    at = f"eval.files.{source}"
    text = text_of(path, at)
    try:
        if ".jsonl" in path.name:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{at} must be a JSON or JSONL file, got {path} ({error})") from None


def of_rows(source: str, listed: Sequence[Mapping[str, Any]]) -> Iterator[Pair]:
    """The pairs of a file, by the form of its rows: PandaLM, LLMBar, alpaca-eval's annotations, or prompt, chosen and
    rejected.

    Raises:
        ValueError: for rows of another form.
    """
    for row in map(encodable, listed):
        if "annotator1" in row:
            yield from pandalm(source, row)
        elif "label" in row and "output_1" in row:
            yield labelled(source, row["input"], row["output_1"], row["output_2"], int(row["label"]))
        elif "preference" in row:
            if row["preference"] not in (None, 0, 1.5):
                better = 2 if row["preference"] > 1.5 else 1
                yield labelled(source, row["instruction"], row["output_1"], row["output_2"], better)
        elif {"prompt", "chosen", "rejected"} <= row.keys():
            yield labelled(source, row["prompt"], row["chosen"], row["rejected"], 1)
        else:
            raise ValueError(
                f"eval.files.{source}: a row must have prompt, chosen, rejected, got {', '.join(row)[:80]}"
            )


def pandalm(source: str, row: Mapping[str, Any]) -> Iterator[Pair]:
    """The pair on which at least two of three annotators agree and none prefers the other response, if it is one.

    Six responses are JSON booleans: they are the texts True and False.
    """
    votes = [int(row[f"annotator{number}"]) for number in (1, 2, 3)]  # 0 is a tie
    for better, worse in ((1, 2), (2, 1)):
        if votes.count(better) >= 2 and worse not in votes:
            prompt = f"{row['instruction']}\n\n{row['input']}"
            yield labelled(source, prompt, str(row["response1"]), str(row["response2"]), better)


def labelled(source: str, prompt: str, first: str, second: str, better: int) -> Pair:
    """The pair in which response `better` (1 or 2) is the chosen one."""
    chosen, rejected = (first, second) if better == 1 else (second, first)
    return Pair(source, prompt.strip(), chosen, rejected)


def figures(pairs: Sequence[Pair], margins: Floats, resamples: int, seed: int) -> dict[str, Any]:
    """Accuracies overall and by part, and the scale that calibrates the reward.

    Args:
        margins: reward of the chosen less that of the rejected response [pairs]; a tie counts a half.
    """
    ratio = np.abs(np.log([max(len(pair.chosen), 1) / max(len(pair.rejected), 1) for pair in pairs]))
    parts = {"all": np.ones(len(pairs), dtype=bool), "lengths within 25%": ratio <= ALIKE}
    sources = list(dict.fromkeys(pair.source for pair in pairs))
    parts |= {source: np.array([pair.source == source for pair in pairs]) for source in sources}
    scale, loss = calibrated(margins)
    low, high = scale_interval(scale, margins, [pair.prompt for pair in pairs])
    return {
        "n_pairs": len(pairs),
        "n_prompts": len({pair.prompt for pair in pairs}),
        "parts": [
            {"name": name, **part(pairs, margins, kept, resamples, seed)} for name, kept in parts.items() if kept.any()
        ],
        "calibration_scale": scale,
        "calibration_low": low,
        "calibration_high": high,
        "calibration_loss": loss,  # nats a pair; ln 2 = 0.693 for a coin
    }


def part(pairs: Sequence[Pair], margins: Floats, kept: np.ndarray, resamples: int, seed: int) -> dict[str, Any]:
    """The accuracies of some of the pairs, with intervals over prompts."""
    places = np.flatnonzero(kept)
    prompts = [pairs[place].prompt for place in places]
    longer = as_floats([pairs[place].longer for place in places])
    right = 0.5 * (np.sign(margins[places]) + 1)
    split = [right[longer == value].mean() for value in (1.0, 0.0) if (longer == value).any()]
    own, length = (by_prompt(values, prompts, resamples, seed) for values in (right, longer))
    return {
        "n": len(places),
        "accuracy": own.mean,
        "low": own.low,
        "high": own.high,
        "longer": length.mean,
        "longer_low": length.low,
        "longer_high": length.high,
        "balanced": float(np.mean(split)) if len(split) == 2 else float("nan"),
    }


def by_prompt(values: Floats, prompts: Sequence[str], resamples: int, seed: int) -> Interval:
    """The mean over pairs, bootstrapped over prompts: pairs of one prompt are not independent."""
    _, owner = np.unique(np.array(prompts), return_inverse=True)
    hits, counts = as_floats(np.bincount(owner, weights=values)), as_floats(np.bincount(owner))
    return bootstrap_ratio(hits, counts, resamples, seed)


def calibrated(margins: Floats) -> tuple[float, float]:
    """The scale at which sigmoid(scale x margin) is as sure as the preferences are, and its mean log loss in nats.

    A reward that is right less often than wrong has no such scale: the smallest is returned, and a loss of ln 2.
    """
    from scipy.optimize import minimize_scalar

    size = float(np.abs(margins).mean()) or 1.0
    found: Any = minimize_scalar(
        lambda power: float(np.logaddexp(0, -margins * 10**power / size).mean()), bounds=(-4, 4), method="bounded"
    )
    return 10 ** float(found.x) / size, float(found.fun)


def scale_interval(scale: float, margins: Floats, prompts: Sequence[str]) -> tuple[float, float]:
    """The 95% interval of the calibrating scale: the logistic regression's sandwich error, clustered by prompt."""
    sure = 1 / (1 + np.exp(-scale * margins))
    _, owner = np.unique(np.array(prompts), return_inverse=True)
    scores = np.bincount(owner, weights=margins * (1 - sure))  # the slope of each prompt's log likelihood
    information = float((margins**2 * sure * (1 - sure)).sum())
    error = float(np.sqrt((scores**2).sum())) / information if information else float("nan")
    return scale - 1.96 * error, scale + 1.96 * error
