"""Who is evaluated, and what an evaluation returns."""

import dataclasses
from typing import Any

import pyarrow as pa

from sweetspot.dpo import DPO
from sweetspot.model import Model
from sweetspot.reward_model import RewardModel
from sweetspot.sampler import Sampler


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one evaluation found."""

    name: str  # of the choice in the configuration
    kind: str  # which figures it has
    key: str
    path: str  # of its rows, relative to the store
    metrics: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Subject:
    """Who is evaluated, and what it takes to do so.

    Attributes:
        policy, start: the trained model and the one that training started from.
        held_out: PROMPTS that nothing was trained on.
        sampler: draws the fresh responses of an evaluation that brings no sampler of its own.
        selecting: name and reward model that built the pairs; None where it cannot score fresh responses (imported).
        dpo: its numerics are those of log-probabilities.
    """

    policy: Model
    start: Model
    held_out: pa.Table
    sampler: Sampler
    selecting: tuple[str, RewardModel] | None
    dpo: DPO
