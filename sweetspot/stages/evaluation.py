"""Evaluating: the policy samples other prompts, and somebody says how good the answers are."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from sweetspot.dpo import DeepSpeed
from sweetspot.eval import AlpacaEval, ArenaHard, HeldOut, IFEval, LmEval, RewardBench, ifeval, reward_bench
from sweetspot.stages.checked import benched, checked, measured
from sweetspot.stages.held_out import held_out
from sweetspot.stages.judged import judged, preflight, tested
from sweetspot.stages.prepare import prepare
from sweetspot.stages.run import Run
from sweetspot.stages.subject import Evaluation, Subject
from sweetspot.visible import halves_told


def evaluate(evaluations: Mapping[str, Any], subject: Subject, deepspeed: DeepSpeed, run: Run) -> Iterator[Evaluation]:
    """What each evaluation that is one of policies finds about the policy."""
    for name, one in evaluations.items():
        if not isinstance(one, RewardBench):
            yield _found(name, prepare(one, deepspeed, run), subject, run)


def _found(name: str, evaluation: Any, subject: Subject, run: Run) -> Evaluation:
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


def bench(evaluations: Mapping[str, Any], deepspeed: DeepSpeed, run: Run) -> Iterator[Evaluation]:
    """What each evaluation that is one of reward models finds."""
    for name, one in evaluations.items():
        if isinstance(one, RewardBench):
            yield benched(name, prepare(one, deepspeed, run), run)


def check(evaluations: Mapping[str, Any]) -> list[str]:
    """What a user should know before a run that ends in these evaluations: what they cost, and what they will lack.

    Raises:
        ValueError: for what would stop the run at its end, such as a file that cannot be used; one line.
    """
    told: list[str] = []
    for name, one in evaluations.items():
        if isinstance(one, IFEval):
            told += halves_told(name, ifeval.read(one)[2])
        if isinstance(one, RewardBench):
            reward_bench.read(one)
            told += halves_told(name, reward_bench.changed(one))
    asked = [(name, one) for name, one in evaluations.items() if isinstance(one, AlpacaEval | ArenaHard)]
    return [*told, *(line for name, one in asked for line in preflight(name, one))]


def try_judges(evaluations: Mapping[str, Any], run: Run) -> None:
    """Have the judges that these evaluations pay tested before the run's first worker starts.

    A run that makes nothing starts none, and so needs no judge.
    """
    for name, one in evaluations.items():
        if isinstance(one, AlpacaEval | ArenaHard):
            run.before[name] = functools.partial(tested, name, one, run)
