"""What a user should know about a run before paying for it."""

from typing import Any

import numpy as np

from sweetspot.budget import uneven
from sweetspot.data import Prompts
from sweetspot.distribution import indistinct
from sweetspot.sampler import Sampler
from sweetspot.stages.pool import Samples
from sweetspot.strategy import PositionPair
from sweetspot.visible import halves_told


def cautions(strategy: Any, n_samples: int, prompts: Prompts) -> list[str]:
    """Positions that cannot be told apart at this n, duplicate prompts, and texts that were changed, a line each."""
    found = [f"data: {prompts.duplicates} duplicate prompts were left out"] if prompts.duplicates else []
    found += halves_told("data", prompts.halves)
    if isinstance(strategy, PositionPair) and (told := indistinct(strategy, n_samples)):
        found.append(told)
    return found


def bias(sampler: Sampler, samples: Samples) -> list[str]:
    """What is biased in a pool with uneven n, in a line."""
    told = uneven(np.array(samples.blocks) * sampler.tile_samples, sampler.pilot_samples)
    return [] if told is None else [told]
