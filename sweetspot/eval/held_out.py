"""Held out: pure figures about fresh responses of the start and of the policy to held-out prompts.

Start and policy answer the same prompts with the same seeds, so every comparison is paired. The unit of an interval is
the prompt: responses to one prompt are averaged before anything is resampled.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from sweetspot.component import component
from sweetspot.reward_model import RewardModel


@component
class HeldOut:
    """Fresh responses to the held-out prompts, judged by a reward model that selection never saw."""

    version: ClassVar[int] = 1
    judge_name: str = Field(min_length=1)
    judge: Any  # a RewardModel
    n_samples: int = Field(ge=1)
    tile_prompts: int = Field(ge=1)
    resamples: int = Field(ge=1000)
    kl_samples: int = Field(ge=0)

    def __post_init__(self) -> None:
        if not isinstance(self.judge, RewardModel):
            raise ValueError(f"judge must be a reward model, got {type(self.judge).__name__}")
        if self.kl_samples > self.n_samples:
            raise ValueError(f"kl_samples must be <= n_samples ({self.n_samples}), got {self.kl_samples}")


def preferences(policy: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The judge's preference for each of the policy's responses over the start's of the same seed: 1, 0, or 0.5 for a
    tie.

    Args:
        policy, start: rewards [prompts, n]; NaN where a prompt was set aside, which stays NaN.
    """
    both = np.isfinite(policy) & np.isfinite(start)
    return np.where(both, 0.5 * (np.sign(policy - start) + 1), np.nan)


def distinct(responses: Sequence[str], size: int = 2) -> float:
    """distinct-n: different n-grams of words divided by all of them, over all responses (Li et al. 2016, 1510.03055).

    Returns:
        NaN when no response has `size` words.
    """
    words = [response.split() for response in responses]
    grams = [tuple(row[at : at + size]) for row in words for at in range(len(row) - size + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")
