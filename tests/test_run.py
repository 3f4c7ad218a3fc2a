"""The whole pipeline on tiny models through run.py: what is made, what is reused, and what a kill costs."""

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from sweetspot.model import Model
from sweetspot.schema import PAIRS, REWARDS
from sweetspot.store import read_tile
from sweetspot.sweep.calibrate import measured
from sweetspot.sweep.rates import NOTHING
from sweetspot.sweep.work import Work
from tests import tiny
from tests.running import finish, start

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("runs")]  # one process makes the first run


def test_a_run_goes_from_prompts_to_scores(finished: tuple[Path, dict[str, Any]]) -> None:
    store, manifest = finished
    (found,) = manifest["rounds"]
    assert found["samples"]["n_prompts"] == 12
    assert found["pairs"]["kept"] + sum(found["pairs"]["dropped"].values()) == 12
    assert found["pairs"]["chosen_z"] > 0 > found["pairs"]["rejected_z"]
    assert (found["policy"]["pairs"], found["policy"]["too_long"]) == (found["pairs"]["kept"], 0)
    assert found["policy"]["loss_first"] == pytest.approx(0.6931, abs=0.01)  # ln 2: the policy starts as its reference
    assert {judge["role"] for judge in manifest["evaluations"][0]["judges"]} == {"judge", "selecting"}
    assert manifest["evaluations"][0]["n_prompts"] == 4
    policy = store / found["policy"]["folder"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in policy.iterdir()
    }
    assert (store.parent / "first" / "report.html").exists()


def test_the_same_command_makes_nothing(
    finished: tuple[Path, dict[str, Any]], tiny_overrides: list[str], tmp_path: Path
) -> None:
    store, first = finished
    began = time.monotonic()
    again = finish(tiny_overrides, store, tmp_path / "again")
    assert time.monotonic() - began < 20
    assert again["made"] == 0
    assert again["rounds"] == first["rounds"]
    assert again["evaluations"] == first["evaluations"]


def test_a_forecast_knows_what_a_run_will_make_and_what_it_has_made(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """12 prompts in tiles of 4 x 4: 6 tiles for n = 8, 9 for n = 12."""
    store, manifest = finished
    config = manifest["config"]
    before, after = Work(tmp_path / "none", NOTHING).of(config), Work(store, NOTHING).of(config)
    made = {stage["name"]: stage["made"] for stage in manifest["stages"]}
    assert [need.stage for need in before] == ["sample", "score", "reference", "train", *["evaluate"] * 9]
    assert [len(need.parts) for need in before[:4]] == [made["sample"], made["score"], 2, made["train"]]
    assert [len(need.parts) for need in before[4:]] == [1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert sum(before[0].parts.values()) == manifest["rounds"][0]["samples"]["drawn"]
    assert sum(before[3].parts.values()) == 2 * 12  # both responses of a pair, one epoch
    assert not any(need.there for need in before)
    assert [need.stage for need in after] == ["sample", "score", "reference", "train", "evaluate"]
    assert all(need.there == need.parts.keys() for need in after)
    more = Work(store, NOTHING).of({**config, "n_samples": 12})
    assert [len(need.parts.keys() - need.there) for need in more[:4]] == [3, 3, 2, 1]
    assert not (tmp_path / "none").exists()


def test_a_calibration_reads_its_rates_off_a_run(finished: tuple[Path, dict[str, Any]]) -> None:
    store, manifest = finished
    rates = {rate.kind: rate for rate in measured(manifest, store.parent / "first", manifest["seconds"] + 3)}
    assert rates.keys() == {"job", "sample", "score", "reference", "train"}
    for stage in manifest["stages"][:5]:
        if stage["name"] in rates:
            rate = rates[stage["name"]]
            assert 0 < rate.per_token < 1
            assert 0.3 * stage["seconds"] < rate.start < stage["seconds"]  # a worker's imports are most of it
    assert rates["sample"].tokens == manifest["rounds"][0]["samples"]["mean_tokens"]
    assert rates["train"].bytes_each > 100_000
    spent = sum(stage["seconds"] for stage in manifest["stages"])
    assert rates["job"].start == pytest.approx(manifest["seconds"] + 3 - spent)


def test_two_workers_of_one_run_divide_the_tiles_and_make_the_same_bytes(
    finished: tuple[Path, dict[str, Any]], tiny_overrides: list[str], tmp_path: Path
) -> None:
    two = finish([*tiny_overrides, "until=score", "launch.devices=2"], tmp_path / "store", tmp_path / "two")
    assert [(stage["name"], stage["made"], stage["reused"]) for stage in two["stages"]] == [
        ("sample", 6, 0),
        ("score", 6, 0),
    ]
    expected = content(finished[0])
    assert {name: expected[name] for name in content(tmp_path / "store")} == content(tmp_path / "store")
    assert sorted(path.name for path in (tmp_path / "two" / "jobs").glob("*-*")) == [
        "00-sample-0",
        "00-sample-1",
        "01-score-0",
        "01-score-1",
    ]


def test_an_adaptive_budget_fills_an_ordinary_pool_unevenly_and_the_same_again(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    """12 prompts, a pilot of 4, at most 12 and on average 8: 96 samples in all, in whole blocks of 4."""
    budget = ["sampler.budget=adaptive", "sampler.pilot_samples=4", "sampler.mean_samples=8", "n_samples=12"]
    found = [*tiny_overrides, *budget, "until=select"]
    first = finish(found, tmp_path / "store", tmp_path / "first")
    samples = first["rounds"][0]["samples"]
    assert 48 < samples["drawn"] <= 96
    assert any("uneven n: 4 to 12 samples a prompt" in warning for warning in first["warnings"])
    again = finish(found, tmp_path / "store", tmp_path / "again")
    assert again["made"] == 0
    assert again["rounds"][0]["pairs"] == first["rounds"][0]["pairs"]
    uniform = [*tiny_overrides, "n_samples=12", "until=select"]
    filled = finish(uniform, tmp_path / "store", tmp_path / "uniform")["rounds"][0]["samples"]
    assert (filled["key"], filled["drawn"]) == (samples["key"], 144)
    after = finish(found, tmp_path / "store", tmp_path / "after")  # what the pool holds by now changes nothing
    assert after["rounds"][0]["pairs"]["key"] == first["rounds"][0]["pairs"]["key"]


def test_a_report_that_cannot_be_written_is_a_warning_and_the_logs_are_closed(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    manifest = finish([*tiny_overrides, "until=sample"], tmp_path / "store", tmp_path / "run")
    (warning,) = [line for line in manifest["warnings"] if "report" in line]
    assert warning.startswith("the report could not be written: IsADirectoryError: ")
    last = (tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["event"] == "finish"


def test_another_strategy_samples_and_scores_nothing(
    finished: tuple[Path, dict[str, Any]], tiny_overrides: list[str], tmp_path: Path
) -> None:
    again = finish([*tiny_overrides, "strategy=random", "until=select"], finished[0], tmp_path / "random")
    made = {stage["name"]: stage["made"] for stage in again["stages"]}
    assert made == {"sample": 0, "score": 0, "select": 1}


def test_a_larger_n_makes_only_the_new_tiles_and_a_smaller_n_selects_from_the_first_samples(
    finished: tuple[Path, dict[str, Any]], tiny_overrides: list[str], tmp_path: Path
) -> None:
    store, _ = finished
    larger = finish([*tiny_overrides, "n_samples=12", "until=select"], store, tmp_path / "larger")
    assert [(stage["made"], stage["reused"]) for stage in larger["stages"]] == [(3, 6), (3, 6), (1, 0)]
    smaller = finish([*tiny_overrides, "n_samples=4", "until=select"], store, tmp_path / "smaller")
    assert [(stage["made"], stage["reused"]) for stage in smaller["stages"]] == [(0, 3), (0, 3), (1, 0)]
    pairs = read_tile(store / smaller["rounds"][0]["pairs"]["path"], PAIRS)[0]
    assert set(pairs["chosen_index"].to_pylist()) | set(pairs["rejected_index"].to_pylist()) <= {0, 1, 2, 3}
    rewards = {}
    for name in smaller["rounds"][0]["samples"]["tiles"]:
        table = read_tile(store / smaller["rounds"][0]["rewards"]["folder"] / f"{name}.parquet", REWARDS)[0].to_pylist()
        for row in table:
            rewards.setdefault(row["prompt_id"], {})[row["sample_index"]] = row["reward"]
    for row in pairs.to_pylist():
        assert row["chosen_reward"] == max(rewards[row["prompt_id"]].values())
        assert row["rejected_reward"] == min(rewards[row["prompt_id"]].values())


def test_held_out_prompts_that_are_too_long_are_left_out_and_without_any_other_there_is_no_result(
    finished: tuple[Path, dict[str, Any]], tiny_overrides: list[str], prompts_file: Path, tmp_path: Path
) -> None:
    long, short = json.dumps({"prompt": "Why is it so? " * 20}) + "\n", (prompts_file / "held_out.jsonl").read_text()
    (tmp_path / "some.jsonl").write_text(long + short)
    (tmp_path / "none.jsonl").write_text(long)
    overrides = [*tiny_overrides, "sampler.max_prompt_tokens=60"]
    some = finish([*overrides, f"data.held_out_path={tmp_path}/some.jsonl"], finished[0], tmp_path / "some")
    assert some["evaluations"][0]["n_prompts"] == 4
    stopped = start([*overrides, f"data.held_out_path={tmp_path}/none.jsonl"], finished[0], tmp_path / "none")
    output, _ = stopped.communicate(timeout=300)
    assert stopped.returncode == 1
    assert "data: a held-out prompt must fit sampler.max_prompt_tokens, got 1 that are all longer than 60" in output
    assert "Warning" not in output


def test_a_second_round_samples_from_the_trained_policy(
    finished: tuple[Path, dict[str, Any]], tiny_overrides: list[str], tmp_path: Path
) -> None:
    two = finish([*tiny_overrides, "rounds=2", "until=train"], finished[0], tmp_path / "two")
    first, second = two["rounds"]
    assert first["policy"]["key"] == finished[1]["rounds"][0]["policy"]["key"]
    assert second["samples"]["key"] != first["samples"]["key"]
    overrides = [*tiny_overrides, "rounds=2", "until=train", "dpo.reference_model=first"]
    kept = finish(overrides, finished[0], tmp_path / "kept")
    assert kept["rounds"][0]["policy"]["key"] == first["policy"]["key"]
    assert kept["rounds"][1]["policy"]["key"] != second["policy"]["key"]


def test_the_samplers_own_log_probabilities_serve_as_reference_and_their_error_is_told(
    finished: tuple[Path, dict[str, Any]], tiny_overrides: list[str], tmp_path: Path
) -> None:
    """Of the pairs' responses at most 64 are compared; float32 sums over 8 tokens differ by rounding alone."""
    found = finish([*tiny_overrides, "dpo.reference=sampler", "until=train"], finished[0], tmp_path / "sampled")
    computed, sampled = finished[1]["rounds"][0]["policy"], found["rounds"][0]["policy"]
    assert "reference" not in [stage["name"] for stage in found["stages"]]
    assert computed["reference_error"] is None
    assert sampled["reference_error"]["responses"] == 2 * sampled["pairs"]
    assert 0 <= sampled["reference_error"]["mean_absolute"] <= sampled["reference_error"]["largest"] < 1e-4
    assert sampled["key"] != computed["key"]
    assert sampled["loss_last"] == pytest.approx(computed["loss_last"], abs=1e-5)


def test_a_corrupt_tile_is_named_and_remade_only_on_request(
    finished: tuple[Path, dict[str, Any]], tiny_overrides: list[str], tmp_path: Path
) -> None:
    shutil.copytree(finished[0], tmp_path / "store")
    manifest = finished[1]["rounds"][0]
    tile = tmp_path / "store" / manifest["samples"]["folder"] / f"{manifest['samples']['tiles'][0]}.parquet"
    whole = tile.read_bytes()
    tile.write_bytes(whole[:200] + b"\0\0\0\0" + whole[204:])
    stopped = start([*tiny_overrides, "strategy.rejected=mu", "until=select"], tmp_path / "store", tmp_path / "stopped")
    output, _ = stopped.communicate(timeout=300)
    assert stopped.returncode == 1
    assert f"{tile.name} is corrupt" in output
    assert "remake_corrupt=true" in output
    assert tile.read_bytes() != whole
    remade = finish(
        [*tiny_overrides, "strategy.rejected=mu", "until=select", "remake_corrupt=true"],
        tmp_path / "store",
        tmp_path / "remade",
    )
    assert [stage["made"] for stage in remade["stages"]] == [1, 0, 1]
    assert tile.read_bytes() == whole


def content(store: Path) -> dict[str, bytes]:
    """The bytes of every whole tile of samples, rewards and pairs (pathlib's glob finds scratch files too)."""
    tiles = [path for kind in ("samples", "rewards", "pairs") for path in sorted((store / kind).glob("*/*.parquet"))]
    return {str(path.relative_to(store)): path.read_bytes() for path in tiles}


@pytest.mark.xdist_group("kills")  # with "runs" a group of its own
def test_a_run_killed_at_20_random_moments_ends_in_the_same_bytes(tiny_overrides: list[str], tmp_path: Path) -> None:
    overrides = [*tiny_overrides, "until=train"]
    undisturbed = finish(overrides, tmp_path / "alone", tmp_path / "undisturbed")
    expected = content(tmp_path / "alone")
    store, draw, stages_hit = tmp_path / "store", random.Random(0), set[str]()
    for kill in range(20):
        before = content(store)
        process = start(overrides, store, tmp_path / f"run{kill}")
        time.sleep(draw.uniform(0.05, 0.5) * undisturbed["seconds"])
        finished_alone = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        after = content(store)
        assert before.items() <= after.items()  # nothing that was whole is lost or changed
        assert after.items() <= expected.items()  # and nothing is there but whole tiles
        stages_hit |= {path.name for path in (tmp_path / f"run{kill}" / "jobs").glob("*-*") if path.is_dir()}
        if finished_alone:
            shutil.rmtree(store)  # so that later kills hit the early stages again
    final = finish(overrides, store, tmp_path / "final")
    assert content(store) == expected
    assert {name.split("-", 1)[1] for name in stages_hit} == {"sample", "score", "reference", "train"}
    last, undisturbed_last = (run["rounds"][0]["policy"]["loss_last"] for run in (final, undisturbed))
    assert last == pytest.approx(undisturbed_last, abs=1e-5)


def test_a_base_model_is_fine_tuned_before_it_is_sampled_and_only_once(
    tiny_overrides: list[str], tiny_base: Model, tmp_path: Path
) -> None:
    """SFT on six conversations, then sampling with its template and end, then DPO with an adapter over what it made."""
    talk = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It is so."}]
    (tmp_path / "talk.jsonl").write_text((json.dumps({"messages": talk}) + "\n") * 6)
    (tmp_path / "chatml.jinja").write_text(tiny.CHATML)
    kept = [line for line in tiny_overrides if "eval" not in line and not line.startswith("model")]
    sft = {
        "data.path": tmp_path / "talk.jsonl",
        "chat_template": tmp_path / "chatml.jinja",
        "eos_token": "'<|im_end|>'",
        "batch_size": 2,
        "epochs": 2,
        "learning_rate": 0.003,
    }
    base = ["model=other_sft", f"model.path={tiny_base.path}", *(f"model.sft.{name}={at}" for name, at in sft.items())]
    overrides = [*kept, *base, "dpo=lora", "eval=none"]
    first = finish(overrides, tmp_path / "store", tmp_path / "first")
    assert [stage["name"] for stage in first["stages"]] == ["sft", "sample", "score", "select", "reference", "train"]
    tuned = first["sft"]
    assert (tuned["conversations"], tuned["steps"]) == (6, 6)
    assert tuned["loss_last"] < tuned["loss_first"]
    folder = tmp_path / "store" / tuned["folder"]
    assert (tmp_path / "store" / tuned["history"]).read_text().count("\n") == 6
    probe = json.loads((tmp_path / "store" / first["rounds"][0]["samples"]["folder"] / "probe.json").read_text())
    assert 2 in probe["ends"]
    assert (folder / "chat_template.jinja").read_text() == tiny.CHATML
    policy = tmp_path / "store" / first["rounds"][0]["policy"]["folder"]
    assert (policy / "adapter" / "adapter_model.safetensors").exists()
    assert "fine-tuned" in (tmp_path / "first" / "report.html").read_text()
    again = finish(overrides, tmp_path / "store", tmp_path / "again")
    assert again["made"] == 0
    assert again["sft"] == tuned
    other = finish([*overrides, "until=sample", "model.sft.epochs=1"], tmp_path / "store", tmp_path / "other")
    assert [stage["made"] for stage in other["stages"]] == [1, 6]


def test_bad_conversations_end_a_run_in_one_line_before_anything_is_made(
    tiny_overrides: list[str], tiny_base: Model, tmp_path: Path
) -> None:
    (tmp_path / "talk.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Why?"}]}) + "\n")
    base = ["model=other_sft", f"model.path={tiny_base.path}", f"model.sft.data.path={tmp_path}/talk.jsonl"]
    kept = [line for line in tiny_overrides if not line.startswith("model")]
    stopped = start([*kept, *base], tmp_path / "store", tmp_path / "run")
    output, _ = stopped.communicate(timeout=300)
    assert stopped.returncode == 1
    assert "talk.jsonl line 1 must have an assistant's turn after another's, got turns of user" in output
    assert "Traceback" not in output


def test_no_evaluation_is_skipped(
    finished: tuple[Path, dict[str, Any]], tiny_overrides: list[str], tmp_path: Path
) -> None:
    kept = [line for line in tiny_overrides if "eval" not in line]
    found = finish([*kept, "eval=none"], finished[0], tmp_path / "none")
    assert found["evaluations"] == []
    assert found["made"] == 0
    assert "it was not evaluated" in (tmp_path / "none" / "report.html").read_text()


def test_a_reward_model_is_held_against_local_preferences_without_training(
    finished: tuple[Path, dict[str, Any]], tiny_overrides: list[str], tmp_path: Path
) -> None:
    rows = [{"prompt": f"Name {n}.", "chosen": f"It is {n}.", "rejected": "No."} for n in range(10)]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    kept = [line for line in tiny_overrides if "eval" not in line]
    bench = [
        "eval=reward_bench_local",
        f"eval.folder={tmp_path}",
        "until=score",
        "~eval.files",
        "+eval.files={own: own.json}",
    ]
    found = finish([*kept, *bench], finished[0], tmp_path / "bench")
    (result,) = found["evaluations"]
    assert (result["kind"], result["n_pairs"]) == ("reward_bench", 10)
    assert [part["name"] for part in result["parts"]] == ["all", "own"]
    assert "policy" not in found["rounds"][0]
    assert "longer wins 100%" in (tmp_path / "bench" / "report.html").read_text()
