"""Fixtures shared by the tests: tiny models made once a session, and the embedded policy converted once a machine."""

import json
import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from sweetspot.model import Model
from tests import tiny
from tests.running import finish


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, pytest.TestReport, pytest.TestReport]:  # noqa: ARG001
    """In CI, which installs every component, a test that skips because one cannot be imported has failed."""
    report = yield
    if report.skipped and os.environ.get("CI") and "could not import" in str(report.longrepr):
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny causal model with tokenizer and chat template."""
    pytest.importorskip("transformers")
    return tiny.save_policy(tmp_path_factory.mktemp("tiny_policy"))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny base model, without a chat template, as a component."""
    pytest.importorskip("transformers")
    folder = tiny.save_base(tmp_path_factory.mktemp("tiny_base"))
    return Model(name="base", path=str(folder), revision=None, system_prompt=None, trust_remote_code=False)


@pytest.fixture(scope="session")
def tiny_reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny one-logit classifier with the same tokenizer."""
    pytest.importorskip("transformers")
    return tiny.save_reward(tmp_path_factory.mktemp("tiny_reward"))


@pytest.fixture(scope="session")
def tiny_armorm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny ArmoRM with the same tokenizer."""
    pytest.importorskip("transformers")
    return tiny.save_armorm(tmp_path_factory.mktemp("tiny_armorm"))


@pytest.fixture(scope="session")
def tiny_model(tiny_policy: Path) -> Model:
    """The tiny policy as a component."""
    return Model(name="tiny", path=str(tiny_policy), revision=None, system_prompt=None, trust_remote_code=False)


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve prompts to train on and four held out."""
    folder = tmp_path_factory.mktemp("prompts")
    things = ["cats", "rain", "gardens", "tea", "snow", "bread", "music", "stars", "boats", "trees", "rivers", "owls"]
    (folder / "train.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Tell me about {thing}."}) + "\n" for thing in things)
    )
    (folder / "held_out.jsonl").write_text("".join(json.dumps({"prompt": f"Why {n} times?"}) + "\n" for n in range(4)))
    return folder


@pytest.fixture(scope="session")
def tiny_overrides(prompts_file: Path, tiny_policy: Path, tiny_reward: Path) -> list[str]:
    """The overrides that put tiny parts everywhere."""
    reward = [
        "reward_model=sequence_classifier",
        f"reward_model.path={tiny_reward}",
        "reward_model.dtype=float32",
    ]
    return [
        "model=other",
        f"model.path={tiny_policy}",
        "data=jsonl",
        f"data.path={prompts_file}/train.jsonl",
        f"data.held_out_path={prompts_file}/held_out.jsonl",
        "sampler=transformers",
        "sampler.dtype=float32",
        "sampler.max_tokens=8",
        "sampler.tile_prompts=4",
        "sampler.tile_samples=4",
        "n_samples=8",
        "strategy=max_min",
        "dpo.epochs=1",
        "dpo.autocast=null",
        "dpo.save_every=2",
        "launch.threads=1",
        *reward,
        "reward_model@eval.judge=sequence_classifier",
        f"eval.judge.path={tiny_reward}",
        "eval.judge_name=tiny",
        "eval.tile_prompts=4",
        "eval.n_samples=2",
    ]


@pytest.fixture(scope="session")
def first_run(tiny_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with the store and the folder of a run, and its manifest."""
    folder = tmp_path_factory.mktemp("first_run")
    return folder, finish(tiny_overrides, folder / "store", folder / "first")


@pytest.fixture(scope="module")
def finished(
    first_run: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A store of the module's own, and the manifest of the first run on it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(first_run[0], folder)
    return folder / "store", first_run[1]


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama's norms in the dtype of the weights: as they come they round to float32 in any dtype, backward too, which
    hides from float64 whether two ways of computing are the same."""
    from torch.nn.functional import rms_norm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def forward(norm: Any, states: Any) -> Any:
        return rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the embedded policy, converted from its PyPI package."""
    from sweetspot.embedded import smollm2

    folder = tmp_path_factory.mktemp("models") / "smollm2"
    smollm2.main({"folder": str(folder)}, lambda _: None)
    return folder


@pytest.fixture(scope="session")
def cluster() -> Generator[Path]:
    """The folder of a running cluster; SLURM_CONF names it for everything that this process starts."""
    where = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    needed = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd")
    missing = [name for name in needed if shutil.which(name, path=where) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"CI installs SLURM, but there is no {', '.join(missing)}")
    if missing:
        pytest.skip(f"no {', '.join(missing)} on this machine")
    place = Path("/tmp") / f"slurm-{os.getpid()}"
    manage = [str(Path(__file__).parent.parent / "slurm" / "local_cluster.sh")]
    subprocess.run([*manage, "up", str(place)], check=True, timeout=200)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(place / "slurm.conf")
    try:
        yield place
    finally:
        subprocess.run([*manage, "down", str(place)], check=True, timeout=200)
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(place)
