"""What is wrong in a store: damaged files, and what nobody will use again. Nothing is deleted but by `delete`."""

import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from sweetspot.data import IMPORTED_PROMPTS
from sweetspot.exchange.inventory import Artefact, artefacts, size_of
from sweetspot.schema import LOGPROBS, PAIRS, PROMPTS, REWARDS, SAMPLES, SCORES
from sweetspot.store import CorruptTileError, content_name, read_labels, read_tile
from sweetspot.tile import Cover, Group

LIVE_SECONDS = 3600.0  # a scratch file or lease that was touched within this time belongs to somebody who is at work
SCHEMAS = {
    "samples": SAMPLES,
    "rewards": REWARDS,
    "pairs": PAIRS,
    "logprobs": LOGPROBS,
    "scores": SCORES,
    "prompts": PROMPTS,
}
UNIQUE = {
    "samples": ["prompt_id", "sample_index"],
    "rewards": ["prompt_id", "sample_index"],
    "pairs": ["prompt_id", "pair_index"],
    "scores": ["prompt_id", "sample_index"],
    "prompts": ["prompt_id"],
}
State = Literal["corrupt", "orphaned", "in use"]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be, or that a process at work holds.

    Attributes:
        state: corrupt (its bytes are not what was written), orphaned (nobody will use it again), or in use (a scratch
            file or lease of a process at work: nothing is wrong).
        path: relative to the store.
        reason: what is wrong, in one line.
        bytes: its size.
        age: seconds since it, or the newest file in it, was changed.
    """

    state: State
    path: str
    reason: str
    bytes: int
    age: float


def verify(root: Path) -> list[Finding]:
    """Everything wrong in a store: every tile is read and compared with its checksums, schema, row count and ids."""
    return [*structure(root), *(found for artefact in artefacts(root) for found in _contents(root, artefact))]


def structure(root: Path) -> list[Finding]:
    """What folders and file names tell: leftovers, folders without meta.json, rewards whose samples are gone.

    A policy's scratch folder holds the checkpoints that its training would go on from; it counts as left over when it
    has not changed for an hour.
    """
    found = [_finding(root, path, "an interrupted write or training run") for path in _scratch(root)]
    found += [_finding(root, path, "a lease without a holder at work") for path in root.glob("*/*/.*.lease.*")]
    for artefact in artefacts(root):
        if artefact.kind != "prompts" and not artefact.meta:
            found.append(_finding(root, artefact.folder, "a folder without a meta.json that can be read"))
        elif artefact.kind in ("rewards", "logprobs"):
            found += _without_samples(root, artefact)
    return found


def _scratch(root: Path) -> Iterator[Path]:
    for pattern in (".*.part", "*/.*.part", "*/*/.*.part"):
        yield from sorted(root.glob(pattern))


def _without_samples(root: Path, artefact: Artefact) -> list[Finding]:
    """Rewards and log-probabilities of samples that are gone: all of them, or tile by tile.

    A tile that is being made again just now is not gone.
    """
    pool = root / "samples" / str(artefact.meta.get("samples"))
    if not pool.is_dir():
        return [_finding(root, artefact.folder, f"the samples {pool.name} are gone")]
    if artefact.kind == "logprobs":
        return []
    cover = Cover(pool)
    lone = [path for path in artefact.tiles() if not (pool / path.name).exists() and not _sampled(path, cover)]
    return [
        _finding(root, path, "its tile of samples is gone")
        for path in lone
        if not any(map(_live, (lease for home in (pool, path.parent) for lease in home.glob(f".{path.stem}.lease.*"))))
    ]


def _sampled(rewards: Path, cover: Cover) -> bool:
    """Whether other tiles of samples hold all the prompts of a tile of rewards; what cannot be read is left alone."""
    try:
        prompt_ids = read_labels(rewards)[0] or []
        first = int(rewards.stem.rpartition("-")[2])
        group = Group(content_name(prompt_ids), range(len(prompt_ids)), first)
        return not cover.plan(prompt_ids, [group], 1, None).missing
    except CorruptTileError:  # verify names it for itself
        return True


def _contents(root: Path, artefact: Artefact) -> Iterator[Finding]:
    if artefact.kind not in SCHEMAS:
        return
    for path in artefact.tiles():
        yield from _tile(root, path, SCHEMAS[artefact.kind], UNIQUE.get(artefact.kind, []))
    if (artefact.folder / IMPORTED_PROMPTS).exists() and artefact.kind == "samples":
        yield from _tile(root, artefact.folder / IMPORTED_PROMPTS, PROMPTS, UNIQUE["prompts"])


def _tile(root: Path, path: Path, schema: pa.Schema, unique: list[str]) -> Iterator[Finding]:
    """What is wrong with a tile: its bytes, labels or columns, rows that come twice, or a value that may not be."""
    try:
        table, _ = read_tile(path, schema)
    except CorruptTileError as error:
        yield _finding(root, path, error.reason, "corrupt")
        return
    except FileNotFoundError:  # deleted while we looked
        return
    if unique and table.group_by(unique).aggregate([]).num_rows != table.num_rows:
        yield _finding(root, path, f"some rows have the same {', '.join(unique)}", "corrupt")
    nulls = [name for name in unique if table[name].null_count]
    if nulls:
        yield _finding(root, path, f"some rows have no {', '.join(nulls)}", "corrupt")


def _finding(root: Path, path: Path, reason: str, state: State = "orphaned") -> Finding:
    """A finding about a path; a scratch file or lease of a process at work is in use."""
    working = path.name.startswith(".") and _live(path)
    age, size = _age(path), size_of(path) if path.is_dir() else path.lstat().st_size
    name = str(path.relative_to(root))
    return (
        Finding("in use", name, "a process at work", size, age) if working else Finding(state, name, reason, size, age)
    )


def _live(path: Path) -> bool:
    return _age(path) < LIVE_SECONDS


def _age(path: Path) -> float:
    """Seconds since the path, or the newest file below it, was changed; negative for a clock that runs ahead."""
    newest = max((found.lstat().st_mtime for found in [path, *path.rglob("*")]), default=0.0)
    return time.time() - newest


def removable(findings: Iterable[Finding], older_than: float) -> list[Finding]:
    """What may be deleted: orphaned, and unchanged for `older_than` seconds. Corrupt tiles are remade by a run
    (remake_corrupt=true), not deleted here."""
    return [found for found in findings if found.state == "orphaned" and found.age >= older_than]


def delete(root: Path, findings: Iterable[Finding]) -> None:
    """Delete what was found; a lease goes after the rest, so that what it holds is never without it."""
    for found in sorted(findings, key=lambda found: ".lease." in found.path):
        path = root / found.path
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
