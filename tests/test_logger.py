"""Metrics as JSON lines, in Weights & Biases, and nowhere."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sweetspot.component import build, to_config
from sweetspot.logger import Logs, check, open_all, withhold_texts
from sweetspot.logger import wandb_logger as wandb_logger_module
from sweetspot.logger.jsonl import JsonlLogger
from sweetspot.logger.private import Private, private
from sweetspot.logger.secret import tells
from sweetspot.logger.wandb_logger import WITHOUT_TEXTS, WandbLogger, WandbRun
from sweetspot.sweep.points import point_name

ROOT = Path(__file__).parent.parent
BLOCK = 32 * 1024
GOES_ON = "the run goes on without it"
CONFIG = {"n_samples": 16, "strategy": {"chosen": "max", "rejected": "mu-2sigma"}}


def wandb_logger(**changed: Any) -> WandbLogger:
    settings = {"project": "p", "entity": None, "mode": "auto", "group": None, "tags": [], "text": False}
    return WandbLogger(**{**settings, "table_rows": 2, "timeout_seconds": 60.0, **changed})


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
    sink.histogram("rewards/z", np.array([[0.0, 64.0], [np.nan, 0.5]]))
    sink.close({"evaluation/difference": 0.2}, [])
    start, step, stage, histogram, finish = lines(tmp_path)
    assert (start["event"], start["name"], start["config"]) == ("start", "first", CONFIG)
    assert (step["step"], step["loss"], stage["stage/sample/made"]) == (1, 0.69, 4)
    assert (histogram["histogram"], histogram["counts"]) == ("rewards/z", [2, *[0] * 62, 1])
    assert histogram["edges"] == list(range(65))
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


def test_without_a_logger_there_is_no_file(tmp_path: Path) -> None:
    logs = open_all({}, tmp_path, CONFIG, "run", [])
    logs.log({"loss": 1.0})
    logs.close({}, [])
    assert list(tmp_path.iterdir()) == []


def test_each_log_takes_a_step_of_a_training_once_however_often_the_run_goes_on(tmp_path: Path) -> None:
    def go_on(names: list[str], policy: str, steps: list[int]) -> None:
        logs = open_all({name: JsonlLogger() for name in names}, tmp_path, {}, "run", [])
        for name in names:
            logs.sinks[name].path = tmp_path / f"{name}.jsonl"  # pyright: ignore
        for step in steps:
            logs.curve(policy, {"step": step, "loss": 0.5})
        logs.curve(policy, {"pairs": 7})
        assert logs.warnings == []

    def taken(name: str) -> list[int]:
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        return [row["step"] for row in rows if "step" in row]

    go_on(["a"], "first", [1, 2])  # killed here
    go_on(["a"], "first", [2, 3, 4])  # from the checkpoint of step 1
    go_on(["a", "b"], "first", [1, 2, 3, 4])  # it was there already, for one of the logs
    go_on(["a"], "second", [1, 2])  # another round
    assert taken("a") == [1, 2, 3, 4, 1, 2]
    assert taken("b") == [1, 2, 3, 4]
    assert (tmp_path / "a.jsonl").read_text().count('"pairs": 7') == 4


def test_a_curve_whose_steps_cannot_be_kept_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "curves.txt").mkdir()
    told: list[str] = []
    logs = open_all({"jsonl": JsonlLogger()}, tmp_path, {}, "run", told)
    logs.curve("policy", {"step": 1})
    assert told == ["logging to jsonl ended: [Errno 21] Is a directory: " + f"'{tmp_path}/curves.txt'; " + GOES_ON]


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
        ("online", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "online"),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline"),
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
def test_a_netrc_that_cannot_be_read_is_told_without_its_words_and_keeps_the_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "netrc"
    logger = wandb_logger()
    for content in (b"machine a.org login me password two hunter2words\n", b"\xff\xfe\x00"):
        path.write_bytes(content)
        (told,) = check({"wandb": logger, "jsonl": JsonlLogger()})
        assert told.startswith("W&B is offline: ") and str(path) in told and "hunter2" not in told
        assert logger.resolved_mode() == "offline"
        with pytest.raises(ValueError, match=r"^logger.wandb.mode must be auto or offline without a W&B key"):
            check({"wandb": wandb_logger(mode="online")})
    monkeypatch.setenv("NETRC", "n" * 300)
    assert check({"wandb": logger}) == [f"W&B is offline: {'n' * 300} cannot be read: File name too long"]


@pytest.mark.usefixtures("no_key")
def test_an_environment_that_cannot_be_met_is_told_in_one_line_and_keeps_the_run_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for mode, words in {
        "online": "WANDB_MODE is online, but no W&B key is known (WANDB_API_KEY)",
        "o\nf": "WANDB_MODE must be online, offline or disabled, got o f",
    }.items():
        monkeypatch.setenv("WANDB_MODE", mode)
        assert check({"wandb": wandb_logger()}) == [f"W&B is offline: {words}"]
        assert wandb_logger().resolved_mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv("WANDB_BASE_URL", "https://[x")
    (told,) = check({"wandb": wandb_logger()})
    assert told.startswith("W&B is offline: no W&B key could be looked for in ")


@pytest.mark.usefixtures("no_key")
def test_online_without_a_key_is_refused_in_one_line_instead_of_asking() -> None:
    with pytest.raises(ValueError, match=r"logger.wandb.mode must be auto or offline without a W&B key .*, got online"):
        check({"wandb": wandb_logger(mode="online")})


@pytest.mark.usefixtures("no_key")
def test_an_unknown_mode_is_refused() -> None:
    config = {**to_config(wandb_logger()), "mode": "of"}
    with pytest.raises(ValueError, match=r"logger.mode: must be 'auto', 'online' or 'offline', got 'of'"):
        build(config, "logger")


def test_what_is_no_logger_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logger.more must be a Logger, got int"):
        check({"more": 5})  # pyright: ignore
    with pytest.raises(ValueError, match=r"^logger.wandb must be a Logger, got dict; choose it as well: logger=wandb$"):
        check({"wandb": {"text": True}})  # pyright: ignore


def test_only_a_logger_that_sends_no_texts_asks_for_a_report_without_them() -> None:
    assert withhold_texts({"jsonl": JsonlLogger(), "wandb": wandb_logger()})
    assert not withhold_texts({"jsonl": JsonlLogger(), "wandb": wandb_logger(text=True)})


@pytest.mark.usefixtures("no_key")
def test_without_the_package_a_run_goes_on_without_this_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.setattr(sys, "modules", {name: one for name, one in sys.modules.items() if name != "wandb"})
    loggers, told = {"wandb": wandb_logger(), "jsonl": JsonlLogger()}, list[str]()
    assert check(loggers) == []
    logs = open_all(loggers, tmp_path, {}, "run", told)
    logs.log({"loss": 1.0})
    words = "wandb must be installed, got none; pip install 'sweetspot[wandb]'"
    assert told == [f"logging to wandb ended: {words}; the run goes on without it"]
    assert capsys.readouterr().err == f"warning: {told[0]}\n"
    assert len(lines(tmp_path)) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("no_key")
def test_offline_runs_are_kept_beside_a_netrc_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("no netrc at all")
    logs, _ = opened(tmp_path / "run", mode="auto")
    logs.log({"step": 1, "loss": 0.5})
    logs.close({}, [])
    assert logs.warnings == []
    assert [row["train/loss"] for row in history(records(*offline_files(tmp_path / "run"))) if "train/loss" in row]


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
from tests.test_logger import wandb_logger
folder, steps = Path(sys.argv[1]), int(sys.argv[2])
logger = wandb_logger(project="sweet", group="sweep", tags=["tiny"])
config = {"n_samples": 16, "strategy": {"chosen": "max", "rejected": "mu-2sigma"}, "long": "x" * 40_000}
sink = logger.open(folder, config, "first")
sink.log({"stage/sample/made": 4, "stage/sample/seconds": 88.1})
for step in range(1, steps + 1):
    sink.log({"step": step, "loss": 1 / step, "rewards/margin": step / 2})
sink.log({"stage/train/made": 1})
sink.close({"evaluation/difference": 0.25, "evaluation/low": float("nan")}, [])
assert "wandb" not in sys.modules
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
            cwd=ROOT,
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
    assert (config["strategy.chosen"], config["strategy.rejected"]) == ("max", "mu-2sigma")
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
        **{f"{kind}/*": "stage/number" for kind in ("stage", "rewards", "pairs")},
    }


def test_a_resumed_wandb_run_keeps_its_id(wandb_runs: tuple[Path, str]) -> None:
    first, second = offline_files(wandb_runs[0])
    kept = (wandb_runs[0] / "wandb-id.txt").read_text().strip()
    assert first.name == second.name == f"run-{kept}.wandb"


def test_wandb_says_in_one_line_where_the_metrics_are_and_how_to_send_them(wandb_runs: tuple[Path, str]) -> None:
    folder, said = wandb_runs
    assert said == f"W&B: offline, send it later with: cd {folder} && wandb sync wandb/offline-run-*\n"


SECRET = "0123456789abcdef0123456789abcdef01234567"
TYPED = "sk-typed-0a1b2c3d"
KEPT = "0123456789abcdef"  # the key of an artefact


def opened(folder: Path, config: dict[str, Any] | None = None, **changed: Any) -> tuple[Logs, WandbRun]:
    """A run that is logged to W&B, and its sink."""
    pytest.importorskip("wandb")
    logger = wandb_logger(**{"mode": "offline", **changed})
    logs = open_all({"wandb": logger}, folder, config or {}, "run", [])
    sink = logs.sinks["wandb"]
    assert isinstance(sink, WandbRun)
    return logs, sink


def the_core(of: int) -> int:
    """The process of W&B's service, once there is one."""
    for _ in range(600):
        for child in (Path(f"/proc/{of}/task/{of}/children").read_text()).split():
            if "wandb" in Path(f"/proc/{child}/comm").read_text() and (Path(f"/proc/{child}/cwd") / "wandb").exists():
                return int(child)
        time.sleep(0.05)
    raise AssertionError("no service of W&B began")


def test_a_log_that_fails_is_told_of_once_and_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON lines on a full device: the other log goes on, and nothing is raised."""
    told: list[str] = []
    logs = open_all({"full": JsonlLogger(), "kept": JsonlLogger()}, tmp_path, {}, "run", told)
    logs.sinks["full"].path = Path("/dev/full")  # pyright: ignore
    for step in (1, 2):
        logs.log({"step": step})
    logs.close({"made": 3}, [])
    line = "logging to full ended: [Errno 28] No space left on device; the run goes on without it"
    assert told == [line]
    assert capsys.readouterr().err == f"warning: {line}\n"
    assert [entry.get("step") for entry in lines(tmp_path)] == [None, None, 1, 2, None]


def test_a_log_that_cannot_begin_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    told: list[str] = []
    open_all({"jsonl": JsonlLogger()}, tmp_path, {}, "run", told).close({}, [])
    assert len(told) == 1
    assert told[0].startswith("logging to jsonl ended: [Errno 21] Is a directory")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("core is killed", "the run goes on without it"),
        ("core hangs", "no answer within 3 s"),
        ("worker is killed", "its process ended with code -9"),
        ("disk is full", "is not whole; is the disk full?"),
        ("folder is a file", "Error"),
    ],
)
def test_a_fault_of_wandb_ends_no_run(tmp_path: Path, fault: str, words: str) -> None:
    if fault == "folder is a file":
        (tmp_path / "wandb").write_text("")
    logs, sink = opened(tmp_path, timeout_seconds=3.0 if fault == "core hangs" else 60.0)
    if fault == "disk is full":
        resource.prlimit(sink.process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    if fault.startswith("core"):
        os.kill(the_core(sink.process.pid), signal.SIGSTOP if fault == "core hangs" else signal.SIGKILL)
    if fault == "worker is killed":
        os.kill(sink.process.pid, signal.SIGKILL)
    for step in range(3000):
        logs.log({"step": step, "loss": 0.5})
    logs.close({}, [])
    assert len(logs.warnings) == 1
    assert words in logs.warnings[0]
    assert "\n" not in logs.warnings[0]
    assert sink.process.wait(10) is not None


@pytest.mark.slow
@pytest.mark.usefixtures("no_key")
def test_a_server_that_does_not_answer_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setenv("WANDB_API_KEY", SECRET)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        started = time.monotonic()
        logs = open_all({"wandb": wandb_logger(timeout_seconds=3.0)}, tmp_path, {}, "run", [])
        logs.log({"step": 1})
        logs.close({}, [])
    assert time.monotonic() - started < 30
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert len(logs.warnings) == 1
    assert logs.warnings[0].startswith("logging to wandb ended: ")
    assert f"cd {tmp_path} && wandb sync wandb/run-*;" in logs.warnings[0]
    assert list((tmp_path / "wandb").glob("run-*/*.wandb"))


@pytest.mark.slow
def test_a_run_without_pairs_and_one_that_is_switched_off_end_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mode in ("offline", "disabled"):
        monkeypatch.setenv("WANDB_MODE", mode)
        (tmp_path / f"{mode}.json").write_text("{}")
        logs, _ = opened(tmp_path / mode, mode="auto")
        logs.table("pairs", pa.table({"prompt_id": pa.array([], pa.string())}))
        logs.histogram("rewards/z", np.array([np.nan]))
        logs.close({"made": 1}, [tmp_path / f"{mode}.json"])
        assert logs.warnings == []
    assert len(offline_files(tmp_path / "offline")) == 1
    assert not list((tmp_path / "disabled").rglob("*.wandb"))


@pytest.mark.slow
def test_a_run_that_fails_does_not_wait_long_for_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_logger_module, "LEAVING_SECONDS", 1.0)
    logs, sink = opened(tmp_path)
    core = the_core(sink.process.pid)
    os.kill(core, signal.SIGSTOP)
    started = time.monotonic()
    try:
        raise RuntimeError
    except RuntimeError:
        logs.close({}, [])
    assert time.monotonic() - started < 10
    assert "no answer within 1 s" in logs.warnings[0]
    os.kill(core, signal.SIGCONT)
    assert sink.process.wait(60) == 0
    found = records(offline_files(tmp_path)[0])
    assert next(one.exit.exit_code for one in found if one.WhichOneof("record_type") == "exit") == 1


@pytest.mark.slow
def test_a_name_that_is_too_long_for_wandb_keeps_its_end(tmp_path: Path) -> None:
    logs = open_all({"wandb": wandb_logger(mode="offline")}, tmp_path, {}, "n" * 150 + "-1234abcd", [])
    logs.close({}, [])
    (run,) = (one.run for one in records(offline_files(tmp_path)[0]) if one.WhichOneof("record_type") == "run")
    assert run.display_name == "n" * 119 + "-1234abcd"


@pytest.mark.slow
def test_a_killed_run_leaves_what_it_logged(tmp_path: Path) -> None:
    """The worker sees its input end, and ends the run as failed."""
    logs, sink = opened(tmp_path)
    logs.log({"step": 1, "loss": 0.5})
    sink.lines.put(None)  # as when this process is no more
    assert sink.process.wait(60) == 0
    found = records(offline_files(tmp_path)[0])
    assert [row["train/loss"] for row in history(found) if "train/loss" in row] == [0.5]
    assert next(one.exit.exit_code for one in found if one.WhichOneof("record_type") == "exit") == 1


PAIR = {"prompt_id": "ab", "chosen": "[bold]<b>yes</b>\x1b[31m \u202eabc", "rejected": "no", "chosen_z": 1.5}
PAIR |= {"messages": [{"role": "user", "content": "Where is Rosebud?"}]}


@pytest.mark.slow
@pytest.mark.parametrize("text", [False, True])
def test_nothing_private_is_in_what_wandb_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bool) -> None:
    home = tmp_path / "homeofalice"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("OPENAI_API_KEY", f"sk-{SECRET}")
    config = {
        "store": f"{home}/my store",
        "model": {"path": "/scratch/alice/llama", "system_prompt": "Answer like Rosebud."},
        "head": socket.gethostname(),
        "judge": {
            "base_url": "http://alice:pass@node17:8000/v1",
            "extra": {"api_key": "short", "extra_headers": {"Authorization": f"Bearer {TYPED}"}, "max_tokens": 1},
            "key_variable": "OPENAI_API_KEY",
        },
        "file": "file:///scratch/bob/k",
        "note": f"key {SECRET}",
    }
    (tmp_path / "report.html").write_text(f"<p>Where is Rosebud?</p> {home}/x {TYPED} file:///scratch/bob/k")
    (tmp_path / WITHOUT_TEXTS).write_text(f"<p>What was asked is not told.</p> {home}/x")
    command = "python run.py 'model.system_prompt=Answer like Rosebud.'"
    found = {"judge_key": KEPT, "warnings": [f"{TYPED} was refused"]}
    manifest = {"command": command, "config": config, "store": str(home), **found}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    logs, _ = opened(tmp_path, config, text=text)
    logs.table("pairs", pa.Table.from_pylist([PAIR, PAIR, PAIR]))
    logs.close({}, [tmp_path / name for name in ("manifest.json", "report.html", WITHOUT_TEXTS)])
    assert logs.warnings == []
    kept = {path: path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file()}
    whole = b"".join(kept.values())
    for word in (
        "homeofalice",
        "/scratch",
        "node17",
        SECRET,
        TYPED,
        "short",
        str(tmp_path),
        *([] if text else ["Rosebud"]),
    ):
        assert word.encode() not in whole, word
    if len(socket.gethostname()) > 3:  # a shorter one may occur by chance
        assert socket.gethostname().encode() not in whole
    table = json.loads(next(data for path, data in kept.items() if path.name.endswith(".table.json")))
    assert (
        table["columns"] == ["prompt_id", *(["chosen", "rejected"] if text else []), "chosen_z"] + ["messages"] * text
    )
    assert len(table["data"]) == 2  # table_rows
    if text:
        assert table["data"][0][1] == "[bold]<b>yes</b>\\x1b[31m \\u202eabc"
        assert table["data"][0][-1] == "user: Where is Rosebud?"
    found = records(offline_files(tmp_path)[0])
    run = next(one.run for one in found if one.WhichOneof("record_type") == "run")
    sent = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (sent["store"], sent["model.path"], sent["head"]) == ("…/my store", "…/llama", "…")
    assert sent["judge.base_url"] == "http://…:8000/v1"
    (manifest,) = (json.loads(data) for path, data in kept.items() if path.name.endswith("manifest.json"))
    assert manifest["command"] == "…"  # with texts and without
    assert (manifest["judge_key"], manifest["warnings"]) == (KEPT, ["… was refused"])
    assert (sent["judge.extra.max_tokens"], sent["judge.key_variable"]) == (1, "OPENAI_API_KEY")
    names = [one.artifact.name.partition("-")[0] for one in found if one.WhichOneof("record_type") == "artifact"]
    assert names == ["run", "manifest", "report"]
    (page,) = (data.decode() for path, data in kept.items() if path.name.endswith("report.html"))
    assert page.startswith("<p>Where is Rosebud?</p>" if text else "<p>What was asked is not told.</p>")


def test_paths_hosts_and_texts_are_taken_out_and_words_stay() -> None:
    hidden = Private(("system_prompt",), ("secretsecret",), (), ("/home/al",), ("vm1",), ("al",))
    for before, after in {
        "/home/al/a b/c d": "…/c d",
        "/home/al": "…",
        "mu-2sigma": "mu-2sigma",
        "and/or 1/2": "and/or 1/2",
        "meta-llama/Llama": "meta-llama/Llama",
        "store=/data/x until=select": "store=…/x until=select",
        "file:/data/x ~al/y": "file:…/x …/y",
        "https://api.openai.com/v1": "https://api.openai.com/v1",
        "http://localhost:8000/v1": "http://localhost:8000/v1",
        "on vm1, not vm12": "on …, not vm12",
        "a secretsecret b": "a … b",
    }.items():
        assert hidden.text(before) == after
    assert hidden.scrubbed({"a": [{"system_prompt": "x", "b": ("/c/d", 1)}]}) == {
        "a": [{"system_prompt": "…", "b": ["…/d", 1]}]
    }


def test_secrets_that_were_typed_are_hidden_by_their_keys_and_wherever_else_they_occur() -> None:
    config = {
        "eval.judge.base_url": "https://api.example.com/v1?api-version=2&api_key=sk-in%2Faddress#top",
        "eval.judge.extra.api_key": "sk-plain-text",
        "eval.judge.extra.extra_headers.Authorization": f"Bearer {TYPED}",
        "eval.judge.extra.extra_headers.X-Auth-Token": 97531864,
        "eval.judge.extra.auth.user": "b",
        "eval.judge.key_variable": "OPENAI_API_KEY",
        "eval.mirrors": ["https://bob:hunter2@words@mirror.org/x", {"clientSecret": "xyzzy-plugh"}],
        "sampler.max_tokens": 512,
        "sampler.stop_tokens": ["<end>"],
        "seconds_per_token": 2,
        "data.pool": KEPT,
    }
    hidden = private(config, True)
    assert hidden.scrubbed(config) == {
        **config,
        "eval.judge.base_url": "https://api.example.com/v1?api-version=2&api_key=…#top",
        "eval.judge.extra.api_key": "…",
        "eval.judge.extra.extra_headers.Authorization": "…",
        "eval.judge.extra.extra_headers.X-Auth-Token": "…",
        "eval.judge.extra.auth.user": "…",
        "eval.mirrors": ["https://mirror.org/x", {"clientSecret": "…"}],
    }
    asked = f"asked with {TYPED}: https://api.example.com/v1/models?api_key=sk-in%2Faddress"
    for clean in (hidden.text, hidden.said, hidden.known):
        found = clean(f"{asked} answered sk-in/address, 97531864; sk-plain-text hunter2@words xyzzy-plugh")
        assert found == ("asked with …: https://api.example.com/v1/models?api_key=… answered …, …; … … …")
    facts = {"key": KEPT, "judge_key": KEPT, "tokens": 5, "mean_tokens": 2.5, "token": "s3cr3t", "of": [{"key": KEPT}]}
    assert hidden.manifest({**facts, "config": {"key": KEPT}}) == {**facts, "token": "…", "config": {"key": "…"}}


def test_a_secret_in_a_shell_line_of_a_job_is_hidden() -> None:
    lines = [f"export HF_TOKEN={TYPED}", "OPENAI_API_KEY='two words' WANDB_MODE=offline", "module load a", "A_KEY= x"]
    config = {"launcher.setup": lines, "launcher.container": "apptainer exec --env=PASSWORD=opensesame image.sif"}
    hidden = private(config, True)
    assert hidden.scrubbed(config) == {
        "launcher.setup": ["export HF_TOKEN=…", "OPENAI_API_KEY=… WANDB_MODE=offline", "module load a", "A_KEY= x"],
        "launcher.container": "apptainer exec --env=PASSWORD=… image.sif",
    }
    assert hidden.known(f"{TYPED} was refused, so were two words and opensesame") == "… was refused, so were … and …"
    typed = f"launcher.setup=[export HF_TOKEN={TYPED}]"
    assert re.fullmatch(r"launcher.setup=…-[0-9a-f]{8}", hidden.override(typed))
    named = hidden.name(point_name(["seed=1", typed]), {"launcher.setup": lines[:1]})
    assert re.fullmatch(r"seed=1,launcher.setup=…-[0-9a-f]{8}", named)


def test_no_key_of_the_configuration_files_is_taken_for_that_of_a_secret() -> None:
    texts = [path.read_text() for path in (ROOT / "conf").rglob("*.yaml")]
    names = {name for text in texts for name in re.findall(r"^ *(\w+):", text, re.MULTILINE)}
    assert {"key_variable", "max_tokens", "eos_token"} <= names
    assert [name for name in names if tells(name)] == []


def test_addresses_lose_user_password_secret_parameters_and_absolute_paths() -> None:
    hidden = private({}, True)
    for before, after in {
        "https://user:p@ss@a.org:80/v1": "https://a.org:80/v1",
        "see https://token@a.org, and b@c.org": "see https://a.org, and b@c.org",
        "wss://a.org/?q=tea&access_token=x&X-Amz-Signature=y": "wss://a.org/?q=tea&access_token=…&X-Amz-Signature=…",
        "file:///scratch/bob/k": "file://…/k",
        "file:///scratch/bob/my k": "file://…/my k",
        "from file:///scratch/bob/k, file://nas/bob/k": "from file://…/k, file://…/k",
        "sqlite:////scratch/bob/k.db": "sqlite://…/k.db",
        "https://a.org/scratch/k": "https://a.org/scratch/k",
    }.items():
        assert hidden.text(before) == after
        assert hidden.text(after) == after


def test_overrides_and_names_end_at_a_secret_that_was_typed() -> None:
    key = "eval.judge.extra"
    hidden = private({f"{key}.api_key": "short", f"{key}.max_tokens": 4}, True)
    for typed in (f"+{key}.api_key=short", f"{key}={{api_key:short}}", f"{key}.auth_token=1234"):
        assert re.fullmatch(rf"{re.escape(typed.partition('=')[0])}=…-[0-9a-f]{{8}}", hidden.override(typed))
    for typed in (f"{key}.max_tokens=4", f"{key}={{max_tokens:4}}", "eval.judge.key_variable=KEY"):
        assert hidden.override(typed) == typed
    found = hidden.name(point_name(["n_samples=4", f"+{key}.api_key=short", "seed=1"]), {f"{key}.api_key": "short"})
    assert re.fullmatch(rf"n_samples=4,\+{key}.api_key=…-[0-9a-f]{{8}}", found)


def test_the_name_of_a_run_has_no_private_value_and_stays_unique() -> None:
    hidden = Private(("system_prompt",), (), (), ("/home/al",), (), ("al",))
    config = {"model.path": "/data/al/llama", "strategy.chosen": "max", "model.system_prompt": "Be nice"}
    name = point_name(["strategy.chosen=max", "model.path=/data/al/llama", "model.system_prompt=Be nice"])
    assert hidden.name("strategy.chosen=max", config) == "strategy.chosen=max"
    found = hidden.name(name, config)
    assert found.startswith("strategy.chosen=max,model.path=…-")
    assert "nice" not in found and "al-" not in found
    assert hidden.name(name + "x", config) != found


def test_the_name_of_a_run_ends_at_a_text_that_looks_like_an_override() -> None:
    hidden = Private(("system_prompt",), (), (), (), (), ())
    for typed in (
        "model.system_prompt=Alpha,word=beta",
        "model={path:p,system_prompt:Alpha}",
        "++model.system_prompt=A",
    ):
        name = point_name(["n_samples=4", typed, "seed=1"])
        found = hidden.name(name, {"model.system_prompt": "Alpha,word=beta", "n_samples": 4, "model": 1})
        assert re.fullmatch(r"n_samples=4,\W*model(.system_prompt=|=-)…-[0-9a-f]{8}", found), found


def test_a_known_path_with_blanks_is_taken_out_of_a_text_whole() -> None:
    hidden = private({"data.path": "/x/my dir/a.jsonl"}, False)
    assert hidden.text("no file '/x/my dir/a.jsonl.gz' in /x/my") == "no file '…/a.jsonl.gz' in …/my"


def test_an_override_with_a_private_value_keeps_its_key_and_a_hash() -> None:
    hidden = private({"model.system_prompt": "Alpha beta gamma"}, False)
    for typed in (
        "model.system_prompt=short",
        r"+x.note=Alpha\ beta\ gamma",
        "data.path=/x/y",
        "model={system_prompt:Hm}",
        r"data.path='/x/a b'",
    ):
        assert re.fullmatch(rf"{re.escape(typed.partition('=')[0])}=…-[0-9a-f]{{8}}", hidden.override(typed))
    for typed in ("strategy=max_min", "~logger", "n_samples=4", r"note=a\ b"):
        assert hidden.override(typed) == typed
