"""What the stages found, for the run's log: distributions of rewards and of z, and the pairs."""

from sweetspot.distribution import moments
from sweetspot.stages.pairs import Pairs
from sweetspot.stages.pool import Rewards
from sweetspot.stages.run import Run

SIDES = ("chosen", "rejected")


def log_rewards(rewards: Rewards, run: Run) -> None:
    """Log how rewards are distributed, and z = (reward - mu) / sigma within each prompt."""
    matrix = rewards.matrix()
    run.log.histogram("rewards/reward", matrix)
    run.log.histogram("rewards/z", moments(matrix).z(matrix))


def log_pairs(pairs: Pairs, run: Run) -> None:
    """Log the pairs, and how rewards and z of their responses are distributed."""
    for name in (f"{side}_{what}" for what in ("reward", "z") for side in SIDES):
        run.log.histogram(f"pairs/{name}", pairs.table[name].to_numpy())
    run.log.table("pairs", pairs.table)
