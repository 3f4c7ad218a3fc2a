"""A training rank: how it finds the others, what they agree on, how it tells that it lives, and its ZeRO settings."""

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import distributed

from sweetspot.component import build
from sweetspot.dpo import DPO, DeepSpeed
from sweetspot.launch import Emit
from sweetspot.ranks import BEAT, BEAT_SECONDS, SAVING
from sweetspot.sft import SFT
from sweetspot.stopping import REQUEUE, STOPS
from sweetspot.trainer.checkpoints import CHECKPOINTS, facts_of, resumable, step_of
from sweetspot.trainer.history import HISTORY, History, finished

Found = TypeVar("Found")
WAIT = timedelta(days=7)  # for the ranks of other nodes, which may still be sampling
COLLECTIVE = timedelta(minutes=30)  # that one collective may last: the slowest rank's load or save


@contextlib.contextmanager
def joined(job: dict[str, Any]) -> Generator[dict[str, Any]]:
    """The job of rank 0, in a process group of all ranks; the job itself where this process is alone.

    A rank ends with the block.

    Raises:
        ValueError: when the ranks were not started for one number of ranks.
    """
    if "RANK" not in os.environ:
        yield job
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if job["deepspeed"]["stage"] and not torch.cuda.is_available():
        _build()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None, rank == 0, WAIT, wait_for_workers=False
    )
    _same_size(store, rank, size)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE)
    code: Any = 0
    try:  # after an error the others are in the middle of something, and the launcher ends them
        yield agreed(lambda: job)
        distributed.barrier()
    except SystemExit as ended:
        code = ended.code
    distributed.destroy_process_group()
    _leave(int(code))


def _leave(code: int) -> NoReturn:
    """End this rank here: threads of the collectives aborted one in 20 at the interpreter's end, all being done."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _same_size(store: Any, rank: int, size: int) -> None:
    if rank == 0:
        store.set("size", str(size))
    asked = int(store.get("size"))
    if size != asked:
        raise ValueError(
            f"launch.devices and launch.nodes must be the same on every node: rank {rank} was started for {size} "
            f"ranks, rank 0 for {asked}"
        )


def _build() -> None:
    """Build DeepSpeed's part for a processor, one process at a time.

    Builders hold a lock of the kernel, which ends with its process, so that a `lock` file found under it was left by
    a build that was killed: PyTorch would wait for it for ever.
    """
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    root = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    root.mkdir(parents=True, exist_ok=True)
    with (root / "building").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in root.glob("*/lock"):
            left.unlink()
        ShareMemCommBuilder().load(verbose=False)


def size() -> int:
    """How many ranks train."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def first() -> bool:
    """Whether this is the rank that writes and tells."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def barrier() -> None:
    """Wait for every rank."""
    if distributed.is_initialized():
        distributed.barrier()


def agreed(find: Callable[[], Found]) -> Found:
    """What rank 0 finds, on every rank; an error of rank 0 is one of all."""
    if not distributed.is_initialized():
        return find()
    told: list[Any] = [None, None]
    if first():
        try:
            told[0] = find()
        except ValueError as error:
            told[1] = str(error)
    distributed.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise ValueError(told[1])
    return cast("Found", told[0])


class Beat:
    """Tells the launcher that this rank lives: `doing` is what it does, `move` is called at each forward pass."""

    def __init__(self) -> None:
        self.doing, self._moves = "loading", 0
        if BEAT in os.environ:
            threading.Thread(target=self._write, args=(Path(os.environ[BEAT]),), daemon=True).start()

    def move(self) -> None:
        """The main thread has gone on."""
        self._moves += 1

    def _write(self, path: Path) -> None:
        for tick in range(1 << 62):
            with contextlib.suppress(OSError):  # a file system that is away for a moment
                path.write_text(f"{tick} {self._moves} {self.doing}")
            time.sleep(BEAT_SECONDS)


@contextlib.contextmanager
def asked_to_stop(asked: threading.Event) -> Generator[None]:
    """Inside the block SIGTERM and SIGUSR2 set the event, instead of ending the process."""
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def zero_config(deepspeed: DeepSpeed, dpo: DPO | SFT) -> dict[str, Any] | None:
    """DeepSpeed's own configuration, without an optimizer: the Trainer brings its AdamW. None for stage 0.

    Gradients are summed in float32 under autocast too, as without DeepSpeed.
    """
    if not deepspeed.stage:
        return None
    cuda = torch.cuda.is_available()
    cpu = {"device": "cpu", "pin_memory": cuda}
    bucket = deepspeed.bucket_size
    stage3 = {
        "stage3_prefetch_bucket_size": bucket,
        "stage3_param_persistence_threshold": deepspeed.persistence_threshold,
        "stage3_gather_16bit_weights_on_model_save": True,  # "16bit" in name only: the dtype of the weights
    }
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
        "torch_autocast": {
            "enabled": dpo.autocast is not None,
            "dtype": dpo.autocast or "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "zero_optimization": {
            "stage": deepspeed.stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": cuda,
            "contiguous_gradients": True,
            **(stage3 if deepspeed.stage == 3 else {}),
            **({"offload_optimizer": cpu, "offload_param": cpu} if deepspeed.offload else {}),
        },
    }


@dataclass
class Session:
    """One training on its ranks.

    Attributes:
        output: the folder of the model in the making.
        deepspeed: how it is spread over the ranks.
        beat: tells that this rank lives.
        asked: set when training is to stop behind the step that it is in.
        checkpoint: what training goes on from, or None.
    """

    output: Path
    deepspeed: DeepSpeed
    beat: Beat
    checkpoint: Path | None = None
    asked: threading.Event = field(default_factory=threading.Event)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.output / CHECKPOINTS

    def facts(self) -> dict[str, Any]:
        """What a checkpoint of it is of."""
        return facts_of(self.output.name, self.deepspeed.stage, size())

    def history(self) -> History:
        """The curve so far; the first rank goes on writing it."""
        after = step_of(self.checkpoint) if self.checkpoint else 0
        return History(self.output / HISTORY, after, reads=not first())

    def train(self, trainer: Any) -> dict[str, Any] | None:
        """Train to the end, or exit with REQUEUE at a checkpoint when told to stop.

        Returns:
            The trained weights where no rank holds them whole (ZeRO-3), on the first rank; else None.
        """
        with asked_to_stop(self.asked):
            trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        if trainer.stopped:
            sys.exit(REQUEUE)
        self.beat.doing = SAVING
        return trainer.accelerator.get_state_dict(trainer.model_wrapped) if self.deepspeed.stage == 3 else None


def together(job: dict[str, Any], emit: Emit, train: Callable[[dict[str, Any], Session, Emit], None]) -> None:
    """Have the model of a job trained on all its ranks, unless it is finished already.

    Args:
        job: with "output" and "deepspeed".
        emit: takes the first rank's events.
        train: trains on this rank; its `emit` does nothing but on the first.

    Raises:
        ValueError: when there is a checkpoint that is not this job's.
    """
    beat = Beat()
    with joined(job) as shared:
        session = Session(Path(shared["output"]), build(shared["deepspeed"]), beat)
        if not agreed(lambda: finished(session.output)):  # else only the tidying was left to do
            session.checkpoint = agreed(lambda: resumable(session.checkpoints, session.facts()))
            train(shared, session, emit if first() else _nothing)
        barrier()
        if first():
            shutil.rmtree(session.checkpoints, ignore_errors=True)


def _nothing(event: dict[str, Any]) -> None:
    """What the other ranks tell."""
