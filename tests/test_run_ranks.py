"""Whole runs on several ranks and nodes through run.py, and runs that are told to stop."""

import json
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from sweetspot.launch import REQUEUE
from sweetspot.model import Model
from tests.running import finish, start
from tests.test_lost_rank import left
from tests.test_sampler import VLLM, draw

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("runs")]
ENDS = ("reference", "train")
pytest.importorskip("deepspeed")


def curve(store: Path, manifest: dict[str, Any]) -> list[float]:
    (found,) = manifest["rounds"]
    lines = (store / found["policy"]["folder"] / "history.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def filled(finished: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the pool and the rewards of the finished run, and no policy."""
    folder = tmp_path_factory.mktemp("filled") / "store"
    shutil.copytree(finished[0], folder)
    shutil.rmtree(folder / "policies")
    return folder


def copied(filled: Path, folder: Path) -> Path:
    shutil.copytree(filled, folder / "store")
    return folder / "store"


@pytest.mark.parametrize("deepspeed", ["none", "zero3", "zero3_offload"])
def test_a_run_trains_on_two_ranks_under_the_same_key_and_to_the_same_curve(
    deepspeed: str, finished: tuple[Path, dict[str, Any]], filled: Path, tiny_overrides: list[str], tmp_path: Path
) -> None:
    store = copied(filled, tmp_path)
    two = finish([*tiny_overrides, f"deepspeed={deepspeed}", "launch.devices=2"], store, tmp_path / "two")
    assert two["rounds"][0]["policy"]["folder"] == finished[1]["rounds"][0]["policy"]["folder"]
    assert curve(store, two) == pytest.approx(curve(*finished), abs=1e-5)
    assert two["evaluations"][0]["n_prompts"] == 4
    (policy,) = (path for path in (store / "policies").iterdir() if not path.name.startswith("."))
    assert not [path.name for path in policy.iterdir() if path.suffix in (".pt", ".parquet") or path.is_dir()]


def test_vllm_samples_from_a_policy_of_zero_3(
    filled: Path, tiny_overrides: list[str], tiny_model: Model, tmp_path: Path
) -> None:
    pytest.importorskip("vllm")
    store = copied(filled, tmp_path)
    found = finish([*tiny_overrides, "deepspeed=zero3", "launch.devices=2", "until=train"], store, tmp_path / "run")
    policy = tiny_model.at(store / found["rounds"][0]["policy"]["folder"])
    drawn, start = (draw(VLLM, model, tmp_path / name) for name, model in (("policy", policy), ("start", tiny_model)))
    assert drawn["logprob"].null_count == 0
    assert drawn["token_ids"].to_pylist() != start["token_ids"].to_pylist()


def test_two_nodes_train_together_and_node_0_alone_writes(
    finished: tuple[Path, dict[str, Any]], filled: Path, tiny_overrides: list[str], tmp_path: Path
) -> None:
    store = copied(filled, tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = [*tiny_overrides, "until=train", "deepspeed=zero2", "launch.devices=1", "launch.nodes=2"]
    shared += ["launch.head=127.0.0.1", f"launch.port={port}", "launch.lease_seconds=10"]
    folders = [tmp_path / "node0", tmp_path / "node1"]
    nodes = [start([*shared, f"launch.node_rank={number}"], store, folder) for number, folder in enumerate(folders)]
    told = [node.communicate(timeout=500)[0] for node in nodes]
    logs = "".join(path.read_text()[-3000:] for folder in folders for path in folder.rglob("log.txt"))
    assert [node.returncode for node in nodes] == [0, 0], "".join(told) + logs
    manifest = json.loads((folders[0] / "manifest.json").read_text())
    assert curve(store, manifest) == pytest.approx(curve(*finished), abs=1e-5)
    assert not [path for name in ("manifest.json", "report.html") for path in folders[1].rglob(name)]
    assert [path.name.rpartition("train-")[2] for path in folders[1].rglob("*train-rank-*")] == ["rank-1"]
    assert not left(tmp_path)


@pytest.mark.parametrize(("what", "number"), [("sample", signal.SIGTERM), ("train", signal.SIGUSR2)])
def test_a_run_that_is_told_to_stop_ends_with_code_75_and_goes_on_from_there(
    what: str,
    number: signal.Signals,
    finished: tuple[Path, dict[str, Any]],
    filled: Path,
    tiny_overrides: list[str],
    tmp_path: Path,
) -> None:
    store = tmp_path / "store" if what == "sample" else copied(filled, tmp_path)
    overrides = [*tiny_overrides, "until=train", "launch.devices=2", "dpo.epochs=30", "dpo.save_every=1000"]
    process = start(overrides, store, tmp_path / "run")
    deadline = time.monotonic() + 120
    begun = "samples/*/*.parquet" if what == "sample" else "policies/.*.part/history.jsonl"
    while not [path for path in store.glob(begun) if path.stat().st_size]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == REQUEUE, output
    assert f"stopped by {number.name}; the same command goes on from here" in output
    assert not left(tmp_path)
    assert not [path for path in store.rglob("*.lease.*") if "policies" not in str(path)]
    before: list[str] = []
    if what == "train":
        assert list(store.glob("policies/.*.part/checkpoints/*/whole"))
        before = next(store.glob("policies/.*.part/history.jsonl")).read_text().splitlines()
    again = finish(overrides, store, tmp_path / "again")
    (curve_file,) = store.glob("policies/[!.]*/history.jsonl")
    assert curve_file.read_text().splitlines()[: len(before)] == before, "their speeds too: no step was made again"
    assert again["rounds"][0]["policy"]["pairs"] == finished[1]["rounds"][0]["policy"]["pairs"]


def test_two_runs_that_want_one_policy_make_its_reference_and_it_once(
    filled: Path, tiny_overrides: list[str], tmp_path: Path
) -> None:
    store = copied(filled, tmp_path)
    shutil.rmtree(store / "logprobs")
    overrides = [*tiny_overrides, "until=train", "dpo.epochs=4"]
    runs: list[subprocess.Popen[str]] = [start(overrides, store, tmp_path / name) for name in ("one", "two")]
    told = [run.communicate(timeout=400)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "".join(told)
    stages = [json.loads((tmp_path / name / "manifest.json").read_text())["stages"] for name in ("one", "two")]
    made = {name: [stage["made"] for one in stages for stage in one if stage["name"] == name] for name in ENDS}
    assert sorted(made["train"]) == [0, 1]
    assert min(made["reference"]) == 0 < max(made["reference"])
    assert len(re.findall(r"which \S+@\S+ \(process \d+\)\s+is\s+making", " ".join("".join(told).split()))) in (1, 2)


def test_what_cannot_be_trained_ends_in_one_line_before_anything_is_made(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    cases = {
        "launch.devices=999": "error: launch.devices must be <= ",
        "deepspeed.offload=true": "error: deepspeed: offload must be false unless stage is 3, got true with stage 0",
        "launch.nodes=2": "error: launch.node_rank must be 0 to 1, one on each node, got None",
    }
    for override, text in cases.items():
        process = start([*tiny_overrides, override], tmp_path / "store", tmp_path / "run")
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 1
        assert output.strip().splitlines()[-1].startswith(text)
    assert not (tmp_path / "store" / "samples").exists()
