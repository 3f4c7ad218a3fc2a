"""Configuration: every file of conf/ composes and builds, every key has a comment, every wrong value gets one line."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

import run
from sweetspot.strategy import PositionPair, paper_pairs

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
FILES = sorted(path for path in CONF.rglob("*.yaml") if path.name != "config.yaml")
NEEDS = {
    "model=other": ["model.path=some/model"],
    "model=other_sft": ["model.path=some/base", "model.sft.data.path=some/conversations"],
    "data=jsonl": ["data.path=a.jsonl"],
    "data=parquet": ["data.path=a.parquet"],
    "data=imported": ["data.pool=0123456789abcdef"],
    "reward_model=imported": ["data=imported", "data.pool=0123456789abcdef"],
}
NEEDS["reward_model=sequence_classifier"] = NEEDS["reward_model=vllm_classifier"] = [
    "reward_model.path=some/classifier"
]
NEEDS["reward_model=ensemble"] = ["reward_model.mean=null", "reward_model.sd=null"]
NEEDS["reward_model=length_penalised"] = ["reward_model.slope=0.002"]
NEEDS["reward_model=python_function"] = ["reward_model.function=tests.tiny.shortest_wins"]
NEEDS["eval=arena_hard"] = ["eval.questions_path=q.jsonl", "eval.baseline_path=b.jsonl"]
NEEDS["eval=ifeval"] = ["eval.path=input_data.jsonl"]
NEEDS["eval=reward_bench_local"] = ["eval.folder=preferences"]
NEEDS["experiment_size=academic_tiny"] = ["experiment=academic", "size=tiny"]
NEEDS["judge=openai"] = ["eval.judge.name=own", "eval.judge.model=m", "eval.judge.base_url=http://localhost/v1"]


@pytest.fixture(autouse=True)
def hydra_config() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def settings(*overrides: str) -> run.Settings:
    plain: Any = OmegaConf.to_container(compose("config", list(overrides)), resolve=True, throw_on_missing=True)
    return run.settings_of(plain)


def choice(path: Path) -> str:
    return f"{path.parent.relative_to(CONF)}={path.stem}"


@pytest.mark.parametrize("path", FILES, ids=choice)
def test_every_config_composes_and_builds(path: Path) -> None:
    group = choice(path)
    named = (
        ["eval=alpaca_eval_2", group.replace("judge=", "judge@eval.judge=")] if path.parent.name == "judge" else [group]
    )
    built = settings(*named, *NEEDS.get(group, []))
    assert isinstance(built, run.Settings)


@pytest.mark.parametrize("path", [*FILES, CONF / "config.yaml"], ids=lambda path: str(path.relative_to(CONF)))
def test_every_key_has_a_comment(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert any(line.startswith("# ") for line in lines)
    bare = []
    for number, line in enumerate(lines):
        key = re.match(r"\s*([a-z_0-9]+):\s*(\S.*)?$", line)
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if key and "#" not in line and key.group(2) and not following.strip().startswith("#"):
            bare.append(line)
    allowed = ("_target_", "dir:", "subdir:", "app_name:", "template:", "handlers:")
    assert [line for line in bare if not line.strip().startswith(allowed)] == []


FOUR = "random,max_min,scalable,mu_minus_2sigma"
LOSSES_SWEPT = "dpo,ipo,hinge,apo_zero,sppo_hard,simpo"
FAR = {"strategy.chosen": "max,mu+2sigma,mu+3sigma,mu+4sigma", "strategy.rejected": "min,mu-2sigma,mu-3sigma,mu-4sigma"}
PAIRS = ",".join(["random", *(f"paper/{chosen}_{rejected}" for chosen, rejected in paper_pairs())])
SWEEPS: dict[str, dict[str, dict[str, str]]] = {  # what an experiment sweeps; a size that is not named is as "else"
    "academic": {"tiny": {"strategy": "random,mu_minus_2sigma"}, "else": {"strategy": FOUR}},
    "adaptive_budget": {"else": {"sampler.budget": "adaptive,uniform"}},
    "extended_positions": {
        "tiny": {"strategy.chosen": "max,mu+3sigma", "strategy.rejected": "min,mu-3sigma"},
        "else": FAR,
    },
    "first_look": {"else": {}},
    "loss_swap": {
        "tiny": {"loss": LOSSES_SWEPT, "strategy": "scalable,mu_minus_2sigma"},
        "else": {"loss": LOSSES_SWEPT, "strategy": "scalable,best_two_sigma,mu_minus_2sigma"},
    },
    "min_of_k": {"else": {"strategy.rejected": "min_of_2,min_of_5,min_of_10,min_of_28,min"}},
    "pair_grid": {"else": {"strategy": PAIRS}},
    "paper_point": {"else": {}},
    "paper_point_base": {"else": {}},
    "reward_model_swap": {
        "tiny": {"reward_model": "tiny,tiny_gold", "strategy": "random,max_min"},
        "paper": {"reward_model": "armorm,skywork_8b", "strategy": FOUR},
        "else": {"reward_model": "embedded,embedded_gold", "strategy": FOUR},
    },
    "reward_normality": {"else": {}},
    "rounds": {
        "tiny": {"rounds": "1,2", "strategy": "scalable,mu_minus_2sigma"},
        "else": {"rounds": "1,2,3", "strategy": "scalable,mu_minus_2sigma"},
    },
    "sample_scaling": {
        "tiny": {"n_samples": "5,16,32", "strategy": FOUR},
        "paper": {"n_samples": "5,20,50,100,200,400", "strategy": FOUR},
        "else": {"n_samples": "5,16,64", "strategy": FOUR},
    },
    "training_dynamics": {"else": {"strategy.rejected": "min,mu-2sigma,mu,mu+2sigma"}},
}


@pytest.mark.parametrize("size", [None, "tiny", "embedded", "paper"])
@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_sweeps_what_it_says_at_every_size(experiment: str, size: str | None) -> None:
    chosen = [f"experiment={experiment}", *([f"size={size}"] if size else [])]
    hydra = compose("config", chosen, return_hydra_config=True).hydra
    swept = {key: re.sub(r"[\s]|,$", "", str(values)) for key, values in (hydra.sweeper.params or {}).items()}
    assert swept == SWEEPS[experiment].get(size or "else", SWEEPS[experiment]["else"])
    assert (hydra.mode is not None) == bool(swept)


def test_a_study_has_its_own_values_at_a_size() -> None:
    shares = {
        size: settings("experiment=training_dynamics", f"size={size}").dpo for size in ("tiny", "embedded", "paper")
    }
    assert {size: dpo.held_out_share for size, dpo in shares.items()} == {"tiny": 0.25, "embedded": 0.2, "paper": 0.2}
    ends = [settings("experiment=reward_model_swap", f"size={size}").until for size in ("tiny", "embedded", "paper")]
    assert ends == ["evaluate", "select", "evaluate"]
    academic = settings("experiment=academic", "size=tiny").also["academic"]
    assert (academic.tasks, academic.include_path) == ({"rhymes": 0}, "tiny/tasks")
    assert len(settings("experiment=academic", "size=paper").also["academic"].tasks) == 4


@pytest.mark.parametrize(("size", "beta"), [("tiny", 0.1), ("embedded", 0.1), ("paper", 0.01)])
def test_a_loss_keeps_the_recipe_s_beta_and_simpo_brings_its_own(size: str, beta: float) -> None:
    for loss in LOSSES_SWEPT.split(","):
        dpo = settings(f"size={size}", f"loss={loss}").dpo
        assert (dpo.loss, dpo.beta, dpo.gamma) == (loss, *((2.0, 1.0) if loss == "simpo" else (beta, 0.0)))


@pytest.mark.parametrize("size", ["tiny", "embedded", "paper"])
@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_composes_at_every_size(experiment: str, size: str) -> None:
    assert isinstance(settings(f"experiment={experiment}", f"size={size}"), run.Settings)


def test_size_and_experiment_override_the_defaults_and_the_command_line_overrides_both() -> None:
    point = settings("experiment=paper_point")
    assert (point.n_samples, point.seed, point.model.name) == (200, 42, "llama3_8b_instruct")
    tiny = settings("experiment=paper_point", "size=tiny", "n_samples=5")
    assert (tiny.n_samples, tiny.seed, tiny.model.path) == (5, 0, "tiny/policy")
    assert settings("size=tiny", "eval=none", "reward_model=embedded", "sampler=vllm").n_samples == 32
    assert settings("size=embedded", "model=other", "model.path=a/b", "eval=none").data.limit == 96
    assert settings().n_samples == 16


def test_further_evaluations_are_named_on_the_command_line() -> None:
    built = settings("eval=none", "+eval@also.alpaca=alpaca_eval_2", "judge@also.alpaca.judge=gpt4_1")
    assert list(built.evaluations("none")) == ["alpaca"]
    assert built.also["alpaca"].judge.name == "gpt4_1"
    assert settings("eval=none").evaluations("none") == {}
    assert list(settings("+eval@also.x=alpaca_eval_2", "until=train").evaluations("held_out")) == []


def test_a_run_has_one_logger_or_several_or_none() -> None:
    assert list(settings().logger) == ["jsonl"]
    assert list(settings("logger=wandb").logger) == ["wandb"]
    assert sorted(settings("logger=[wandb,jsonl]", "logger.wandb.project=mine").logger) == ["jsonl", "wandb"]
    assert settings("logger=[wandb,jsonl]", "logger.wandb.project=mine").logger["wandb"].project == "mine"
    assert settings("logger=none").logger == settings("logger=[]").logger == {}


def test_the_paper_s_21_pairs_build_from_overrides() -> None:
    for chosen, rejected in paper_pairs():
        built = settings(f"strategy.chosen={chosen}", f"strategy.rejected={rejected}")
        assert built.strategy == PositionPair(chosen=chosen, rejected=rejected, ddof=1)
        assert settings(f"strategy=paper/{chosen}_{rejected}").strategy == built.strategy


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["n_samples=1"], ["n_samples", "greater than or equal to 2", "got 1"]),
        (["n_samples=many"], ["n_samples", "valid integer", "got 'many'"]),
        (["n_samples=4", "strategy=scalable"], ["n_samples must be >= 5", "got 4"]),
        (["sampler.temperature=0"], ["sampler", "temperature must be > 0", "got 0"]),
        (["sampler.top_p=1.5"], ["sampler.top_p", "less than or equal to 1", "got 1.5"]),
        (["sampler=transformers", "sampler.batch_size=0"], ["sampler.batch_size", "got 0"]),
        (["+sampler.top_k=5"], ["sampler.top_k", "unknown key"]),
        (["+speed=5"], ["speed", "unknown key"]),
        (["strategy.chosen=best"], ["strategy", "best", "min"]),
        (["strategy.chosen=min", "strategy.rejected=max"], ["strategy", "min", "max"]),
        (["dpo.learning_rate=-1"], ["dpo.learning_rate", "greater than 0", "got -1"]),
        (["dpo.loss=dop"], ["dpo.loss", "'simpo'", "got 'dop'"]),
        (["dpo.gamma=0.5"], ["dpo", "gamma must be 0 with loss=dpo", "simpo", "got 0.5"]),
        (["dpo.lora_rank=8"], ["dpo", "lora_rank must be null without adapter=lora", "got 8"]),
        (["dpo.lora_targets=[q_proj]"], ["dpo", "lora_targets must be null without adapter=lora"]),
        (["dpo.adapter=lora"], ["dpo", "lora_rank must be given with adapter=lora", "dpo=lora has values", "got null"]),
        (["dpo=lora", "dpo.lora_rank=0"], ["dpo.lora_rank", "greater than or equal to 1", "got 0"]),
        (["dpo=lora", "dpo.lora_alpha=0"], ["dpo.lora_alpha", "greater than 0", "got 0"]),
        (["dpo=lora", "dpo.lora_targets=[]"], ["dpo", "lora_targets must name a layer", "got []"]),
        (["dpo=lora", "dpo.lora_targets=q_proj"], ["dpo.lora_targets", "'all-linear'", "got 'q_proj'"]),
        (["dpo.adapter=dora"], ["dpo.adapter", "'lora'", "got 'dora'"]),
        (["model=llama3_8b_base_sft", "model.sft.epochs=0"], ["model.sft.epochs", "got 0"]),
        (["model=llama3_8b_base_sft", "model.sft.chat_template=a.jinja"], ["model.sft", "chat_template", "'a.jinja'"]),
        (["dpo.loss=simpo", "dpo.reference_model=first"], ["dpo", "reference_model", "loss=simpo", "got first"]),
        (["dpo.loss=orpo", "dpo.reference=sampler"], ["dpo", "reference", "loss=orpo", "got sampler"]),
        (["dpo.reference=sampler", "dpo.reference_model=first"], ["dpo", "reference_model", "previous", "got first"]),
        (["dpo.reference=sampler", "sampler.max_prompt_tokens=500"], ["sampler.max_prompt_tokens", "192", "got 500"]),
        (["dpo.reference=sampler", "sampler.adapter=tests"], ["dpo.reference=sampler", "sampler.adapter must be null"]),
        (["dpo.reference=sampler", "data=imported", "data.pool=a"], ["dpo.reference=sampler", "data", "got Imported"]),
        (["dpo.batch_size=6"], ["dpo", "batch_size", "multiple"]),
        (["until=tomorrow"], ["until", "'sample'", "got 'tomorrow'"]),
        (["rounds=2", "until=score"], ["until must be train or evaluate", "rounds", "score"]),
        (["reward_model=imported"], ["reward_model=imported", "data=imported", "got data Embedded"]),
        (["reward_model=imported", "data=imported", "data.pool=a", "rounds=2"], ["rounds must be 1", "rounds 2"]),
        (["eval.kl_samples=9"], ["eval", "kl_samples", "got 9"]),
        (["sampler.budget=adaptive"], ["sampler.mean_samples", "n_samples", "got None"]),
        (["sampler.budget=adaptive", "sampler.mean_samples=40"], ["sampler.mean_samples", "not in 16 to 16"]),
        (
            ["sampler.budget=adaptive", "sampler.mean_samples=18", "n_samples=20"],
            ["n_samples must be a multiple", "20"],
        ),
        (
            ["sampler.budget=adaptive", "sampler.mean_samples=24", "n_samples=32", "strategy=best_two_sigma"],
            ["strategy.chosen must be max", "got mu+2sigma"],
        ),
        (
            ["sampler.budget=adaptive", "sampler.mean_samples=24", "n_samples=32", "until=sample"],
            ["until must be score or later", "got sample"],
        ),
        (["logger=wandb", "logger.wandb.mode=of"], ["logger.wandb.mode", "'offline'", "got 'of'"]),
        (["logger=wandb", "logger.wandb.project=a/b"], ["logger.wandb.project", "pattern", "got 'a/b'"]),
        (["logger=wandb", "logger.wandb.tags=['']"], ["logger.wandb.tags", "at least 1 character", "got ''"]),
        (["logger=wandb", "logger.wandb.table_rows=0"], ["logger.wandb.table_rows", "got 0"]),
        (["+also.more=5"], ["more must be an evaluation", "got int"]),
        (["eval=alpaca_eval_2", "eval.judge.base_url=nowhere"], ["base_url must start with http", "got nowhere"]),
        (["eval=alpaca_eval_2", "eval.limit=0"], ["eval.limit", "got 0"]),
        (["data.limit=0"], ["data.limit", "got 0"]),
        (["reward_model=armorm", "reward_model.max_tokens=1"], ["reward_model.max_tokens", "got 1"]),
        (["reward_model=python_function", "reward_model.function=reward"], ["reward_model.function", "got 'reward'"]),
        (
            ["reward_model=ensemble", "reward_model.mean=null", "+reward_model.sd={armorm:1.0}"],
            ["reward_model: sd must have one value a member (armorm, skywork), got armorm"],
        ),
        (
            ["reward_model=ensemble", "reward_model.mean=null", "+reward_model.sd={armorm:1.0,skywork:0}"],
            ["reward_model: sd must be > 0, got 0 for skywork"],
        ),
        (
            ["reward_model=length_penalised", "reward_model.slope=0", "reward_model.reward_model.batch_tokens=0"],
            ["reward_model.reward_model.batch_tokens", "got 0"],
        ),
        (["+experiment.speed=5"], ["experiment", "unknown key"]),
        (["sampler.temperature=nan"], ["sampler.temperature", "finite", "got nan"]),
        (["dpo.learning_rate=inf"], ["dpo.learning_rate", "finite", "got inf"]),
        (["store=''"], ["store: must have at least 1 character, got ''"]),
        (["n_samples={a: 1}"], ["n_samples: must be a valid integer, got {'a': 1}"]),
        (["~strategy._target_"], ["strategy", "must be a Strategy, got dict"]),
        (["model._target_=sweetspot.data.Nothing"], ["model._target_", "dotted path of a class", "data.Nothing"]),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError) as refused:
        settings(*overrides)
    line = str(refused.value)
    assert "\n" not in line
    assert not line.startswith(":")
    for word in words:
        assert word in line


def test_a_member_is_added_to_an_ensemble_on_the_command_line() -> None:
    built = settings(
        "reward_model=ensemble",
        "+reward_model@reward_model.members.small=skywork_v2_qwen3_0_6b",
        "reward_model.mean=null",
        "reward_model.sd=null",
    )
    assert sorted(built.reward_model.members) == ["armorm", "skywork", "small"]


def test_an_unknown_key_or_choice_is_refused_by_hydra() -> None:
    with pytest.raises(HydraException):
        settings("sampler.top_k=5")
    with pytest.raises(HydraException):
        settings("strategy=best")


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    unknown = {**os.environ, "NETRC": "/nowhere", "WANDB_API_KEY": ""}
    words = [sys.executable, "run.py", *arguments]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=unknown, check=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["strategy=best"], ["strategy/best", "max_min", "scalable\n"]),
        (["sampler.top_k=5"], ["top_k"]),
        (["data=jsonl"], ["error: data.path must be given: data.path=VALUE\n"]),
        (["launcher.dry_run=true"], ["launcher.dry_run must be false without -m", "got true"]),
        (["n_samples=1"], ["n_samples", "got 1"]),
        (["data=jsonl", "data.path=nowhere.jsonl"], ["data.path must be an existing file, got nowhere.jsonl"]),
        (["data=imported", "data.pool=abc"], ["data.pool must be the key of an imported pool", "got abc"]),
        (["logger=wandb", "logger.wandb.mode=online"], ["logger.wandb.mode", "without a W&B key", "got online"]),
        (["store=README.md/store"], ["store must be a folder that can be written, got README.md/store"]),
        (["hydra.run.dir=README.md/run"], ["Not a directory", "README.md/run"]),
    ],
)
def test_the_command_line_ends_with_one_line_and_no_trace(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    ended = command(f"hydra.run.dir={tmp_path}/run", f"store={tmp_path}/store", *arguments)
    assert ended.returncode != 0
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "store").exists()
    for word in words:
        assert word in ended.stderr


def test_help_names_the_groups_and_overrides() -> None:
    shown = command("--help").stdout
    for word in ("strategy: ", "max_min", "reward_model: ", "n_samples=64", "until=select", "HYDRA_FULL_ERROR=1"):
        assert word in shown


def test_cfg_job_prints_the_configuration_without_heavy_imports() -> None:
    shown = command("--cfg", "job").stdout
    assert "n_samples: 16" in shown
    imports = [sys.executable, "-X", "importtime", "run.py", "--cfg", "job"]
    loaded = subprocess.run(imports, capture_output=True, text=True, cwd=ROOT, check=True).stderr
    names = {line.split("|")[-1].strip() for line in loaded.splitlines()}
    assert "sweetspot.stages" in names
    assert not names & {"torch", "vllm", "transformers", "deepspeed", "wandb", "matplotlib", "scipy.stats"}
