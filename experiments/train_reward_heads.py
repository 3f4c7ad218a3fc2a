"""Train the two reward heads that ship with sweetspot, and say how good they are.

    python experiments/train_reward_heads.py --data FOLDER

FOLDER holds `pandalm/testset-v1.json` (github.com/WeOpenML/PandaLM at 3871806, Apache-2.0) and `llmbar/` with the
folders Natural and Processed (github.com/princeton-nlp/LLMBar at 900616b, MIT). Writes the heads to
sweetspot/embedded/heads.safetensors and what they are worth to experiments/results/reward_heads.md.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sweetspot.reward_model import Conversation
from sweetspot.reward_model.embedded import Backbone

PROMPT_TOKENS = 160  # longer prompts, template included, are left out
RESPONSE_TOKENS = 96  # longer responses are cut, as a sampler cuts them
LAYERS = (6, 9, 12, 15, 18, 21, 24)
LLMBAR = {
    "LLMBar Natural": "Natural",
    "FairEval": "Processed/FairEval",
    "LLMEval^2": "Processed/LLMEval^2",
    "MT-Bench": "Processed/MT-Bench",
}


@dataclass(frozen=True)
class Pair:
    """Two responses of which people preferred the first."""

    source: str
    prompt: str
    chosen: str
    rejected: str

    @property
    def half(self) -> int:
        """0 or 1, decided by the prompt alone, so that no prompt lies in both halves."""
        return hashlib.sha256(self.prompt.strip().encode()).digest()[0] % 2


def read_pairs(data: Path) -> list[Pair]:
    """Every usable pair, once, in the order of the files."""
    found = pandalm(json.loads((data / "pandalm" / "testset-v1.json").read_text()))
    for source, folder in LLMBAR.items():
        rows = json.loads((data / "llmbar" / folder / "dataset.json").read_text())
        found += [_labelled(source, row["input"], row["output_1"], row["output_2"], int(row["label"])) for row in rows]
    return [pair for pair in dict.fromkeys(found) if pair.chosen.strip() != pair.rejected.strip()]


def pandalm(rows: list[dict[str, Any]]) -> list[Pair]:
    """The pairs on which at least two of three annotators agree and none prefers the other response."""
    pairs: list[Pair] = []
    for row in rows:
        votes = [int(row[f"annotator{number}"]) for number in (1, 2, 3)]  # 0 tie, 1 or 2
        for better, worse in ((1, 2), (2, 1)):
            if votes.count(better) >= 2 and worse not in votes:
                prompt = f"{row['instruction']}\n\n{row['input']}".strip()
                pairs.append(_labelled("PandaLM", prompt, str(row["response1"]), str(row["response2"]), better))
    return pairs


def _labelled(source: str, prompt: str, first: str, second: str, better: int) -> Pair:
    return Pair(source, prompt, first, second) if better == 1 else Pair(source, prompt, second, first)


def cut(prompt: list[int], response: list[int]) -> tuple[list[int], list[int]]:
    """The response as a sampler with a limit of RESPONSE_TOKENS would have left it."""
    return prompt, response[:RESPONSE_TOKENS]


def pair_features(pairs: list[Pair], backbone: Backbone) -> tuple[list[Pair], np.ndarray]:
    """The pairs with a short enough prompt and two responses that still differ, and their features.

    Returns:
        The kept pairs and [pairs, 2, layers, width], chosen first.
    """
    rows = [
        cut(*backbone.ids(Conversation([{"role": "user", "content": pair.prompt}], response, None)))
        for pair in pairs
        for response in (pair.chosen, pair.rejected)
    ]
    two = list(zip(rows[::2], rows[1::2], strict=True))
    kept = [index for index, (one, other) in enumerate(two) if len(one[0]) <= PROMPT_TOKENS and one != other]
    done, started = 0, time.monotonic()

    def progress(rows_done: int) -> None:
        nonlocal done
        done += rows_done
        print(f"features: {done} of {2 * len(kept)} responses, {time.monotonic() - started:.0f} s", flush=True)

    found = backbone.features([row for index in kept for row in two[index]], progress)
    return [pairs[index] for index in kept], found.reshape(len(kept), 2, *found.shape[1:])
