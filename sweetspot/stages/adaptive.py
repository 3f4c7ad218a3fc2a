"""Sampling and scoring in turn: after a pilot, more samples go where the chosen response is expected to gain most."""

import pyarrow as pa

from sweetspot.budget import Adaptive, allocate
from sweetspot.model import Model
from sweetspot.reward_model import RewardModel
from sweetspot.sampler import Sampler
from sweetspot.stages.pool import Rewards, sample, score
from sweetspot.stages.run import Run
from sweetspot.strategy import Floats, Indices


def sample_adaptively(
    prompts: pa.Table,
    model: Model,
    sampler: Sampler,
    budget: Adaptive,
    chosen: str,
    reward_model: RewardModel,
    run: Run,
) -> Rewards:
    """The rewards of as many samples of each prompt as the budget gives it.

    The tiles are those of any pool, which then has uneven n: what another run drew is used, and a later uniform run
    finds these. The counts depend on the rewards alone, so that the same command makes the same pairs.

    Args:
        budget: who gets more, at most `budget.max_samples`.
        chosen: the position of the strategy's chosen response.
    """
    found: list[Rewards] = []

    def read(counts: Indices) -> Floats:
        turn, blocks = len(found) + 1, counts // sampler.tile_samples
        samples = sample(prompts, model, sampler, budget.max_samples, run, f"sample {turn}", blocks)
        found.append(score(samples, reward_model, run, f"score {turn}"))
        return found[-1].matrix()

    allocate(budget, read, prompts.num_rows, sampler.tile_samples, chosen)
    return found[-1]
