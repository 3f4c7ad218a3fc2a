"""Exporting: pairs, samples and rewards as data sets that `datasets` and TRL read as they are, with a data card."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sweetspot.data import IMPORTED_PROMPTS
from sweetspot.exchange.card import card
from sweetspot.exchange.inventory import Artefact, artefact_at
from sweetspot.schema import MESSAGES, PAIRS, PROMPTS, REWARDS, SAMPLES
from sweetspot.store import read_tile

Kind = Literal["pairs", "samples", "rewards"]
RENAMED = ("messages", "chosen", "rejected")  # of PAIRS, which the preference format holds as messages
PREFERENCES = pa.schema(
    [
        ("prompt", MESSAGES),  # the conversation so far
        ("chosen", MESSAGES),  # one turn of the assistant
        ("rejected", MESSAGES),  # one turn of the assistant
        *(PAIRS.field(name) for name in PAIRS.names if name not in RENAMED),
    ]
)


Table = tuple[str, pa.Schema, Iterable[pa.Table]]  # file name, columns, parts


def export(root: Path, kind: Kind, key: str, out: Path, jsonl: bool) -> dict[str, int]:
    """Write an artefact of the store as a data set: a folder with Parquet files and README.md, whole or not at all.

    Args:
        root: the store.
        out: the folder, which must not exist.
        jsonl: write JSON lines instead of Parquet.

    Returns:
        Rows by file.

    Raises:
        ValueError: when the store has no such artefact, or `out` exists.
        CorruptTileError: when a tile of it is damaged.
    """
    artefact = artefact_at(root, kind, key)
    if out.exists():
        raise ValueError(f"export: OUT must be a folder that does not exist yet, got {out}")
    scratch = out.with_name(f".{out.name}.part")
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True)
    tables = {"pairs": _pairs, "samples": _samples, "rewards": _rewards}[kind](root, artefact)
    counts: dict[str, int] = {}
    for name, schema, rows in tables:
        write = _write_jsonl if jsonl else _write_parquet
        counts[f"{name}.{'jsonl' if jsonl else 'parquet'}"] = write(scratch / name, schema, rows)
    (scratch / "README.md").write_text(card(root, artefact, counts), encoding="utf-8")
    scratch.rename(out)
    return counts


def _pairs(_: Path, artefact: Artefact) -> Iterator[Table]:
    yield "pairs", PREFERENCES, (preferences(read_tile(path, PAIRS)[0]) for path in artefact.tiles())


def preferences(pairs: pa.Table) -> pa.Table:
    """PAIRS rows in the conversational preference format: prompt, chosen and rejected as lists of messages."""
    answers = {
        side: pa.array([[{"role": "assistant", "content": text}] for text in pairs[side].to_pylist()], MESSAGES)
        for side in ("chosen", "rejected")
    }
    kept = {name: pairs[name] for name in PAIRS.names if name not in RENAMED}
    return pa.table({"prompt": pairs["messages"], **answers, **kept}, schema=PREFERENCES)


def _samples(root: Path, artefact: Artefact) -> Iterator[Table]:
    yield "samples", SAMPLES, (read_tile(path, SAMPLES)[0] for path in artefact.tiles())
    yield "prompts", PROMPTS, [_prompts_of(root, artefact)]


def _rewards(root: Path, artefact: Artefact) -> Iterator[Table]:
    yield "rewards", REWARDS, (read_tile(path, REWARDS)[0] for path in artefact.tiles())
    yield "prompts", PROMPTS, [_prompts_of(root, artefact)]


def _prompts_of(root: Path, artefact: Artefact) -> pa.Table:
    """The prompts that the artefact's rows belong to.

    Raises:
        ValueError: when the store lacks one of them.
    """
    wanted: set[str] = set()
    for path in artefact.tiles():
        wanted |= set(pq.read_table(path, columns=["prompt_id"])["prompt_id"].unique().to_pylist())
    found: dict[str, dict[str, Any]] = {}
    own = artefact.folder / IMPORTED_PROMPTS
    pool = root / "samples" / str(artefact.meta.get("samples")) / IMPORTED_PROMPTS
    for path in [*(path for path in (own, pool) if path.exists()), *sorted((root / "prompts").glob("[!.]*.parquet"))]:
        if len(found) < len(wanted):
            found |= {
                row["prompt_id"]: row for row in read_tile(path, PROMPTS)[0].to_pylist() if row["prompt_id"] in wanted
            }
    if lacking := wanted - found.keys():
        raise ValueError(f"export: {root} lacks the messages of {len(lacking)} prompts, {min(lacking)} among them")
    return pa.Table.from_pylist([found[name] for name in sorted(found)], schema=PROMPTS)


def _write_parquet(path: Path, schema: pa.Schema, parts: Iterable[pa.Table]) -> int:
    rows = 0
    with pq.ParquetWriter(path.with_suffix(".parquet"), schema, compression="zstd") as file:
        for part in parts:
            file.write_table(part)
            rows += part.num_rows
    return rows


def _write_jsonl(path: Path, schema: pa.Schema, parts: Iterable[pa.Table]) -> int:  # noqa: ARG001 - as _write_parquet
    rows = 0
    with path.with_suffix(".jsonl").open("w", encoding="utf-8") as file:
        for part in parts:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in part.to_pylist())
            rows += part.num_rows
    return rows


def push(out: Path, repository: str) -> str:
    """Upload an exported folder to a private data set of the hub; returns its address. Not run by our tests."""
    from huggingface_hub import HfApi

    hub = HfApi()
    address = hub.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
    hub.upload_folder(repo_id=repository, repo_type="dataset", folder_path=str(out))
    return str(address)
