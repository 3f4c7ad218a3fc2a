"""What lies in a store, told from meta.json and Parquet footers: no row is read."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweetspot.data import IMPORTED_PROMPTS

KINDS = ("samples", "rewards", "pairs", "logprobs", "policies", "scores", "models", "prompts")
Row = dict[str, Any]


@dataclass(frozen=True)
class Artefact:
    """A folder of the store. meta: what it recorded of itself; {} where it has no meta.json that can be read."""

    kind: str
    folder: Path
    meta: dict[str, Any]

    @property
    def key(self) -> str:
        """Its name in the store."""
        return self.folder.name

    def tiles(self) -> list[Path]:
        """Its Parquet files, in order; scratch files, leases and the prompts of an imported pool are none."""
        return sorted(
            path
            for path in self.folder.glob("*.parquet")
            if not path.name.startswith(".") and path.name != IMPORTED_PROMPTS
        )


def artefacts(root: Path) -> Iterator[Artefact]:
    """The artefacts of a store by kind and key; scratch folders are none, and `prompts` is one for all its files."""
    for kind in KINDS:
        if kind == "prompts" and (root / kind).is_dir():
            yield Artefact(kind, root / kind, {})
        elif (root / kind).is_dir():
            folders = sorted(path for path in (root / kind).iterdir() if path.is_dir() and path.name[0] != ".")
            yield from (Artefact(kind, folder, _meta(folder)) for folder in folders)


def artefact_at(root: Path, kind: str, key: str) -> Artefact:
    """The artefact of that kind and key.

    Raises:
        ValueError: when the store has none; it lists those that there are.
    """
    folder = root / kind / key
    if not key or not folder.is_dir():
        known = [artefact.key for artefact in artefacts(root) if artefact.kind == kind]
        raise ValueError(f"KEY must be the key of {kind} in {root} ({', '.join(known) or 'there are none'}), got {key}")
    return Artefact(kind, folder, _meta(folder))


def _meta(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "meta.json").read_text())
    except (OSError, ValueError):  # check names such a folder
        return {}
    return found if isinstance(found, dict) else {}


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder, hidden ones included."""
    files = (Path(base) / name for base, _, names in os.walk(folder) for name in names)
    return sum(path.lstat().st_size for path in files)


def listing(root: Path) -> dict[str, list[Row]]:
    """The rows of `ls` by kind: samples, rewards, pairs and policies."""
    tell: dict[str, Callable[[Artefact], Row]] = {
        "samples": _pool,
        "rewards": _rewards,
        "pairs": _pairs,
        "policies": _policy,
    }
    found: dict[str, list[Row]] = {kind: [] for kind in tell}
    for artefact in artefacts(root):
        if artefact.kind in tell:
            end = {"bytes": size_of(artefact.folder), "made": artefact.meta.get("made")}
            found[artefact.kind].append({"key": artefact.key, **tell[artefact.kind](artefact), **end})
    return found


def sizes(root: Path) -> list[Row]:
    """The rows of `du`: kind, key and bytes of every artefact, scratch folders too, the largest of a kind first."""
    rows: list[Row] = []
    for kind in sorted(path for path in root.iterdir() if path.is_dir()):
        if kind.name == "prompts":
            rows.append({"kind": kind.name, "key": "", "bytes": size_of(kind)})
            continue
        folders = [path for path in kind.iterdir() if path.is_dir()]
        of_kind = [{"kind": kind.name, "key": folder.name, "bytes": size_of(folder)} for folder in folders]
        rows += sorted(of_kind, key=lambda row: (-int(row["bytes"]), row["key"]))
    return rows


def _pool(artefact: Artefact) -> Row:
    """A pool of samples: whose, how, and how many.

    An imported pool counts itself. Elsewhere prompts are counted in the tiles that hold sample 0, so that a prompt
    counts once for each prompt set that begins otherwise.
    """
    meta = artefact.meta
    about = {"model": _named(meta, "model"), "sampler": _sampler(meta)}
    if "import" in meta:
        facts = meta["import"]
        return {**about, "prompts": facts["prompts"], "n": facts["most"], "tokens": facts["tokens"]}
    prompts = n = tokens = 0
    for footer in _footers(artefact):
        first, last = _range(footer, "sample_index")
        prompts += -(-footer.num_rows // (last - first + 1)) if first == 0 else 0
        n = max(n, last + 1)
        tokens += _values(footer, "token_ids")
    return {**about, "prompts": prompts, "n": n, "tokens": tokens}


def _rewards(artefact: Artefact) -> Row:
    meta = artefact.meta
    model = meta.get("reward_model", {})
    kind = str(model.get("_target_", "")).rpartition(".")[2]
    name = " ".join(str(part) for part in (kind, model.get("head"), model.get("path")) if part)
    rows = sum(footer.num_rows for footer in _footers(artefact))
    return {"reward_model": name, "samples": meta.get("samples"), "rewards": rows}


def _pairs(artefact: Artefact) -> Row:
    meta = artefact.meta
    rows = sum(footer.num_rows for footer in _footers(artefact))
    return {
        "strategy": strategy_name(meta.get("strategy", {})),
        "n": meta.get("n_samples"),
        "rewards": meta.get("rewards"),
        "pairs": rows,
    }


def _policy(artefact: Artefact) -> Row:
    return {"start": _named(artefact.meta, "start"), "pairs": artefact.meta.get("pairs")}


def strategy_name(config: dict[str, Any]) -> str:
    """A strategy as the paper writes it, or the name of its class."""
    if "chosen" in config and "rejected" in config:
        ddof = config.get("ddof", 1)
        return f"({config['chosen']}, {config['rejected']}{'' if ddof == 1 else f'; ddof={ddof}'})"
    return str(config.get("_target_", "")).rpartition(".")[2]


def _named(meta: dict[str, Any], part: str) -> str:
    return str(meta.get(part, {}).get("name", ""))


def _sampler(meta: dict[str, Any]) -> str:
    """How a pool was drawn: class, temperature, limit and seed; or the files that it was imported from."""
    if "import" in meta:
        return "imported " + ", ".join(source["name"] for source in meta["import"]["sources"])
    config = meta.get("sampler", {})
    name = str(config.get("_target_", "")).rpartition(".")[2].removesuffix("Sampler").lower()
    parts = {"T": "temperature", "top_p": "top_p", "max": "max_tokens", "seed": "seed"}
    return " ".join([name, *(f"{short}={config[field]}" for short, field in parts.items() if field in config)])


def _footers(artefact: Artefact) -> Iterator[pq.FileMetaData]:
    """The footers of the tiles that have one; `verify` names the others."""
    for path in artefact.tiles():
        try:
            footer = pq.read_metadata(path)
        except (OSError, pa.ArrowException):
            continue
        if footer.num_rows:
            yield footer


def _range(footer: pq.FileMetaData, column: str) -> tuple[int, int]:
    """Least and greatest value of a column, from the statistics of the row groups."""
    chunks = [chunk.statistics for chunk in _chunks(footer, column)]
    return min(int(chunk.min) for chunk in chunks), max(int(chunk.max) for chunk in chunks)


def _values(footer: pq.FileMetaData, column: str) -> int:
    """Values in a column, those of its lists counted one by one."""
    return sum(chunk.num_values for chunk in _chunks(footer, column))


def _chunks(footer: pq.FileMetaData, column: str) -> Iterator[Any]:
    for group in range(footer.num_row_groups):
        row_group = footer.row_group(group)
        chunks = (row_group.column(number) for number in range(row_group.num_columns))
        yield from (chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)


def age_of(made: str | None, now: datetime) -> float | None:
    """Seconds since a time in ISO format; None where there is none."""
    return None if made is None else (now - datetime.fromisoformat(made)).total_seconds()
