"""A sweep of nine jobs in Weights & Biases, read back from its offline files; one job goes on after a requeue."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sweetspot.exchange import command
from sweetspot.schema import PAIRS
from sweetspot.stages.logged import SIDES
from sweetspot.store import read_tile
from tests.hostile import HOSTILE, STEERING
from tests.test_logger import ROOT, history, records

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wandb")]  # one process makes the sweep
SECRET = "0123456789abcdef0123456789abcdef01234567"
SIZES, STRATEGIES = (4, 6, 8), ("max_min", "random", "mu_minus_2sigma")
NAMES = ["rewards/reward", "rewards/z", *(f"pairs/{side}_{what}" for what in ("reward", "z") for side in SIDES)]


@dataclass(frozen=True)
class Swept:
    """A sweep that has ended: its folder, its store, what was printed, and what a run did whose logs all failed."""

    folder: Path
    store: Path
    said: str
    broken: str

    def files(self, job: str) -> list[Path]:
        """The offline files of a job, the first turn first."""
        return sorted((self.folder / job / "wandb").glob("offline-run-*/*.wandb"))


def run(words: list[str], environment: dict[str, str]) -> str:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path, tiny_reward: Path) -> Swept:
    """Three n by three strategies up to the policy, of hostile prompts; then one of them once more.

    The loss needs no reference, whose log-probabilities would take a process more.
    """
    pytest.importorskip("wandb")
    place = tmp_path_factory.mktemp("homeofalice")
    prompts = [f"Tell me of {thing}. Rosebud." for thing in ("cats", "rain", "tea", "snow")] + list(HOSTILE.values())
    (place / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment = kept | {"HOME": str(place), "NETRC": str(place / "none"), "OPENAI_API_KEY": f"sk-{SECRET}"}
    environment |= {"HF_HUB_OFFLINE": "1", "WANDB_API_KEY": SECRET, "WANDB_MODE": "offline"}
    shared = ["model=other", f"model.path={tiny_policy}", "model.system_prompt=Answer like Rosebud", "data=jsonl"]
    shared += [f"data.path={place}/prompts.jsonl", "data.held_out_share=0", "sampler=transformers", "eval=none"]
    shared += ["sampler.max_tokens=8", "sampler.tile_samples=8", "sampler.max_prompt_tokens=192", "launch.threads=1"]
    shared += ["reward_model=sequence_classifier", f"reward_model.path={tiny_reward}"]
    shared += ["dpo.epochs=1", "dpo.loss=simpo"]
    shared += ["logger=[wandb,jsonl]", f"store={place}/store"]
    axes = [f"n_samples={','.join(map(str, SIZES))}", f"strategy={','.join(STRATEGIES)}"]
    folder = place / "sweep"
    said = run(["-m", *shared, *axes, "until=train", f"hydra.sweep.dir={folder}"], environment)
    again = ["n_samples=8", "strategy=max_min", "until=train"]
    broken = place / "broken"
    (broken / "log.jsonl").mkdir(parents=True)
    (broken / "wandb").write_text("")
    failing = ["n_samples=8", "strategy=max_min", "until=select", f"hydra.run.dir={broken}"]
    keyless = {name: value for name, value in environment.items() if name != "WANDB_API_KEY"} | {"WANDB_MODE": "online"}
    with ThreadPoolExecutor() as both:
        broken_said = both.submit(run, [*shared, *failing], keyless)
        both.submit(run, [*shared, *again, f"hydra.run.dir={place / 'cached'}"], environment)
        run([*shared, *again, f"hydra.run.dir='{folder}/n_samples=8,strategy=max_min'"], environment)
    collected = [sys.executable, "-m", "sweetspot.sweep", "collect", str(folder)]
    environment["PYTHONPATH"] = str(ROOT)
    said += subprocess.run(collected, cwd=place, env=environment, capture_output=True, text=True, check=True).stdout
    return Swept(folder, place / "store", said, broken_said.result())


def jobs() -> Iterator[tuple[int, str, str]]:
    for n in SIZES:
        for strategy in STRATEGIES:
            yield n, strategy, f"n_samples={n},strategy={strategy}"


def record_of(found: list[Any], kind: str) -> list[Any]:
    return [getattr(one, kind) for one in found if one.WhichOneof("record_type") == kind]


def test_every_job_is_a_run_of_the_sweep_s_group_with_a_flat_configuration(swept: Swept) -> None:
    ids = set()
    for n, strategy, job in jobs():
        found = records(swept.files(job)[0])
        (started,) = record_of(found, "run")
        assert (started.display_name, started.run_group, started.job_type) == (job, "sweep", "run")
        config = {item.key: json.loads(item.value_json) for item in started.config.update}
        assert (config["n_samples"], config["until"]) == (n, "train")
        assert config["strategy.chosen"] == ("random" if strategy == "random" else "max")
        assert config["sampler.max_tokens"] == 8
        assert config["dpo._target_"] == "sweetspot.dpo.DPO"
        assert (config["store"], config["data.path"]) == ("…/store", "…/prompts.jsonl")
        assert record_of(found, "exit")[0].exit_code == 0
        ids.add(started.run_id)
    assert len(ids) == 9


def test_every_job_has_stages_histograms_pairs_and_its_manifest(swept: Swept) -> None:
    for n, _, job in jobs():
        path = swept.files(job)[0]
        found = records(path)
        rows = history(found)
        for stage in ("sample", "score", "select", "train"):
            assert any(f"stage/{stage}/seconds" in row for row in rows), stage
        (kept,) = {row["pairs/nrows"] for row in rows if "pairs/nrows" in row}
        counts = {name: sum(row[f"{name}/values"]) for row in rows for name in NAMES if f"{name}/values" in row}
        whole = {"rewards/reward": 11 * n, "rewards/z": 11 * n}  # one of twelve prompts is too long
        assert counts == whole | dict.fromkeys(NAMES[2:], kept)
        manifest = json.loads((swept.folder / job / "manifest.json").read_text())
        assert summary(found)["rounds/0/pairs/kept"] == manifest["rounds"][0]["pairs"]["kept"]
        (table,) = (path.parent / "files").rglob("*.table.json")
        shown = json.loads(table.read_text())
        assert shown["columns"] == [name for name in PAIRS.names if name not in ("messages", "chosen", "rejected")]
        assert len(shown["data"]) == kept
        artifacts = {one.type: one.manifest.contents for one in record_of(found, "artifact")}
        assert sorted(artifacts) == ["manifest", "report", "run_table"]
        page = (swept.folder / job / artifacts["report"][0].local_path).read_text()
        assert ("A policy was trained on" in page, page.count("<article")) == (True, 0)
        sent = json.loads((swept.folder / job / artifacts["manifest"][0].local_path).read_text())
        assert sent["rounds"][0]["pairs"] == manifest["rounds"][0]["pairs"]
        assert (sent["store"], sent["command"], sent["config"]["model"]["system_prompt"]) == ("…/store", "…", "…")


def test_every_job_has_the_training_curve_of_its_policy(swept: Swept) -> None:
    for _, _, job in jobs():
        curve = [row for row in history(records(swept.files(job)[0])) if "train/loss" in row]
        policy = json.loads((swept.folder / job / "manifest.json").read_text())["rounds"][0]["policy"]
        kept = [json.loads(line) for line in (swept.store / policy["history"]).read_text().splitlines()]
        assert len(curve) == policy["steps"] >= 2
        assert [row["train/step"] for row in curve] == [row["step"] for row in kept]
        assert [row["train/loss"] for row in curve] == pytest.approx([row["loss"] for row in kept])
        assert all(f"train/{name}" in row for row in curve for name in ("rewards/margin", "learning_rate"))


def test_a_run_whose_policy_was_there_has_the_same_curve_in_every_log(swept: Swept) -> None:
    job = "n_samples=8,strategy=max_min"
    cached = swept.folder.parent / "cached"
    manifest = json.loads((cached / "manifest.json").read_text())
    assert [(one["made"], one["reused"]) for one in manifest["stages"] if one["name"] == "train"] == [(0, 1)]
    (file,) = (cached / "wandb").glob("offline-run-*/*.wandb")
    curves = [[row for row in history(records(path)) if "train/loss" in row] for path in (file, swept.files(job)[0])]
    whole = [[(row["train/step"], row["train/loss"], row["train/rewards/margin"]) for row in rows] for rows in curves]
    assert whole[0] == whole[1] != []
    lines = [json.loads(line) for line in (cached / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in lines if "step" in row] == [row[:2] for row in whole[0]]


def test_the_bins_of_a_histogram_span_the_rewards(swept: Swept) -> None:
    job = "n_samples=8,strategy=max_min"
    rows = history(records(swept.files(job)[0]))
    bins = next(row["pairs/chosen_reward/bins"] for row in rows if "pairs/chosen_reward/bins" in row)
    rewards = pairs_of(swept, job)["chosen_reward"].to_numpy()
    assert (bins[0], bins[-1], len(bins)) == (rewards.min(), rewards.max(), 65)


def test_a_requeued_job_goes_on_under_its_id_and_both_parts_are_sent_in_order(swept: Swept) -> None:
    """`wandb sync` finds two parts of one run; it sends the parts of a run one after the other, by their start."""
    first, second = swept.files("n_samples=8,strategy=max_min")
    parts = [records(path) for path in (first, second)]
    started = [record_of(part, "run")[0] for part in parts]
    assert started[0].run_id == started[1].run_id
    assert (started[1].run_group, started[1].display_name) == ("sweep", "n_samples=8,strategy=max_min")
    curve = [row for part in parts for row in history(part) if "train/loss" in row]
    assert [row["train/step"] for row in curve] == list(range(1, len(curve) + 1)) != []
    made = [row["stage/train/made"] for part in parts for row in history(part) if "stage/train/made" in row]
    assert made == [1, 0]  # what is there is not made again, nor its curve sent twice
    words = [
        str(Path(sys.executable).with_name("wandb")),
        "sync",
        "--dry-run",
        *(str(one.parent) for one in (first, second)),
    ]
    told = subprocess.run(words, cwd=first.parents[2], capture_output=True, text=True, check=True)
    assert all(one.parent.name in told.stdout + told.stderr for one in (first, second))


def test_the_sweep_has_a_run_of_its_own_with_its_table_and_page(swept: Swept) -> None:
    first, path = swept.files(".")  # the sweep's end, and the collect after it
    found = records(path)
    assert record_of(records(first), "run")[0].run_id == record_of(found, "run")[0].run_id
    (started,) = record_of(found, "run")
    assert (started.run_group, started.job_type) == ("sweep", "sweep")
    (table,) = (path.parent / "files").rglob("*.table.json")
    shown = json.loads(table.read_text())
    rows = [dict(zip(shown["columns"], row, strict=True)) for row in shown["data"]]
    assert {row["job"] for row in rows} == {job for *_, job in jobs()}
    assert Counter(row["standing"] for row in rows) == {"done": 9}
    assert all(row["margin"] >= 0 for row in rows)
    artifacts = {one.type: one.manifest.contents for one in record_of(found, "artifact")}
    assert sorted(artifacts) == ["run_table", "sweep"]
    assert "9 of 9 points" in (swept.folder / artifacts["sweep"][0].local_path).read_text()
    assert summary(found)["done"] == 9


def test_nothing_private_is_in_any_offline_file(swept: Swept) -> None:
    kept = [path for path in swept.folder.rglob("wandb/**/*") if path.is_file()]
    assert len(kept) > 50
    for path in kept:
        data = path.read_bytes()
        for word in ("homeofalice", SECRET, "Rosebud", "/pytest-", "github.com/"):
            assert word.encode() not in data, (word, path)


def test_hostile_prompts_reach_the_pairs_and_their_export_as_they_are(swept: Swept, tmp_path: Path) -> None:
    job = "n_samples=8,strategy=max_min"
    wanted = {text for name, text in HOSTILE.items() if name != "one word"}
    assert wanted <= {row["messages"][-1]["content"] for row in pairs_of(swept, job).to_pylist()}
    key = json.loads((swept.folder / job / "manifest.json").read_text())["rounds"][0]["pairs"]["key"]
    for flag in ([], ["--jsonl"]):
        assert (
            command.main(["--store", str(swept.store), "export", "pairs", key, str(tmp_path / f"out{flag}"), *flag])
            == 0
        )
    lines = (tmp_path / "out['--jsonl']" / "pairs.jsonl").read_bytes().split(b"\n")[:-1]
    for rows in (pq.read_table(tmp_path / "out[]" / "pairs.parquet").to_pylist(), [json.loads(line) for line in lines]):
        assert wanted <= {row["prompt"][-1]["content"] for row in rows}


def test_a_run_whose_logs_all_fail_ends_as_it_would(swept: Swept) -> None:
    manifest = json.loads((swept.folder.parent / "broken" / "manifest.json").read_text())
    told = [line for line in manifest["warnings"] if line.startswith("logging to ")]
    assert sorted(line.split()[2] for line in told) == ["jsonl", "wandb"]
    keyless = "W&B is offline: WANDB_MODE is online, but no W&B key is known (WANDB_API_KEY)"
    assert keyless in manifest["warnings"]
    for line in (*told, keyless):
        assert f"warning: {line}\n" in swept.broken
    assert manifest["rounds"][0]["pairs"]["kept"] == pairs_of(swept, "n_samples=8,strategy=max_min").num_rows
    assert (swept.folder.parent / "broken" / "report.html").exists()


def test_what_a_sweep_of_hostile_prompts_prints_is_plain(swept: Swept) -> None:
    assert "9 done" in swept.said
    assert not [one for one in STEERING if one in swept.said]


def pairs_of(swept: Swept, job: str) -> Any:
    manifest = json.loads((swept.folder / job / "manifest.json").read_text())
    return read_tile(swept.store / manifest["rounds"][0]["pairs"]["path"], PAIRS)[0]


def summary(found: list[Any]) -> dict[str, Any]:
    updates = [item for one in record_of(found, "summary") for item in one.update]
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in updates}
