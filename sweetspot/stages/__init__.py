"""The stages, in the order of the paper's figure 1: sample, score, select, train, evaluate.

Each stage takes what the one before returned, looks in the store for what is there already, has a worker make the
rest, and records how much it made and reused. Nothing here imports torch, vLLM or transformers.
"""

from sweetspot.stages.adaptive import sample_adaptively
from sweetspot.stages.cautions import bias, cautions
from sweetspot.stages.evaluation import bench, check, evaluate, try_judges
from sweetspot.stages.imported import imported
from sweetspot.stages.logged import log_pairs, log_rewards
from sweetspot.stages.pairs import Pairs, select
from sweetspot.stages.policy import Policy, check_training, train
from sweetspot.stages.pool import Rewards, Samples, sample, score, text_codes, token_counts
from sweetspot.stages.prepare import prepare
from sweetspot.stages.reference import check_sampled_reference, log_probabilities
from sweetspot.stages.run import Run, Stage
from sweetspot.stages.subject import Evaluation, Subject

__all__ = [
    "Evaluation",
    "Pairs",
    "Policy",
    "Rewards",
    "Run",
    "Samples",
    "Stage",
    "Subject",
    "bench",
    "bias",
    "cautions",
    "check",
    "check_sampled_reference",
    "check_training",
    "evaluate",
    "imported",
    "log_pairs",
    "log_probabilities",
    "log_rewards",
    "prepare",
    "sample",
    "sample_adaptively",
    "score",
    "select",
    "text_codes",
    "token_counts",
    "train",
    "try_judges",
]
