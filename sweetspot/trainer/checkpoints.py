"""Checkpoints of a policy in the making: one counts once its file `whole` is there, which is written last.

`whole` says which policy it is of, and how it was spread over ranks. A checkpoint of DeepSpeed has a file a rank, fits
no other number of ranks, and is unpickled when it is loaded, which runs what is in it: so one that belongs to another
user is refused. The others hold tensors alone (`weights_only`) and fit any number of ranks.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKPOINTS = "checkpoints"
WHOLE = "whole"  # the file that makes a checkpoint count


def last_whole(checkpoints: Path) -> Path | None:
    """The last checkpoint that counts, or None; those that do not are deleted."""
    for folder in _by_step(checkpoints):
        if not (folder / WHOLE).exists():
            shutil.rmtree(folder)
    return max(_by_step(checkpoints), key=step_of, default=None)


def facts_of(policy: str, stage: int, ranks: int) -> dict[str, Any]:
    """What must be the same for a checkpoint to be gone on from."""
    return {"policy": policy, "stage": stage, "ranks": ranks if stage else "any"}


def resumable(checkpoints: Path, facts: Mapping[str, Any]) -> Path | None:
    """The last checkpoint that counts, or None where there is none.

    Raises:
        ValueError: when it is of another policy, of another stage or number of ranks, or another user's.
    """
    found = last_whole(checkpoints)
    if found is None:
        return None
    written: dict[str, Any] = json.loads((found / WHOLE).read_text())
    differing = [f"{name} {written[name]}, not {facts[name]}" for name in facts if written[name] != facts[name]]
    if differing:
        raise ValueError(
            f"train: the checkpoint {found} was written for {' and '.join(differing)}; train on as it was begun, or "
            f"delete {checkpoints} to begin anew"
        )
    if facts["stage"] and (strangers := [path for path in found.rglob("*") if path.stat().st_uid != os.geteuid()]):
        raise ValueError(
            f"train: {strangers[0]} belongs to another user, and loading it would run what is in it; delete "
            f"{checkpoints} to begin anew, or name another store"
        )
    return found


def make_whole(checkpoint: Path, keep: int, facts: Mapping[str, Any]) -> None:
    """Let a checkpoint that is written count, and delete all but the last `keep` beside it."""
    beside = checkpoint / f".{WHOLE}"
    beside.write_text(json.dumps(dict(facts)))
    beside.rename(checkpoint / WHOLE)
    for old in _by_step(checkpoint.parent)[:-keep]:
        shutil.rmtree(old)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _by_step(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob("checkpoint-*"), key=step_of)
