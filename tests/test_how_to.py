"""The worked examples of docs/how-to: their files are written into a folder and their commands typed there."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments.runs import Point
from sweetspot.component import build
from sweetspot.model import Model
from sweetspot.schema import PAIRS, REWARDS, SCORES
from sweetspot.store import read_tile
from tests import tiny
from tests.judge_server import JudgeServer
from tests.pages import ROOT, commands, files

TINY = ["size=tiny", "n_samples=8", "data.limit=6"]
HOW_TO = ["strategy", "reward-model", "sampler", "judge"]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("how_to")]  # one store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of all four pages, and the tiny models."""
    place = tmp_path_factory.mktemp("own")
    for page in HOW_TO:
        for name, text in files(f"how-to/{page}.md").items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
    tiny.save_all(place / "tiny")
    return place


def typed(folder: Path, words: Sequence[str], *more: str) -> list[dict[str, Any]]:
    """The manifests that a command of a page leaves when it is typed in the folder, with `more` behind it."""
    assert list(words[:2]) == ["python", "run.py"]
    program = [sys.executable, str(ROOT / "run.py"), *words[2:], *more]
    ended = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    written = sorted((folder / "runs" / "latest").resolve().rglob("manifest.json"))
    return [json.loads(path.read_text()) for path in written]


def made(manifest: dict[str, Any]) -> list[str]:
    return [stage["name"] for stage in manifest["stages"] if stage["made"]]


def test_a_strategy_takes_15_lines_of_python_5_of_yaml_and_no_other_file() -> None:
    shown = files("how-to/strategy.md")
    assert sorted(shown) == ["closest.py", "conf/strategy/closest.yaml"]
    assert len(shown["closest.py"].splitlines()) <= 15
    assert len(shown["conf/strategy/closest.yaml"].splitlines()) <= 5


def test_a_strategy_of_one_s_own_runs_sweeps_is_named_and_has_a_key_of_its_code(folder: Path) -> None:
    alone, against = (words for words in commands("how-to/strategy.md") if words[-1] == "until=select")
    (first,) = typed(folder, alone, *TINY)
    (found,) = first["rounds"]
    assert found["pairs"]["strategy"] == "Closest(margin=0.05)"
    assert "Closest(margin=0.05)" in (folder / "runs" / "latest" / "report.html").read_text()
    rows = read_tile(folder / "store" / found["pairs"]["path"], PAIRS)[0].to_pylist()
    assert rows
    assert all(row["chosen_reward"] - row["rejected_reward"] >= 0.05 for row in rows)

    both = typed(folder, against, *TINY)
    assert [one["rounds"][0]["pairs"]["strategy"] for one in both] == ["Closest(margin=0.05)", "(max, min)"]
    assert [made(one) for one in both] == [[], ["select"]]
    assert both[0]["rounds"][0]["pairs"]["key"] == found["pairs"]["key"]

    points = [Point(folder, one) for one in (first, *both)]
    assert [point.strategy for point in points] == ["Closest(margin=0.05)", "Closest(margin=0.05)", "(max, min)"]

    code = (folder / "closest.py").read_text()
    try:
        (folder / "closest.py").write_text(code + "\n")
        again = typed(folder, against, *TINY)
    finally:
        (folder / "closest.py").write_text(code)
    assert [made(one) for one in again] == [["select"], ["select"]]  # the second is of the first sweep, as it was
    assert again[0]["rounds"][0]["pairs"]["key"] != found["pairs"]["key"]
    assert again[1] == both[1]

    (folder / "elsewhere" / "strategy").mkdir(parents=True)
    (folder / "conf/strategy/closest.yaml").rename(folder / "elsewhere/strategy/near.yaml")
    sweep = ["python", "run.py", "-m", "--config-dir", "elsewhere", "strategy=near", "until=select"]
    (near,) = typed(folder, sweep, *TINY)
    assert near["rounds"][0]["pairs"]["key"] == found["pairs"]["key"]


def test_reward_models_of_one_s_own_score(folder: Path) -> None:
    function, classifier, component = (
        words for words in commands("how-to/reward-model.md") if words[-1] == "until=score"
    )
    (found,) = typed(folder, function, *TINY)
    assert found["rounds"][0]["rewards"]["reward_model"] == "python_function"
    tile = next((folder / "store" / found["rounds"][0]["rewards"]["folder"]).glob("*.parquet"))
    rewards = read_tile(tile, REWARDS)[0]["reward"].to_pylist()
    assert all(reward <= 0 and reward == int(reward) for reward in rewards)
    for words, name in ((classifier, "mine"), (component, "vocabulary")):
        (found,) = typed(folder, words, *TINY)
        assert found["rounds"][0]["rewards"]["reward_model"] == name
    assert made(found) == ["score"]


def test_a_sampler_of_one_s_own_samples(folder: Path) -> None:
    (words,) = (words for words in commands("how-to/sampler.md") if words[-1] == "until=sample")
    (found,) = typed(folder, words, *TINY)
    assert found["rounds"][0]["samples"]["n_prompts"] == 6
    assert found["rounds"][0]["samples"]["duplicate_rate"] < 0.1


def test_the_sampler_of_the_page_draws_the_likeliest_token_at_top_k_1_and_tells_its_log_probability(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", ["sampler=top_k", "sampler.top_k=1", "sampler.max_tokens=5"])
        plain: Any = OmegaConf.to_container(composed, resolve=True)
    model = Model(name="t", path="tiny/policy", revision=None, system_prompt=None, trust_remote_code=False)
    ((one, two),) = build(plain["sampler"]).load(model, [2], 2)([[1, 50, 60]], [7], 2)
    assert one == two
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained("tiny/policy", dtype=torch.float32)
    with torch.inference_mode():
        steps = network(torch.tensor([[1, 50, 60, *one.token_ids]])).logits[0, 2:-1].log_softmax(-1)
    assert one.token_ids == steps.argmax(-1).tolist()
    assert one.logprob == pytest.approx(float(steps.max(-1).values.sum()), abs=1e-4)


def test_judges_of_one_s_own_judge_a_whole_evaluation(folder: Path) -> None:
    rows = [{"instruction": f"Say {n}.", "output": f"It is {n}.", "generator": "base"} for n in range(805)]
    (folder / "baseline.json").write_text(json.dumps(rows))
    (folder / "df_gamed.csv").write_text("index\n")

    def benchmark(at: str) -> list[str]:
        settings = ["baseline_path=baseline.json", "gamed_path=df_gamed.csv", "limit=4", "resamples=1000"]
        sampler = ["dtype=float32", "max_tokens=8", "tile_prompts=4"]
        own = [f"{at}.{one}" for one in settings] + [f"{at}.sampler.{one}" for one in sampler]
        return [f"sampler@{at}.sampler=transformers", *own]

    *_, both = commands("how-to/judge.md")
    with JudgeServer() as server:
        address = [f"eval.judge.base_url={server.url}", "eval.judge.backoff=0.01"]
        (found,) = typed(
            folder, both, *TINY, *benchmark("eval"), *benchmark("also.short"), *benchmark("also.words"), *address
        )
        assert server.requests == 1 + 4  # the test, and one request a prompt
    judged = found["evaluations"]
    assert [(one["judge"], one["n_prompts"]) for one in judged] == [("house", 4), ("brevity", 4), ("concise", 4)]
    brevity, concise = (read_tile(folder / "store" / one["path"], SCORES)[0].to_pylist() for one in judged[1:])
    for by_reward, by_words in zip(brevity, concise, strict=True):
        own, other = (-abs(len(by_reward[side].split()) - 20) for side in ("response", "baseline"))
        assert by_reward["preference"] == pytest.approx(1 / (1 + math.exp(other - own)), abs=1e-6)
        assert by_words["preference"] == (0.5 if own == other else float(own > other))
        assert [order["policy_first"] for order in by_words["orders"]] == [True, False]
    assert judged[2]["shown_first"] == 0.5
