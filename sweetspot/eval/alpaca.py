"""AlpacaEval 2: its prompts and baseline, and its annotator around our own request loop.

alpaca-eval's `PairwiseAnnotator` does what makes a judgement comparable: the prompt, the random order of the two
responses (seeded by the instruction), the reading of the log-probabilities, draws for equal responses. Its caches,
chunks of 128 and OpenAI client are left out: they lose up to a chunk of paid answers at an error, keep failed ones for
ever and write into the package's folder. `asking.ask` takes their place.
"""

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from sweetspot.component import component
from sweetspot.eval.alpaca_metrics import PROMPTS
from sweetspot.eval.benchmark import Baseline, Judged, text_of
from sweetspot.visible import encodable, halves

HUB = "tatsu-lab/alpaca_eval"
ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"  # prompt, order and parser; the model is the judge's own
COMPLETION = ("max_tokens", "temperature", "logprobs", "top_logprobs")  # of its request; top_p is its client's default

Complete = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


@component
class AlpacaEval(Judged):
    """One response to each of the 805 prompts, judged against gpt4_1106_preview's."""

    version: ClassVar[int] = 1
    baseline_path: str | None
    gamed_path: str | None
    revision: str = Field(min_length=1)


def read_baseline(path: Path, limit: int | None) -> Baseline:
    """The baseline of a file of alpaca-eval's form: a list of {instruction, output, generator}, in JSON, maybe gzipped.

    Raises:
        ValueError: one line for a missing or unreadable file, another number of rows than 805, a row without
            instruction or output, or an instruction that stands there twice.
    """
    read = _rows(path)
    rows = encodable(read)
    if len(rows) != PROMPTS:
        raise ValueError(f"eval.baseline_path must have {PROMPTS} rows, got {len(rows)} in {path}")
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if not all(isinstance(row, dict) and isinstance(row.get(name), str) for name in ("instruction", "output")):
            raise ValueError(f"eval.baseline_path: row {number} of {path} must have the texts instruction and output")
        if (first := seen.setdefault(row["instruction"], number)) != number:
            raise ValueError(f"eval.baseline_path: rows {first} and {number} of {path} have the same instruction")
    kept = rows[:limit]
    generator = str(rows[0].get("generator", "baseline"))
    instructions, outputs = ([row[name] for row in kept] for name in ("instruction", "output"))
    return Baseline(generator, instructions, outputs, len(rows), halves(read[:limit]))


def _rows(path: Path) -> list[Any]:
    try:
        rows: Any = json.loads(text_of(path, "eval.baseline_path"))
    except json.JSONDecodeError as error:
        raise ValueError(f"eval.baseline_path must be a JSON file, got {path} ({error})") from None
    if not isinstance(rows, list):
        raise ValueError(f"eval.baseline_path must hold a list of rows, got {type(rows).__name__} in {path}")
    return rows


def baseline_file(evaluation: AlpacaEval) -> Path:
    """The file of prompts and baseline: the given one, or the hub's.

    Raises:
        ValueError: when none is given and the hub cannot be reached.
    """
    if evaluation.baseline_path is not None:
        return Path(evaluation.baseline_path).expanduser()
    found = from_hub("alpaca_eval_gpt4_baseline.json", evaluation.revision)
    if found is None:
        raise ValueError(f"eval.baseline_path must name a file where the hub ({HUB}) cannot be reached, got null")
    return found


def gamed_file(evaluation: AlpacaEval) -> Path | None:
    """df_gamed.csv: the given one, or the hub's, or None where there is neither.

    Raises:
        ValueError: when a file is given and is not there.
    """
    if evaluation.gamed_path is None:
        return from_hub("df_gamed.csv", evaluation.revision)
    path = Path(evaluation.gamed_path).expanduser()
    if not path.is_file():
        raise ValueError(f"eval.gamed_path must be an existing file, got {path}")
    return path


@functools.cache  # without a network huggingface_hub tries for half a minute
def from_hub(name: str, revision: str) -> Path | None:
    """A file of AlpacaEval's data set, from the hub or its cache; None where neither has it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(HUB, name, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError):
        return None


def annotator(complete: Complete | None) -> Any:
    """alpaca-eval's annotator without caches, asking through `complete`, which maps request bodies to answers."""
    from alpaca_eval.annotators import PairwiseAnnotator

    made = PairwiseAnnotator(annotators_config=ANNOTATOR, caching_path=None, is_avoid_reannotations=False)
    (single,) = made.annotators.values()

    def completions(prompts: list[str], **settings: Any) -> dict[str, list[Any]]:
        assert complete is not None
        return {"completions_all": complete([body(prompt, settings) for prompt in prompts])}

    single.fn_completions = completions
    return made


def body(prompt: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The request that alpaca-eval's client would send for a prompt, without the model."""
    from alpaca_eval.utils import prompt_to_chatml

    return {
        "messages": prompt_to_chatml(prompt.strip()),
        **{name: settings[name] for name in COMPLETION},
        "top_p": 1.0,
    }


def annotate(rows: Sequence[Mapping[str, Any]], complete: Complete) -> list[list[dict[str, Any]]]:
    """alpaca-eval's preference for the policy's response of each row, in [0, 1], and the order it was shown in.

    Args:
        rows: of PAIRINGS.
        complete: the judge's answers to request bodies, every one with a verdict.

    Returns:
        For each row its ORDERS: one, or none where the two responses are equal, which is a draw.
    """
    import pandas as pd

    made = annotator(complete)
    (single,) = made.annotators.values()
    frame = pd.DataFrame([annotation(row, "policy", "baseline") for row in rows])
    (switch,) = single.processors
    switched = switch.preprocess(frame)["is_switched_outputs"].tolist()
    preferences = [row["preference"] - 1 for row in made.annotate_pairs(frame, chunksize=None)]
    return [
        []
        if row["response"] == row["baseline"]
        else [{"policy_first": bool(first), "preference": preference, "weight": 1.0}]
        for row, first, preference in zip(rows, switched, preferences, strict=True)
    ]


def annotation(row: Mapping[str, Any], policy: str, baseline: str) -> dict[str, Any]:
    """A row of PAIRINGS in alpaca-eval's words: output_1 is the baseline's, output_2 the policy's."""
    return {
        "instruction": row["instruction"],
        "output_1": row["baseline"],
        "output_2": row["response"],
        "generator_1": baseline,
        "generator_2": policy,
        "annotator": ANNOTATOR,
    }


def verdict(answer: Mapping[str, Any]) -> float | None:
    """The probability that the first output is better, out of an answer's log-probabilities; None without them.

    An answer counts when `m` or `M` is among the most likely first tokens: what alpaca-eval's parser needs.
    """
    logprobs = answer["choice"].get("logprobs") or {}
    places = logprobs.get("content") or []
    tokens = {row["token"]: float(row["logprob"]) for row in places[0].get("top_logprobs") or []} if places else {}
    both = [tokens[name] for name in ("m", "M") if name in tokens]
    if not both or max(both) == float("-inf"):
        return None
    weights = {name: math.exp(tokens[name] - max(both)) for name in ("m", "M") if name in tokens}
    return weights.get("m", 0.0) / sum(weights.values())
