"""The distribution of rewards: of the prompts at hand (observed), and of a normal pool of n (normal_pool)."""

from sweetspot.distribution.normal_pool import Expected, expected_position, indistinct, points_apart
from sweetspot.distribution.observed import (
    Curve,
    Moments,
    Normality,
    max_of_k_curve,
    min_of_k_curve,
    moments,
    normality,
)

__all__ = [
    "Curve",
    "Expected",
    "Moments",
    "Normality",
    "expected_position",
    "indistinct",
    "max_of_k_curve",
    "min_of_k_curve",
    "moments",
    "normality",
    "points_apart",
]
