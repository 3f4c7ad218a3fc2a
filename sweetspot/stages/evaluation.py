"""Evaluating: the policy samples other prompts, and somebody says how good the answers are."""

from collections.abc import Mapping
from typing import Any

from sweetspot.eval import AlpacaEval, ArenaHard, HeldOut, IFEval, LmEval, RewardBench, ifeval, reward_bench
from sweetspot.stages.checked import benched, checked, measured
from sweetspot.stages.held_out import held_out
from sweetspot.stages.judged import judged, preflight
from sweetspot.stages.run import Run
from sweetspot.stages.subject import Evaluation, Subject


def evaluate(name: str, evaluation: Any, subject: Subject, run: Run) -> Evaluation:
    """What the evaluation of that name finds about the policy."""
    match evaluation:
        case HeldOut():
            return held_out(name, evaluation, subject, run)
        case AlpacaEval() | ArenaHard():
            return judged(name, evaluation, subject, run)
        case IFEval():
            return checked(name, evaluation, subject, run)
        case LmEval():
            return measured(name, evaluation, subject, run)
        case _:
            raise TypeError(f"no stage evaluates by {type(evaluation).__name__}")


def bench(name: str, evaluation: RewardBench, run: Run) -> Evaluation:
    """What the evaluation of that name finds about a reward model."""
    return benched(name, evaluation, run)


def check(evaluations: Mapping[str, Any]) -> list[str]:
    """What a user should know before a run that ends in these evaluations: what they cost, and what they will lack.

    Raises:
        ValueError: for what would stop the run at its end, such as a file that cannot be used; one line.
    """
    for one in evaluations.values():
        if isinstance(one, IFEval):
            ifeval.read(one)
        if isinstance(one, RewardBench):
            reward_bench.read(one)
    asked = [(name, one) for name, one in evaluations.items() if isinstance(one, AlpacaEval | ArenaHard)]
    return [line for name, one in asked for line in preflight(name, one)]
