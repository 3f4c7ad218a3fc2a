"""One job on several ranks: which there are, how they find each other, and what happens when one is lost.

A rank is a worker (`sweetspot.launch`) with the environment that torchrun's static rendezvous gives: RANK, LOCAL_RANK,
WORLD_SIZE, MASTER_ADDR and MASTER_PORT. It is started from here and not by torchrun, because so a rank keeps its own
log and its error line, a dead one is seen at once and by name, and no agent stands between a signal and the rank.
"""

from sweetspot.ranks.watch import BEAT, BEAT_SECONDS, SAVING, TRAINING, run
from sweetspot.ranks.world import check, deepspeed_environment, divide, environments, fitted, node, of_node, total

__all__ = [
    "BEAT",
    "BEAT_SECONDS",
    "SAVING",
    "TRAINING",
    "check",
    "deepspeed_environment",
    "divide",
    "environments",
    "fitted",
    "node",
    "of_node",
    "run",
    "total",
]
