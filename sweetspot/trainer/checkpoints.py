"""Checkpoints of a policy in the making: one counts once its file `whole` is there, which is written last."""

import shutil
from pathlib import Path

CHECKPOINTS = "checkpoints"
WHOLE = "whole"  # the file that makes a checkpoint count


def last_whole(checkpoints: Path) -> Path | None:
    """The last checkpoint that counts, or None; those that do not are deleted."""
    for folder in _by_step(checkpoints):
        if not (folder / WHOLE).exists():
            shutil.rmtree(folder)
    return max(_by_step(checkpoints), key=step_of, default=None)


def make_whole(checkpoint: Path, keep: int) -> None:
    """Let a checkpoint that is written count, and delete all but the last `keep` beside it."""
    (checkpoint / WHOLE).touch()
    for old in _by_step(checkpoint.parent)[:-keep]:
        shutil.rmtree(old)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _by_step(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob("checkpoint-*"), key=step_of)
