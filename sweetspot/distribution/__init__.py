"""The distribution of rewards: of the prompts at hand (observed, shape), of fewer responses (subsets), of the responses
at positions (positions), and of a normal pool of n (normal_pool)."""

from sweetspot.distribution.normal_pool import (
    Expected,
    expected_pair,
    expected_position,
    indistinct,
    mean_sd,
    order_statistics,
    points_apart,
    tail_share,
)
from sweetspot.distribution.observed import Moments, Normality, moments, normality
from sweetspot.distribution.positions import at_picks, picks, realised_z
from sweetspot.distribution.shape import Shape, length_slope, ranked_z, shape_by_n
from sweetspot.distribution.subsets import (
    Curve,
    best_of_k_by,
    best_of_n_kl,
    curve,
    max_of_k_curve,
    min_of_k_curve,
    position_of_k,
)

__all__ = [
    "Curve",
    "Expected",
    "Moments",
    "Normality",
    "Shape",
    "at_picks",
    "best_of_k_by",
    "best_of_n_kl",
    "curve",
    "expected_pair",
    "expected_position",
    "indistinct",
    "length_slope",
    "max_of_k_curve",
    "mean_sd",
    "min_of_k_curve",
    "moments",
    "normality",
    "order_statistics",
    "picks",
    "points_apart",
    "position_of_k",
    "ranked_z",
    "realised_z",
    "shape_by_n",
    "tail_share",
]
