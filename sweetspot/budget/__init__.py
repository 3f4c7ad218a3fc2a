"""How many samples each prompt gets: after a pilot, more go where they are expected to raise the chosen reward most.

`sweetspot.budget.gain` holds the model behind it. Everything is a pure function of the rewards.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from sweetspot.budget.gain import Tail, beliefs, worth_drawing
from sweetspot.component import component
from sweetspot.strategy import Floats, Indices, Position


class Budget(Protocol):
    """Who gets more samples, asked once a round."""

    def check(self, block: int, chosen: str) -> None:
        """Raises a ValueError where the budget does not go with blocks of that many samples or with that position."""
        ...

    def next_blocks(self, rewards: ArrayLike, counts: Indices, block: int, chosen: str) -> Indices:
        """How many more blocks each prompt gets in the next round, [prompts]; all 0 = done.

        Args:
            rewards: [prompts, n], reward-model units; NaN or infinite = not drawn, or without a reward. Only the first
                counts[i] of prompt i are read.
            counts: samples drawn of each prompt so far, multiples of `block`.
            block: samples per block (`tile_samples`).
            chosen: the position of the strategy's chosen response.
        """
        ...


def allocate(
    budget: Budget, read: Callable[[Indices], ArrayLike], prompts: int, block: int, chosen: str
) -> tuple[Indices, int]:
    """The samples that each prompt gets, [prompts], and the number of rounds that it took.

    It depends on nothing but the rewards, and starts from the pilot each time: who repeats it on a pool that holds more
    samples by now, or after an interruption, gets the same counts.

    Args:
        read: draws and scores what is missing of the first counts[i] samples of each prompt i, and returns the rewards
            [prompts, n >= max(counts)].

    Raises:
        ValueError: from `budget.check`.
    """
    budget.check(block, chosen)
    counts, rounds = np.zeros(prompts, dtype=np.intp), 0
    rewards: ArrayLike = np.empty((prompts, 0))
    while (more := budget.next_blocks(rewards, counts, block, chosen)).any():
        counts, rounds = counts + block * more, rounds + 1
        rewards = read(counts)
    return counts, rounds


def drawn(rewards: ArrayLike, counts: Indices) -> Floats:
    """The first counts[i] rewards of each prompt i, NaN beyond them, as float64 [prompts, max(counts)]."""
    matrix = np.asarray(rewards, dtype=np.float64)[:, : counts.max(initial=0)]
    return np.where(np.arange(matrix.shape[1]) < counts[:, None], matrix, np.nan)


def uneven(counts: Indices, pilot: int) -> str | None:
    """What to write beside every statistic of a pool with these samples per prompt; None where all have as many."""
    if len(np.unique(counts)) < 2:
        return None
    return (
        f"uneven n: {counts.min()} to {counts.max()} samples a prompt, mean {counts.mean():.1f}. Prompts whose rewards "
        "were spread or whose best was low got more, so statistics of these samples are biased (sd, skew, normality "
        "and extremes of a prompt, n-curves, means and shares over all samples); those of the first "
        f"{pilot} samples of each prompt are not"
    )


@component
class Adaptive:
    """A pilot for every prompt, then block by block where the chosen response is expected to gain most.

    pilot: samples of every prompt, in the first round.
    mean_samples: the budget, in samples per prompt that has rewards; it is never exceeded.
    max_samples: the most that one prompt gets.
    threshold: stops where no block promises a gain above this, in the pool's mean sigma; 0 = use up the budget.
    tail: the model of high rewards: normal, or fitted to the upper half of each prompt's rewards.

    A prompt without any finite reward gets no more, and its pilot does not count.

    Raises:
        ValueError: pilot, mean_samples and max_samples are not in ascending order.
    """

    pilot: int = Field(ge=2)
    mean_samples: int
    max_samples: int
    threshold: float = Field(ge=0)
    tail: Tail

    def __post_init__(self) -> None:
        if not self.pilot <= self.mean_samples <= self.max_samples:
            given = f"{self.pilot}, {self.mean_samples}, {self.max_samples}"
            raise ValueError(f"budget must have pilot <= mean_samples <= max_samples, got {given}")

    def check(self, block: int, chosen: str) -> None:
        """Raises a ValueError for another chosen position than max or max_of_k, or where blocks do not fit."""
        if Position.parse(chosen).kind not in ("max", "max_of"):
            raise ValueError(
                "strategy.chosen must be max or max_of_k with an adaptive budget (to other positions, more samples "
                f"only bring the nearest response closer), got {chosen}"
            )
        for name, value in (("sampler.pilot_samples", self.pilot), ("n_samples", self.max_samples)):
            if value % block:
                raise ValueError(
                    f"{name} must be a multiple of sampler.tile_samples ({block}) with an adaptive budget, got {value}"
                )

    def next_blocks(self, rewards: ArrayLike, counts: Indices, block: int, chosen: str) -> Indices:
        """The pilot first; then one block for each prompt whose expected gain exceeds the price."""
        self.check(block, chosen)
        if (counts < self.pilot).any():
            return np.maximum(-(-(self.pilot - counts) // block), 0)
        reach = int(Position.parse(chosen).value) or self.max_samples  # max_of_k: later samples cannot be chosen
        of = beliefs(drawn(rewards, counts), self.tail, reach)
        spread = of.sigma[of.sigma > 0]
        if len(spread) == 0:
            return np.zeros_like(counts)
        allowed = np.maximum(-(-(min(self.max_samples, reach) - counts) // block), 0)
        rewarded = np.isfinite(of.best)
        left = (self.mean_samples * int(rewarded.sum()) - int(counts[rewarded].sum())) // block
        return worth_drawing(of, allowed, left, block, self.threshold * float(spread.mean())).astype(np.intp)
