"""Evaluation: how a policy answers prompts that it was not trained on, and who says so.

held_out          fresh responses of start and policy to held-out prompts, compared by a reward model
alpaca            AlpacaEval 2: 805 prompts against a baseline's responses, by a judge
arena             Arena-Hard: the same in both orders
judge             who judges: an OpenAI-compatible address, a model of one's own, a reward model,
                  Python of one's own
asking, answers   the request loop, and the file that keeps what was paid
"""

from sweetspot.eval.alpaca import AlpacaEval
from sweetspot.eval.arena import ArenaHard
from sweetspot.eval.held_out import HeldOut, distinct, preferences
from sweetspot.eval.ifeval import IFEval
from sweetspot.eval.judge import OpenAIJudge, PairJudge, RewardJudge, VllmJudge
from sweetspot.eval.lm_eval import LmEval
from sweetspot.eval.nothing import NoEvaluation
from sweetspot.eval.reward_bench import RewardBench

EVALUATIONS = (HeldOut, AlpacaEval, ArenaHard, IFEval, LmEval, RewardBench, NoEvaluation)

__all__ = [
    "EVALUATIONS",
    "AlpacaEval",
    "ArenaHard",
    "HeldOut",
    "IFEval",
    "LmEval",
    "NoEvaluation",
    "OpenAIJudge",
    "PairJudge",
    "RewardBench",
    "RewardJudge",
    "VllmJudge",
    "distinct",
    "preferences",
]
