"""Metrics as JSON lines, in Weights & Biases, and nowhere."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sweetspot.component import build
from sweetspot.logger import JsonlLogger, NoLogger, WandbLogger

BLOCK = 32 * 1024
CONFIG = {"n_samples": 16, "strategy": {"chosen": "max", "rejected": "mu-2sigma"}}


def wandb_logger(**changed: Any) -> WandbLogger:
    return WandbLogger(**{"project": "p", "entity": None, "mode": "auto", "group": None, "tags": [], **changed})


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_jsonl_has_the_config_every_metric_in_order_and_the_summary(tmp_path: Path) -> None:
    sink = JsonlLogger().open(tmp_path, CONFIG, "first")
    sink.log({"step": 1, "loss": 0.69})
    sink.log({"stage/sample/made": 4})
    sink.close({"evaluation/difference": 0.2})
    start, step, stage, finish = lines(tmp_path)
    assert (start["event"], start["name"], start["config"]) == ("start", "first", CONFIG)
    assert (step["step"], step["loss"], stage["stage/sample/made"]) == (1, 0.69, 4)
    assert finish["summary"] == {"evaluation/difference": 0.2}
    assert start["time"] <= step["time"] <= stage["time"] <= finish["time"]


def test_a_resumed_jsonl_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    JsonlLogger().open(tmp_path, {}, "run").log({"step": 1, "loss": 0.5})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    JsonlLogger().open(tmp_path, {}, "run").log({"step": 2, "loss": 0.4})
    assert [line.get("step", line.get("event")) for line in lines(tmp_path)] == ["start", 1, "start", 2]


def test_jsonl_writes_nan_and_infinity_as_null(tmp_path: Path) -> None:
    JsonlLogger().open(tmp_path, {}, "run").log({"loss": float("nan"), "grad_norm": float("inf")})
    assert (lines(tmp_path)[1]["loss"], lines(tmp_path)[1]["grad_norm"]) == (None, None)


def test_no_logger_leaves_no_file(tmp_path: Path) -> None:
    sink = NoLogger().open(tmp_path, CONFIG, "run")
    sink.log({"loss": 1.0})
    sink.close({})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
        ("online", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "online"),
    ],
)
@pytest.mark.usefixtures("no_key")
def test_wandb_is_online_only_with_a_key_and_offline_where_asked(
    mode: str, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_logger(mode=mode).resolved_mode() == expected


@pytest.mark.usefixtures("no_key")
def test_a_key_in_netrc_counts_for_its_host_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password k\n")
    assert wandb_logger().resolved_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert wandb_logger().resolved_mode() == "offline"


@pytest.mark.usefixtures("no_key")
def test_online_without_a_key_is_refused_in_one_line_instead_of_asking(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"logger.mode must be auto or offline without a W&B key .*, got online"):
        wandb_logger(mode="online").open(tmp_path, {}, "run")


def test_an_unknown_mode_is_refused() -> None:
    config = {"project": "p", "entity": None, "mode": "of", "group": None, "tags": []}
    with pytest.raises(ValueError, match=r"logger.mode: must be 'auto', 'online' or 'offline', got 'of'"):
        build({"_target_": "sweetspot.logger.WandbLogger", **config}, "logger")


def records(path: Path) -> list[Any]:
    """The records of a .wandb file: a 7-byte header, then 32 KiB blocks of chunks (crc u32, length u16, type u8)."""
    from wandb.proto import wandb_internal_pb2

    data, at, found, partial = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:  # too short for a chunk's head: padding
            at += left
            continue
        length = int.from_bytes(data[at + 4 : at + 6], "little")
        kind = data[at + 6]
        partial += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            found.append(wandb_internal_pb2.Record.FromString(partial))
            partial = b""
        elif kind not in (2, 3):  # first, middle
            break
    return found


def history(found: list[Any]) -> list[dict[str, Any]]:
    rows = [record.history.item for record in found if record.WhichOneof("record_type") == "history"]
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row} for row in rows]


def offline_files(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*/*.wandb"))


STEPS = 1200  # enough for several blocks

RUN = """
import sys
from pathlib import Path
from sweetspot.logger import WandbLogger
assert "wandb" not in sys.modules
folder, steps = Path(sys.argv[1]), int(sys.argv[2])
logger = WandbLogger(project="sweet", entity=None, mode="auto", group="sweep", tags=["tiny"])
config = {"n_samples": 16, "strategy": {"chosen": "max", "rejected": "mu-2sigma"}, "long": "x" * 40_000}
sink = logger.open(folder, config, "first")
sink.log({"stage/sample/made": 4, "stage/sample/seconds": 88.1})
for step in range(1, steps + 1):
    sink.log({"step": step, "loss": 1 / step, "rewards/margin": step / 2})
sink.log({"stage/train/made": 1})
sink.close({"evaluation/difference": 0.25, "evaluation/low": float("nan")})
"""


@pytest.fixture(scope="module")
def wandb_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which a run was logged offline and then resumed, and what the first said."""
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("wandb")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment = {**kept, "NETRC": str(folder / "none")}
    said = [
        subprocess.run(
            [sys.executable, "-c", RUN, str(folder), str(steps)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stderr
        for steps in (STEPS, 2)
    ]
    return folder, said[0]


def test_wandb_offline_keeps_config_curve_stages_and_summary(wandb_runs: tuple[Path, str]) -> None:
    path = offline_files(wandb_runs[0])[0]
    assert path.stat().st_size > 2 * BLOCK
    found = records(path)
    run = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    assert (run.project, run.display_name, run.run_group, list(run.tags)) == ("sweet", "first", "sweep", ["tiny"])
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["strategy"] == {"chosen": "max", "rejected": "mu-2sigma"}
    assert len(config["long"]) == 40_000
    rows = history(found)
    curve = [row for row in rows if "train/step" in row]
    assert [row["train/step"] for row in curve] == list(range(1, STEPS + 1))
    assert (curve[3]["train/loss"], curve[3]["train/rewards/margin"]) == (0.25, 2.0)
    stages = [row for row in rows if "stage/number" in row]
    assert [row["stage/number"] for row in stages] == [1, 2]
    assert (stages[0]["stage/sample/made"], stages[0]["stage/sample/seconds"]) == (4, 88.1)
    assert stages[1]["stage/train/made"] == 1
    updates = [item for record in found for item in record.summary.update if record.HasField("summary")]
    summary = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in updates}
    assert (summary["evaluation/difference"], summary["evaluation/low"]) == (0.25, None)


def test_wandb_plots_training_over_its_step_and_stages_over_their_number(wandb_runs: tuple[Path, str]) -> None:
    found = records(offline_files(wandb_runs[0])[0])
    metrics = [record.metric for record in found if record.WhichOneof("record_type") == "metric"]
    assert {metric.glob_name: metric.step_metric for metric in metrics if metric.glob_name} == {
        "train/*": "train/step",
        "stage/*": "stage/number",
    }


def test_a_resumed_wandb_run_keeps_its_id(wandb_runs: tuple[Path, str]) -> None:
    first, second = offline_files(wandb_runs[0])
    kept = (wandb_runs[0] / "wandb-id.txt").read_text().strip()
    assert first.name == second.name == f"run-{kept}.wandb"


def test_wandb_says_in_one_line_where_the_metrics_are_and_how_to_send_them(wandb_runs: tuple[Path, str]) -> None:
    folder, said = wandb_runs
    assert said == f"W&B: offline, send it later with: wandb sync {offline_files(folder)[0].parent}\n"
