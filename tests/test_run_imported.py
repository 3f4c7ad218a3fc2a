"""A whole run on an imported pool: prompts, samples and rewards from elsewhere, training and evaluation here."""

import json
from pathlib import Path
from typing import Any

import pytest

from sweetspot.exchange import command
from sweetspot.schema import PAIRS
from sweetspot.store import read_tile
from tests.running import finish, start

pytestmark = pytest.mark.slow
THINGS = ["cats", "rain", "gardens", "tea", "snow", "bread", "music", "stars"]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> tuple[Path, str]:
    """A store with an imported pool of 8 prompts x 6 responses, sorted by reward in the file, and its key."""
    folder = tmp_path_factory.mktemp("imported")
    rows = [
        {
            "prompt": f"Tell me about {thing}.",
            "all_generated_responses": [f"{thing} are {word}" for word in ("a", "b", "c", "d", "e", "f")],
            "all_rm_scores": [6.0, 5.0, 4.0, 3.0, 2.0, 1.0],
        }
        for thing in THINGS
    ]
    (folder / "rm.json").write_text(json.dumps(rows))
    assert (
        command.main(["--store", str(folder / "store"), "import", str(folder / "rm.json"), "--model", str(tiny_policy)])
        == 0
    )
    return folder / "store", next((folder / "store" / "samples").iterdir()).name


@pytest.fixture
def overrides(tiny_overrides: list[str], pool: tuple[Path, str], prompts_file: Path) -> list[str]:
    kept = [text for text in tiny_overrides if not text.startswith(("data", "n_samples", "reward_model"))]
    held_out = f"data.held_out_path={prompts_file}/held_out.jsonl"
    # the group of eval.judge must come again: its fields follow it
    judge = [text for text in tiny_overrides if text.startswith("reward_model@")]
    return [*judge, *kept, "data=imported", f"data.pool={pool[1]}", held_out, "n_samples=6"]


def test_a_run_on_an_imported_pool_samples_for_evaluation_alone(
    overrides: list[str], pool: tuple[Path, str], tmp_path: Path
) -> None:
    store, key = pool
    manifest = finish([*overrides, "reward_model=imported"], store, tmp_path / "run")
    (found,) = manifest["rounds"]
    made = {stage["name"]: stage["made"] for stage in manifest["stages"]}
    assert (made["imported"], made["score"], made["select"], made["train"], made["evaluate"]) == (0, 0, 1, 1, 1)
    assert "sample" not in made
    assert made["sample start"] > 0
    assert (found["samples"]["key"], found["samples"]["drawn"], found["samples"]["n_prompts"]) == (key, 48, 8)
    assert found["pairs"]["margin"] == 5.0
    rows = read_tile(store / found["pairs"]["path"], PAIRS)[0].to_pylist()
    assert {(row["chosen"].split()[-1], row["rejected"].split()[-1]) for row in rows} == {("a", "f")}
    assert [judge["role"] for judge in manifest["evaluations"][0]["judges"]] == ["judge"]
    assert (tmp_path / "run" / "report.html").exists()
    again = finish([*overrides, "reward_model=imported"], store, tmp_path / "again")
    assert again["made"] == 0


def test_an_imported_pool_is_scored_anew_by_any_reward_model(
    overrides: list[str],
    tiny_overrides: list[str],
    pool: tuple[Path, str],
    tmp_path: Path,
) -> None:
    reward = [text for text in tiny_overrides if text.startswith(("reward_model=", "reward_model."))]
    limited = [*overrides, *reward, "until=select", "data.limit=3"]
    first = finish(limited, pool[0], tmp_path / "first")
    assert first["rounds"][0]["samples"]["n_prompts"] == 3
    assert first["rounds"][0]["pairs"]["kept"] + sum(first["rounds"][0]["pairs"]["dropped"].values()) == 3
    whole = finish([*overrides, *reward, "until=select"], pool[0], tmp_path / "whole")
    made = {stage["name"]: stage["made"] for stage in whole["stages"]}
    assert made == {"imported": 0, "score": 1, "select": 1}  # the prompts that the first run left out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["n_samples=7"], "n_samples must be <= 6"),
        (["model.system_prompt=Hi"], "import the files again with --model"),
    ],
)
def test_what_an_imported_pool_cannot_give_is_refused_in_one_line(
    overrides: list[str], pool: tuple[Path, str], tmp_path: Path, change: list[str], words: str
) -> None:
    process = start([*overrides, "reward_model=imported", *change, "until=select"], pool[0], tmp_path / "run")
    output: Any = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    assert words in output
    assert "Traceback" not in output
