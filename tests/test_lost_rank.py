"""A rank that is killed, stopped or stuck ends them all; what is left is gone on from."""

# ruff: noqa: E402 - the imports wait for importorskip

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("deepspeed")

from safetensors.torch import load_file

from sweetspot import launch, ranks
from sweetspot.launch import WorkerError
from sweetspot.model import Model
from sweetspot.stopping import REQUEUE
from sweetspot.trainer import parallel
from sweetspot.trainer.checkpoints import WHOLE
from tests import ranked, tiny

pytestmark = pytest.mark.slow
DPO = tiny.dpo(dtype="float32", device_batch_size=2, epochs=16, save_every=8)  # 48 steps


def main(job: dict[str, Any], emit: launch.Emit) -> None:  # noqa: ARG001 - a worker's signature
    """A rank of these tests: rank 1 does what the job says, the others wait for it."""
    beat = parallel.Beat()
    with parallel.joined(job):
        beat.doing = ranks.TRAINING
        time.sleep(2.5)  # until the beat tells of it
        if os.environ["RANK"] == "1":
            _misbehave(job["do"])
        beat.move()
        parallel.barrier()


def _misbehave(how: str) -> None:
    match how:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hang":
            time.sleep(600)
        case "raise":
            raise ValueError("pairs: rank 1 does not like them")
        case _:
            os._exit(7)


def start(job: dict[str, Any], folder: Path, **changes: Any) -> None:
    environments = [
        {**one, "PYTHONPATH": str(ranked.ROOT)} for one in ranks.environments(tiny.launch(devices=2, **changes))
    ]
    job = {**job, "deepspeed": {"stage": 0}}
    ranks.run("tests.test_lost_rank", job, folder, environments, lambda _: None, changes.get("timeout_seconds", 600))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("die", r"train: rank 1: the worker was killed by SIGKILL \(out of memory\?\)"),
        ("exit", "train: rank 1: the worker ended with code 7"),
        ("raise", "train: rank 1: pairs: rank 1 does not like them"),
    ],
)
def test_the_rank_that_fails_is_named_and_the_others_are_gone(how: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=told):
        start({"do": how}, tmp_path / "train")
    assert not left(tmp_path)


@pytest.mark.parametrize("how", ["stop", "hang"])
def test_a_rank_that_stands_still_is_named_after_the_time_limit(how: str, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"train: rank 1 gave no sign of life for 8 s while training"):
        start({"do": how}, tmp_path / "train", timeout_seconds=8)
    assert not left(tmp_path)


def left(folder: Path) -> list[str]:
    """The command lines of processes that still work on a job below the folder."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = process.read_text()
        except OSError:
            continue
        if str(folder) in text and "sweetspot.launch" in text:
            found.append(text)
    return found


def same_curve(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for name in ("loss", "grad_norm", "learning_rate"):
        assert [row[name] for row in ours] == pytest.approx([row[name] for row in theirs], abs=1e-6)


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of a whole training on two ranks, by stage; made once."""
    made: dict[int, Path] = {}

    def of(stage: int) -> Path:
        if stage not in made:
            made[stage] = tmp_path_factory.mktemp(f"stage{stage}")
            ranked.train(made[stage], tiny_model, DPO, tiny.deepspeed(stage=stage))
        return made[stage]

    return of


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("attempt", range(2))
def test_a_kill_at_any_moment_ends_all_ranks_and_the_curve_is_gone_on_with(
    stage: int, attempt: int, undisturbed: Callable[[int], Path], tiny_model: Model, tmp_path: Path
) -> None:
    """Killed twice: at a random moment after one of the first steps, and in the middle of a later save."""
    chance = random.Random(100 * stage + attempt)
    step = chance.randrange(1, 24)
    for victim, when in ((chance.randrange(2), behind_step(step)), (chance.randrange(2), in_save_behind(24))):
        assert killed(tmp_path, tiny_model, stage, victim, when) < 15
        assert not left(tmp_path)
    same_curve(ranked.train(tmp_path, tiny_model, DPO, tiny.deepspeed(stage=stage)), ranked.history(undisturbed(stage)))
    ours, theirs = (load_file(one / "policy" / "model.safetensors") for one in (tmp_path, undisturbed(stage)))
    assert ours.keys() == theirs.keys()
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-6


def behind_step(step: int) -> Callable[[Path], bool]:
    """As soon as the curve has that step, with the next one under way."""

    def now(folder: Path) -> bool:
        curve = folder / "policy" / "history.jsonl"
        return curve.exists() and curve.read_text().count("\n") >= step

    return now


def in_save_behind(step: int) -> Callable[[Path], bool]:
    """As soon as files of a checkpoint behind the step lie there and it is not whole."""

    def now(folder: Path) -> bool:
        try:
            begun = [path for path in (folder / "policy" / "checkpoints").glob("*/*") if path.name != WHOLE]
        except FileNotFoundError:  # the checkpoint before was deleted meanwhile
            return False
        late = [path.parent for path in begun if int(path.parent.name.rpartition("-")[2]) > step]
        return any(not (checkpoint / WHOLE).exists() for checkpoint in late)

    return now


def killed(folder: Path, model: Model, stage: int, victim: int, when: Callable[[Path], bool]) -> float:
    """Seconds from the kill of a rank, as soon as `when(folder)` holds, to the launcher's error."""
    at: list[float] = []
    over = threading.Event()

    def watch() -> None:
        found = None
        while not over.wait(0.001):
            found = found or process_of(folder, victim)
            if found and when(folder):
                at.append(time.monotonic())
                os.kill(found, signal.SIGKILL)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(WorkerError, match=f"rank {victim}: the worker was killed by SIGKILL"):
            ranked.train(folder, model, DPO, tiny.deepspeed(stage=stage))
        return time.monotonic() - at[0]
    finally:
        over.set()
        watcher.join()


def process_of(folder: Path, rank: int) -> int | None:
    """The process of a rank that works on a job below the folder."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = process.read_text()
            if f"train-rank-{rank}/job.json" in text and str(folder) in text:
                return int(process.parent.name)
    return None


def test_a_checkpoint_of_another_number_of_ranks_or_stage_is_refused_in_one_line(
    tiny_model: Model, tmp_path: Path
) -> None:
    killed(tmp_path, tiny_model, 2, 1, behind_step(12))
    assert list((tmp_path / "policy" / "checkpoints").glob(f"*/{WHOLE}"))
    with pytest.raises(WorkerError, match=r"checkpoint-8 was written for stage 2, not 3; train on as it was begun"):
        ranked.train(tmp_path, tiny_model, DPO, tiny.deepspeed(stage=3))
    with pytest.raises(WorkerError, match=r"checkpoint-8 was written for ranks 2, not 1; train on as it was begun"):
        ranked.train(tmp_path, tiny_model, DPO, tiny.deepspeed(stage=2), devices=1)


def test_a_plain_checkpoint_fits_any_number_of_ranks(
    undisturbed: Callable[[int], Path], tiny_model: Model, tmp_path: Path
) -> None:
    killed(tmp_path, tiny_model, 0, 0, behind_step(12))
    from sweetspot import trainer

    trainer.main(ranked.job(tmp_path, tiny_model, DPO, tiny.deepspeed(), 10), lambda _: None)
    rows, whole = ranked.history(tmp_path), ranked.history(undisturbed(0))
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in whole], abs=1e-5)


@pytest.mark.parametrize(
    ("devices", "stage", "number"), [(1, 0, signal.SIGUSR2), (2, 0, signal.SIGTERM), (2, 3, signal.SIGUSR2)]
)
def test_a_run_that_is_told_to_stop_leaves_a_checkpoint_and_code_75(
    devices: int,
    stage: int,
    number: signal.Signals,
    undisturbed: Callable[[int], Path],
    tiny_model: Model,
    tmp_path: Path,
) -> None:
    code = (
        "import sys, json; from pathlib import Path; from sweetspot import stopping; from tests import ranked, tiny; "
        "from sweetspot.model import Model; from tests.test_lost_rank import DPO; stopping.listen()\n"
        "folder, model, stage, devices = json.loads(sys.argv[1])\n"
        "try: ranked.train(Path(folder), Model(**model), DPO, tiny.deepspeed(stage=stage), devices=devices, "
        "on_metrics=lambda row: print(row.get('step'), flush=True))\n"
        f"except stopping.Stopped as stopped: print(stopped, flush=True); sys.exit({REQUEUE})\n"
    )
    plain = {
        "name": "tiny",
        "path": tiny_model.path,
        "revision": None,
        "system_prompt": None,
        "trust_remote_code": False,
    }
    arguments = [sys.executable, "-c", code, json.dumps([str(tmp_path), plain, stage, devices])]
    environment = {**os.environ, "PYTHONPATH": str(ranked.ROOT)}
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "3":
            process.send_signal(number)
            break
    told = process.stdout.read().split()
    assert process.wait(timeout=60) == REQUEUE
    assert told[-1] == number.name
    assert not left(tmp_path)
    steps = len(ranked.history(tmp_path))
    assert 3 <= steps < 48
    (kept,) = (tmp_path / "policy" / "checkpoints").iterdir()
    assert kept.name == f"checkpoint-{steps}"
    assert (kept / WHOLE).exists()
    same_or_close = 1e-5 if devices == 1 else 1e-6
    rows, whole = (
        ranked.train(tmp_path, tiny_model, DPO, tiny.deepspeed(stage=stage), devices=devices),
        undisturbed(stage),
    )
    assert [row["loss"] for row in rows] == pytest.approx(
        [row["loss"] for row in ranked.history(whole)], abs=same_or_close
    )
