"""What a point of a sweep needs in each of its stages, and what of that the store has already. Nothing is written."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sweetspot.component import build, canonical_json, key, within
from sweetspot.data import Imported, Prompts
from sweetspot.embedded import smollm2
from sweetspot.eval import HeldOut, NoEvaluation
from sweetspot.model import EMBEDDED, Model
from sweetspot.reward_model import ImportedReward
from sweetspot.sampler import Sampler, blocks_for, wanted
from sweetspot.sft import SftModel
from sweetspot.stages.reference import CHECKED
from sweetspot.sweep.forecast import Need
from sweetspot.sweep.rates import Calibration, label
from sweetspot.tile import Cover, Group

ENDS = ("sample", "score", "select", "train", "evaluate")


class AbsentError(Exception):
    """A model that the store lacks, so that nothing made of it is there."""


@dataclasses.dataclass(frozen=True)
class Pool:
    """A pool of samples: its key, None while a model that it is made of is absent; the prompts, and their tiles."""

    key: str | None
    name: str
    ids: Sequence[str]
    groups: Sequence[Group]
    n: int


class Work:
    """What points of one store need.

    Args:
        store: its folder, which may be absent.
        calibration: for the lengths of responses.
    """

    def __init__(self, store: Path, calibration: Calibration) -> None:
        self.store, self.calibration = store, calibration
        self.loaded: dict[str, Prompts] = {}
        self.unknown: dict[str, None] = {}  # what is left out, for people

    def of(self, config: Mapping[str, Any]) -> list[Need]:
        """The needs of a run, in the order of its stages.

        Args:
            config: plain and composed.

        Raises:
            ValueError, StoreError, OSError: for a configuration or files that the run would refuse.
        """
        return list(self._of(config))

    def _of(self, config: Mapping[str, Any]) -> Iterator[Need]:
        sampler: Sampler = build(config["sampler"], "sampler")
        prompts, start, reward_model = self._prompts(config), self.located(config["model"]), config["reward_model"]
        tokens, policy = self._tokens(config), None
        if not isinstance(start, Model):
            yield from self._unmade(config)
        for turn in range(config["rounds"]):
            model = start if turn == 0 else None  # later rounds sample from a policy that is yet to be trained
            n = getattr(sampler, "mean_samples", None) if sampler.budget == "adaptive" else None
            pool = self._pool(config, sampler, model, prompts.train, n or config["n_samples"], turn)
            if turn or not isinstance(build(config["data"], "data"), Imported):
                yield self._sampling(config, pool, tokens, sampler, "sample")
            if not reaches(config, "score"):
                return
            if not isinstance(self.located(reward_model), ImportedReward):
                yield self._scoring(config, pool, reward_model, tokens, sampler, "score")
            if not reaches(config, "train"):
                return
            policy = self._policy(config, pool, start if turn == 0 else None)
            yield from self._training(config, pool, policy, tokens, turn + 1)
        if reaches(config, "evaluate"):
            yield from self._evaluating(config, sampler, prompts.held_out, start, policy, tokens)

    def located(self, part: Mapping[str, Any]) -> Any:
        """The component with its models where the store has them; None while one is yet to be made."""
        try:
            return self._located(build(part))
        except AbsentError:
            return None

    def _located(self, part: Any) -> Any:
        if isinstance(part, SftModel):
            raise AbsentError
        if isinstance(part, Model):
            if part.path != EMBEDDED:
                return part
            folder = self.store / "models" / f"smollm2_135m-{key(smollm2.RECIPE)}"
            if not folder.exists():
                raise AbsentError
            return part.at(folder)
        if not dataclasses.is_dataclass(part) or isinstance(part, type):
            return part
        values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        ready = {name: within(value, self._located) for name, value in values.items()}
        changed = {name: value for name, value in ready.items() if value != values[name]}
        return dataclasses.replace(part, **changed) if changed else part

    def _unmade(self, config: Mapping[str, Any]) -> Iterator[Need]:
        if "sft" in config["model"]:
            self.unknown["the fine-tuning of model.sft is not counted, and all of its runs' work as yet to be done"] = (
                None
            )
            return
        yield Need("prepare", "prepare", "prepare", {EMBEDDED: 0}, frozenset(), 0, "models")

    def _prompts(self, config: Mapping[str, Any]) -> Prompts:
        name = canonical_json(config["data"])
        if name not in self.loaded:
            self.loaded[name] = build(config["data"], "data").load()
        return self.loaded[name]

    def _tokens(self, config: Mapping[str, Any]) -> float:
        measured = self.calibration.find("sample", label("sample", config)).tokens
        return min(measured or config["sampler"]["max_tokens"] / 2, config["sampler"]["max_tokens"])

    def _pool(
        self, config: Mapping[str, Any], sampler: Sampler, model: Model | None, prompts: pa.Table, n: int, rounds: int
    ) -> Pool:
        """The pool of the model after so many rounds; a name stands for the key while the model is not there."""
        ids = prompts["prompt_id"].to_pylist()
        groups = wanted(ids, np.asarray(blocks_for(n, sampler)), sampler)
        made = key(sampler, model) if model else None
        trained = self._trained(config, rounds) if rounds else ""
        return Pool(made, made or key([config["model"], key(sampler), ids, trained]), ids, groups, n)

    def _trained(self, config: Mapping[str, Any], rounds: int) -> str:
        """A name of the policy that a run has after so many rounds, by all that decides it."""
        parts = ("model", "data", "sampler", "reward_model", "strategy", "dpo", "deepspeed", "n_samples")
        return key({**{name: config[name] for name in (*parts, "ignore_duplicates")}, "rounds": rounds})

    def _tiles(
        self, pool: Pool, folder: Path | None, sampler: Sampler, pack: int | None
    ) -> tuple[dict[str, float], set[str]]:
        """Responses by tile of those that are to be there, and the tiles that are."""
        prefix, n = f"{pool.name}/", sampler.tile_samples
        if folder is None or not folder.exists():
            return {prefix + group.name: len(group.rows) * n for group in pool.groups}, set()
        plan = Cover(folder).plan(pool.ids, pool.groups, n, pack)
        parts = {prefix + tile.name: float(len(tile.rows) * n) for tile in plan.tiles}
        return parts, {prefix + tile.name for tile in plan.present}

    def _sampling(self, config: Mapping[str, Any], pool: Pool, tokens: float, sampler: Sampler, stage: str) -> Need:
        folder = self.store / "samples" / pool.key if pool.key else None
        parts, there = self._tiles(pool, folder, sampler, sampler.tile_prompts)
        unit = "tiles" if stage == "sample" else ""
        return Need(stage, "sample", label("sample", config), parts, frozenset(there), tokens, unit, True)

    def _scoring(
        self,
        config: Mapping[str, Any],
        pool: Pool,
        part: Mapping[str, Any],
        tokens: float,
        sampler: Sampler,
        stage: str,
    ) -> Need:
        scorer = self.located(part)
        folder = self.store / "rewards" / key(scorer, pool.key) if scorer is not None and pool.key else None
        parts, there = self._tiles(pool, folder, sampler, None)
        mark = key(dict(part)) if scorer is None else key(scorer)
        parts, there = {f"{mark} {name}": count for name, count in parts.items()}, {f"{mark} {name}" for name in there}
        unit = "tiles" if stage == "score" else ""
        return Need(stage, "score", label("score", config, part), parts, frozenset(there), tokens, unit, True)

    def _policy(self, config: Mapping[str, Any], pool: Pool, start: Model | None) -> Model | None:
        """The policy, where the store has it; by the keys of `stages.select` and `stages.train`."""
        scorer = self.located(config["reward_model"])
        if start is None or pool.key is None or scorer is None:
            return None
        if config["sampler"]["budget"] == "adaptive" or isinstance(build(config["data"], "data"), Imported):
            return None
        rewards, strategy = key(scorer, pool.key), build(config["strategy"], "strategy")
        pairs = key(strategy, rewards, list(pool.ids), config["n_samples"], config["ignore_duplicates"])
        dpo, deepspeed = build(config["dpo"], "dpo"), build(config["deepspeed"], "deepspeed")
        folder = self.store / "policies" / key(dpo, deepspeed, start, None if dpo.reference_free else start, pairs)
        return start.at(folder, f"{start.name}-dpo") if folder.exists() else None

    def _training(
        self, config: Mapping[str, Any], pool: Pool, policy: Model | None, tokens: float, rounds: int
    ) -> Iterator[Need]:
        """At most a pair a prompt; the rows of the reference are those of the strategy's two positions."""
        dpo, count, trained = build(config["dpo"], "dpo"), float(len(pool.ids)), self._trained(config, rounds)
        if not dpo.reference_free:
            whole = f"{pool.name}/{pool.n}/{config['ignore_duplicates']}"
            rows = {f"{whole}/{position}": count for position in _positions(config["strategy"])}
            if dpo.reference == "sampler":
                rows = {f"{whole}/{trained}": min(count, CHECKED)}
            there = frozenset(rows) if policy else frozenset[str]()
            yield Need("reference", "reference", label("reference", config), rows, there, tokens, "positions")
        part = {trained: 2 * count * (1 - dpo.held_out_share) * dpo.epochs}
        there = frozenset(part) if policy else frozenset[str]()
        yield Need("train", "train", label("train", config), part, there, tokens, "policies")

    def _evaluating(
        self,
        config: Mapping[str, Any],
        sampler: Sampler,
        prompts: pa.Table,
        start: Any,
        policy: Model | None,
        tokens: float,
    ) -> Iterator[Need]:
        for name, part in {"eval": config["eval"], **config["also"]}.items():
            evaluation = build(part, name)
            if isinstance(evaluation, HeldOut):
                yield from self._held_out(config, part, sampler, prompts, start, policy, tokens)
            elif not isinstance(evaluation, NoEvaluation):
                self.unknown[f"{name}: {type(evaluation).__name__} is not counted"] = None

    def _held_out(
        self,
        config: Mapping[str, Any],
        part: Mapping[str, Any],
        sampler: Sampler,
        prompts: pa.Table,
        start: Any,
        policy: Model | None,
        tokens: float,
    ) -> Iterator[Need]:
        """Both sides' samples, their rewards by the judge and the selecting model, and log-probabilities for the KL."""
        evaluation: HeldOut = build(part, "eval")
        cut = {"tile_prompts": evaluation.tile_prompts, "tile_samples": evaluation.n_samples}
        fresh = dataclasses.replace(sampler, **cut)
        selecting = self.located(config["reward_model"])
        imported = isinstance(selecting, ImportedReward)
        done = self._evaluated(part, fresh, prompts, start, policy, None if imported else selecting)
        trained = self._trained(config, config["rounds"])
        name = f"{trained} {key(dict(part))}"
        yield Need("evaluate", "evaluate", "evaluate", {name: 0}, frozenset([name] if done else []), 0, "evaluations")
        if done:
            return
        sides = [
            self._pool(config, fresh, model, prompts, evaluation.n_samples, rounds)
            for model, rounds in ((start, 0), (policy, config["rounds"]))
        ]
        yield from (self._sampling(config, pool, tokens, fresh, "evaluate") for pool in sides)
        judges = [part["judge"], *([] if imported else [config["reward_model"]])]
        for judge in judges:
            yield from (self._scoring(config, pool, judge, tokens, fresh, "evaluate") for pool in sides)
        if evaluation.kl_samples:
            rows = float(len(sides[0].ids) * evaluation.kl_samples)
            for side in ("policy", "start"):
                places = {f"{trained}/{side}": rows}
                yield Need("evaluate", "reference", label("reference", config), places, frozenset(), tokens, "")

    def _evaluated(
        self,
        part: Mapping[str, Any],
        fresh: Sampler,
        prompts: pa.Table,
        start: Any,
        policy: Model | None,
        selecting: Any,
    ) -> bool:
        """Whether the store has the scores, by the key of `stages.held_out`."""
        evaluation = self.located(part)
        if policy is None or evaluation is None:
            return False
        made = key(evaluation, fresh, policy, start, selecting, prompts["prompt_id"].to_pylist())
        return (self.store / "scores" / made / "scores.parquet").exists()


def reaches(config: Mapping[str, Any], stage: str) -> bool:
    """Whether a run goes as far as the stage."""
    return ENDS.index(config["until"]) >= ENDS.index(stage)


def _positions(strategy: Mapping[str, Any]) -> list[str]:
    """Names of the two responses that a strategy picks; those of one name are the same."""
    named = [strategy.get(side) for side in ("chosen", "rejected")]
    if named[0] != named[1] and all(isinstance(one, str) for one in named):
        return [str(one) for one in named]
    return [f"{canonical_json(dict(strategy))} {side}" for side in ("chosen", "rejected")]
