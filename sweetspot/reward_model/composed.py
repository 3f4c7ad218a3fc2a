"""Reward models made of others: an ensemble, and one that charges for length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import Field

from sweetspot.component import component
from sweetspot.reward_model import Conversation, RewardModel, Scorer, Scores


@component
class Ensemble(RewardModel):
    """reward = mean - caution * sd over the members' standardised rewards, (reward - mean) / sd of each member.

    The constants are the user's and the same for every conversation, so that a reward depends on nothing else in its
    batch or tile; without constants the members' rewards stay as they are. sd over members is that of a population
    (ddof 0). The members' own rewards, before they are standardised, go into `heads` in the order of their names. All
    members are in memory together.

    Source: the pessimistic ensemble of Coste et al., Reward Model Ensembles Help Mitigate Overoptimization, ICLR 2024.
    """

    members: dict[str, RewardModel] = Field(min_length=2)
    mean: dict[str, float] | None
    sd: dict[str, float] | None
    caution: float = Field(ge=0)

    def __post_init__(self) -> None:
        for name, constants in (("mean", self.mean), ("sd", self.sd)):
            if constants is not None and constants.keys() != self.members.keys():
                raise ValueError(
                    f"{name} must have one value a member ({', '.join(sorted(self.members))}), "
                    f"got {', '.join(sorted(constants)) or 'none'}"
                )
        for name, value in (self.sd or {}).items():
            if value <= 0:
                raise ValueError(f"sd must be > 0, got {value:g} for {name}")

    def environment(self) -> dict[str, str]:
        """What any member needs."""
        return {name: value for member in self.members.values() for name, value in member.environment().items()}

    def scorer(self) -> Scorer:
        """All members, loaded."""
        names = sorted(self.members)
        return EnsembleScorer(
            scorers=[self.members[name].scorer() for name in names],
            mean=np.array([(self.mean or {}).get(name, 0.0) for name in names]),
            sd=np.array([(self.sd or {}).get(name, 1.0) for name in names]),
            caution=self.caution,
        )


@dataclass(frozen=True)
class EnsembleScorer:
    """The loaded members with their constants [members]."""

    scorers: list[Scorer]
    mean: np.ndarray
    sd: np.ndarray
    caution: float

    @property
    def tokenizer(self) -> Any:
        """That of the first member that reads sampled ids."""
        return next((scorer.tokenizer for scorer in self.scorers if scorer.tokenizer is not None), None)

    def __call__(self, conversations: Sequence[Conversation], progress: Callable[[int], None]) -> Scores:
        """The rewards; see `Scorer`. A conversation is told of as done by the last member."""
        silent: list[Callable[[int], None]] = [lambda _: None] * (len(self.scorers) - 1)
        found = [
            scorer(self._as_read_by(scorer, conversations), told)
            for scorer, told in zip(self.scorers, [*silent, progress], strict=True)
        ]
        members = np.column_stack([scores.rewards for scores in found]).astype(np.float32)  # [n, members]
        standardised = (members - self.mean) / self.sd
        rewards = standardised.mean(axis=1) - self.caution * standardised.std(axis=1)
        return Scores(rewards.astype(np.float32), members, max(scores.truncated for scores in found))

    def _as_read_by(self, scorer: Scorer, conversations: Sequence[Conversation]) -> Sequence[Conversation]:
        """Sampled ids go to members of the one vocabulary alone; the others read the text."""
        if scorer.tokenizer is None or scorer.tokenizer.get_vocab() == self.tokenizer.get_vocab():
            return conversations
        return [replace(each, token_ids=None) for each in conversations]


@component
class LengthPenalised(RewardModel):
    """reward = that of another reward model - slope * tokens of the response as sampled, its end of turn included.

    A slope fitted on a pool (reward units a token) takes out the linear part of a length bias. `heads` are the other
    model's.
    """

    reward_model: RewardModel
    slope: float

    def environment(self) -> dict[str, str]:
        """What the other model needs."""
        return self.reward_model.environment()

    def scorer(self) -> Scorer:
        """The other model, loaded."""
        return LengthPenalisedScorer(self.reward_model.scorer(), self.slope)


@dataclass(frozen=True)
class LengthPenalisedScorer:
    """The loaded other model and the slope."""

    scorer: Scorer
    slope: float

    @property
    def tokenizer(self) -> Any:
        """That of the other model."""
        return self.scorer.tokenizer

    def __call__(self, conversations: Sequence[Conversation], progress: Callable[[int], None]) -> Scores:
        """The rewards; see `Scorer`.

        Raises:
            ValueError: when nobody counted the tokens of a response.
        """
        if any(each.n_tokens is None for each in conversations):
            raise ValueError("reward_model: length_penalised needs the n_tokens of every sample, and one has none")
        scores = self.scorer(conversations, progress)
        tokens = np.array([each.n_tokens for each in conversations], dtype=np.float64)
        return replace(scores, rewards=(scores.rewards - self.slope * tokens).astype(np.float32))
