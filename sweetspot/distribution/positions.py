"""Which response stands for a position, prompt by prompt, and its realised z.

Picks are columns of the rewards: [positions, prompts] int, NONE where a prompt has too few finite rewards.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from sweetspot.distribution.observed import moments
from sweetspot.strategy import FiniteRewards, Floats, Indices, Position, finite_blocks

NONE = -1  # no response


def picks(rewards: ArrayLike, positions: Sequence[str], ddof: int = 1) -> Indices:
    """The column of the response that stands for each position, [positions, prompts].

    Args:
        rewards: [prompts, n]; NaN or infinite = not scored. Fewer than two finite rewards give no pick.
        positions: as `Position.parse` reads them.
        ddof: sigma divides by the number of finite rewards minus this.
    """
    matrix = np.asarray(rewards, dtype=np.float64)
    found = np.full((len(positions), len(matrix)), NONE, dtype=np.intp)
    for number, position in enumerate(map(Position.parse, positions)):
        for rows, columns, finite in finite_blocks(matrix, max(2, position.minimum_samples)):
            pick = position.pick(FiniteRewards(finite, ddof))
            found[number, rows] = pick if columns is None else columns[np.arange(len(rows)), pick]
    return found


def at_picks(values: ArrayLike, chosen: Indices) -> Floats:
    """The value of each pick, [positions, prompts]; NaN where there is none.

    Args:
        values: [prompts, n]: rewards, z or tokens.
    """
    matrix = np.asarray(values, dtype=np.float64)
    found = matrix[np.arange(len(matrix)), np.where(chosen == NONE, 0, chosen)]
    return np.where(chosen == NONE, np.nan, found)


def realised_z(rewards: ArrayLike, chosen: Indices, ddof: int = 1) -> Floats:
    """How far each pick lies from its prompt's mean, in the prompt's standard deviations, [positions, prompts].

    NaN without a pick, and where all rewards of a prompt are equal.
    """
    matrix = np.asarray(rewards, dtype=np.float64)
    return at_picks(moments(matrix, ddof).z(matrix), chosen)
