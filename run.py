"""The single entry point: compose the configuration, run the stages in order, print where the results lie.

python run.py                                             the whole pipeline on the embedded default
python run.py strategy=scalable n_samples=32              one point of the paper
python run.py -m strategy=max_min,mu_minus_2sigma,random  several, sharing one pool
python run.py --help                                      the groups and the most useful overrides
"""

import dataclasses
import os
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError
from rich.console import Console
from yaml import YAMLError

from sweetspot import logger as loggers
from sweetspot import manifest as manifests
from sweetspot import provenance, ranks, report, stages
from sweetspot.budget import Adaptive
from sweetspot.component import build, component, explain, refusal
from sweetspot.data import Data, Imported, Prompts
from sweetspot.dpo import DPO, DeepSpeed
from sweetspot.eval import EVALUATIONS, HeldOut, NoEvaluation, RewardBench
from sweetspot.launch import Launch, WorkerError
from sweetspot.model import Model
from sweetspot.reward_model import ImportedReward, RewardModel
from sweetspot.sampler import Sampler
from sweetspot.sft import SftModel
from sweetspot.stages import Run, Subject
from sweetspot.stopping import REQUEUE, Stopped, listen
from sweetspot.store import StoreError, opened
from sweetspot.sweep.launcher import Local, Slurm, SubmititLocal
from sweetspot.sweep.launching import SweepError
from sweetspot.sweep.points import run_name, sweep_name
from sweetspot.visible import one_line, visible

WANTS_TRACE = os.environ.get("HYDRA_FULL_ERROR") == "1"
COMPOSING = (HydraException, OmegaConfBaseException, YAMLError)
USER_ERRORS = (*COMPOSING, ValueError, WorkerError, StoreError, SweepError, OSError)
OmegaConf.register_new_resolver("run_name", run_name, replace=True)
OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
STAGES = ("sample", "score", "select", "train", "evaluate")


@component
class Settings:
    """The composed configuration, built and checked: the fields are the keys of conf/config.yaml."""

    model: Model
    data: Any
    sampler: Sampler
    reward_model: Any
    strategy: Any
    dpo: DPO
    deepspeed: DeepSpeed
    eval: Any
    also: dict[str, Any]
    logger: dict[str, Any]
    launch: Launch
    launcher: Local | SubmititLocal | Slurm
    n_samples: int = Field(ge=2)
    seed: int = Field(ge=0)
    rounds: int = Field(ge=1)
    until: Literal["sample", "score", "select", "train", "evaluate"]
    store: str = Field(min_length=1)
    ignore_duplicates: bool
    remake_corrupt: bool

    def __post_init__(self) -> None:
        for name, kind in (("data", Data), ("reward_model", RewardModel)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} must be a {kind.__name__}, got {type(getattr(self, name)).__name__}")
        for name, one in {"eval": self.eval, **self.also}.items():
            if not isinstance(one, EVALUATIONS):
                raise ValueError(f"{name} must be an evaluation, got {type(one).__name__}")
        needed = getattr(self.strategy, "minimum_samples", 2)
        if self.n_samples < needed:
            raise ValueError(f"n_samples must be >= {needed} for the strategy's positions, got {self.n_samples}")
        if isinstance(self.reward_model, ImportedReward) and (self.rounds > 1 or not isinstance(self.data, Imported)):
            raise ValueError(
                "reward_model=imported scores the samples of data=imported alone, so that rounds must be 1; got "
                f"data {type(self.data).__name__}, rounds {self.rounds}"
            )
        if self.adaptive and not self.reaches("score"):
            raise ValueError(f"until must be score or later with sampler.budget=adaptive, got {self.until}")
        if not callable(self.strategy):
            raise ValueError(f"strategy must be a Strategy, got {type(self.strategy).__name__}")
        if not dataclasses.is_dataclass(self.strategy):
            raise ValueError(f"strategy must be a class under @component, got {type(self.strategy).__name__}")
        if self.dpo.reference == "sampler":
            stages.check_sampled_reference(self.dpo, self.data, self.sampler)
        if self.rounds > 1 and not self.reaches("train"):
            raise ValueError(f"until must be train or evaluate when rounds is {self.rounds}, got {self.until}")

    @property
    def chosen(self) -> str:
        """The position of the strategy's chosen response."""
        return str(getattr(self.strategy, "chosen", type(self.strategy).__name__))

    @property
    def adaptive(self) -> Adaptive | None:
        """Who gets how many samples, where not all get n_samples."""
        return self.sampler.allocation(self.n_samples, self.chosen)

    def reaches(self, stage: str) -> bool:
        """Whether the run goes as far as the stage."""
        return STAGES.index(self.until) >= STAGES.index(stage)

    def evaluations(self, first: str) -> dict[str, Any]:
        """The evaluations that the run comes to, by name; `first` is the name of `eval`."""
        named = {first: self.eval, **self.also}
        return {
            name: one
            for name, one in named.items()
            if self.reaches("score" if isinstance(one, RewardBench) else "evaluate")
            and not isinstance(one, NoEvaluation)
        }


def settings_of(config: Mapping[str, Any]) -> Settings:
    """The settings that a composed configuration describes.

    Raises:
        ValueError: one line that names key, rule and value.
    """
    values = {name: _built(part, name) for name, part in config.items()}
    try:
        return Settings(**values)
    except ValidationError as error:
        raise ValueError(explain(error, "", list(Settings.__pydantic_fields__))) from None  # pyright: ignore


def _built(part: Any, at: str) -> Any:
    """The component that a part of the configuration describes, or those by name, or the plain value."""
    if not isinstance(part, Mapping):
        return part
    return build(part, at) if "_target_" in part else {name: _built(one, f"{at}.{name}") for name, one in part.items()}


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    """Run one composed configuration; an error leaves its trace in error.txt, and a user's error ends in one line."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    (folder / "error.txt").unlink(missing_ok=True)
    try:
        _run(config, folder)
    except Exception as error:
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
        if isinstance(error, USER_ERRORS):
            _tell(error)
        raise


def _run(config: DictConfig, folder: Path) -> None:
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    settings = settings_of(plain)
    if settings.launcher.dry_run:  # a job of a sweep has none
        raise ValueError("launcher.dry_run must be false without -m: it plans a sweep, and this is a run; got true")
    provenance.keep(folder, ["python", *sys.argv])
    if not ranks.node(settings.launch) and not any(
        one.startswith("hydra.run.dir=") for one in HydraConfig.get().overrides.hydra
    ):
        provenance.link_latest(folder)
    command = " ".join(["python run.py", *HydraConfig.get().overrides.task])
    pipeline(settings, plain, folder, command)


def pipeline(settings: Settings, config: Mapping[str, Any], folder: Path, command: str) -> Path:
    """Run the stages that `until` names, and leave manifest.json and report.html in the folder.

    Returns:
        The manifest's path. A run that stops at an error leaves a manifest of the stages that it finished.
    """
    console, started = Console(), datetime.now(UTC)
    told = loggers.check(settings.logger)
    settings.launch.workers(settings.sampler.group)  # devices that are not there are told before anything is made
    training = settings.dpo, settings.deepspeed, settings.launch
    told += stages.check_training(*training) if settings.reaches("train") else []
    prompts = settings.data.load()
    evaluations = settings.evaluations(_choices().get("eval", "evaluation"))
    if prompts.held_out.num_rows == 0 and any(isinstance(one, HeldOut) for one in evaluations.values()):
        raise ValueError(
            "data: no prompt is held out, so there is nothing to evaluate on; hold some out, or set until=train"
        )
    told += stages.cautions(settings.strategy, settings.n_samples, prompts)
    told += stages.check(evaluations)
    store = opened(settings.store)
    facts: dict[str, Any] = {"warnings": told, "rounds": [], "evaluations": []}
    if node := ranks.node(settings.launch):  # it helps to sample, score and train, and leaves the rest to node 0
        own = Run(store, folder / f"node-{node}", settings.launch, loggers.Logs({}), False)
        _stages(settings, {}, prompts, own, facts)
        return folder
    for warning in told:
        console.print(f"warning: {visible(warning)}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    logs = loggers.open_all(settings.logger, folder, config, folder.name, told)
    run = Run(store, folder, settings.launch, logs, settings.remake_corrupt)
    stages.try_judges(evaluations, run)
    written = folder / "manifest.json"
    try:
        _stages(settings, evaluations, prompts, run, facts)
    finally:
        manifest = {**manifests.of_run(run, config, command, started), **facts}
        manifests.write(written, manifest)
        pages = [] if sys.exc_info()[0] else report.tried(lambda: report.write(written), told)
        report.close(logs, settings.logger, manifests.flat_metrics(manifest), [written, *pages])
        manifests.write(written, manifest)  # with what closing the logs had to tell
    console.print(report.summary(manifest))
    lies = "".join(f"report    {page}\n" for page in pages)
    console.print(f"{lies}manifest  {written}", markup=False, highlight=False, soft_wrap=True)
    return written


def _choices() -> Mapping[str, str]:
    """The choice of each group."""
    return HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}


def _stages(
    settings: Settings, evaluations: Mapping[str, Any], prompts: Prompts, run: Run, facts: dict[str, Any]
) -> None:
    """The paper's figure 1, once a round; what each stage found goes into the facts as soon as it is known."""
    start: Model = stages.prepare(settings.model, settings.deepspeed, run)
    reward_model: RewardModel = stages.prepare(settings.reward_model, settings.deepspeed, run)
    if isinstance(settings.model, SftModel):
        facts["sft"] = manifests.of_sft(start)
    model = start
    for result in stages.bench(evaluations, settings.deepspeed, run):
        facts["evaluations"].append(manifests.of_evaluation(result))
    for turn in range(settings.rounds):
        found: dict[str, Any] = {}
        facts["rounds"].append(found)
        adaptive = None
        if turn == 0 and prompts.pool is not None:
            samples = stages.imported(prompts.pool, prompts.train, model, settings.n_samples, run)
        elif settings.adaptive is None:
            samples = stages.sample(prompts.train, model, settings.sampler, settings.n_samples, run)
        else:
            adaptive = stages.sample_adaptively(
                prompts.train, model, settings.sampler, settings.adaptive, settings.chosen, reward_model, run
            )
            samples = adaptive.samples
            facts["warnings"] += stages.bias(settings.sampler, samples)
        found["samples"] = manifests.of_samples(samples)
        if not settings.reaches("score"):
            return
        rewards = adaptive or stages.score(samples, reward_model, run)
        stages.log_rewards(rewards, run)
        found["rewards"] = manifests.of_rewards(rewards, str(_choices().get("reward_model", "selecting")))
        if not settings.reaches("select"):
            return
        pairs = stages.select(rewards, settings.strategy, settings.ignore_duplicates, run)
        stages.log_pairs(pairs, run)
        found["pairs"] = manifests.of_pairs(pairs, settings.strategy)
        if not settings.reaches("train"):
            return
        reference = start if settings.dpo.reference_model == "first" else model
        card = {"base": settings.model.name, "reward_model": found["rewards"]["reward_model"], **found["pairs"]}
        policy = stages.train(pairs, model, reference, settings.dpo, settings.deepspeed, card, run)
        found["policy"] = manifests.of_policy(policy)
        model = policy.model
    by_name = (facts["rounds"][-1]["rewards"]["reward_model"], reward_model)
    selecting = None if isinstance(reward_model, ImportedReward) else by_name
    subject = Subject(model, start, prompts.held_out, settings.sampler, selecting, settings.dpo)
    for result in stages.evaluate(evaluations, subject, settings.deepspeed, run):
        facts["evaluations"].append(manifests.of_evaluation(result))
        facts["warnings"] += [line for name in ("order_warning", "text_warning") if (line := result.metrics.get(name))]


def _tell(error: Exception) -> NoReturn:
    """End with the error as one line, or with its whole trace where HYDRA_FULL_ERROR=1 asks for it."""
    if WANTS_TRACE:
        raise error
    sys.exit(f"error: {one_line(refusal(error))}")


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))  # of workers
    sys.path.append(str(Path.cwd()))  # where components of one's own may lie, as workers find them
    os.environ["HYDRA_FULL_ERROR"] = "1"  # a configuration that does not compose comes back here as well
    listen()
    try:
        main()
    except Stopped as stopped:
        print(f"stopped by {stopped}; the same command goes on from here", file=sys.stderr)
        sys.exit(REQUEUE)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
    except USER_ERRORS as error:
        _tell(error)
