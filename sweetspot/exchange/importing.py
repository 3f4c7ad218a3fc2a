"""Importing: a pool of responses that were made elsewhere, whole or not at all."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sweetspot.component import identity, key, to_config
from sweetspot.data import IMPORTED_BLOCK, IMPORTED_PROMPTS
from sweetspot.exchange.rows import BadRow, Fields, Row, fields_of, rows_of
from sweetspot.exchange.tokens import Tokens, load
from sweetspot.model import Model
from sweetspot.reward_model import ImportedReward
from sweetspot.schema import PROMPTS, REWARDS, SAMPLES
from sweetspot.store import Store, tile_name, write_text, write_tile

VERSION = 1  # raised when the same files and settings give another pool
TILE_PROMPTS = 256  # prompts in memory at once
SHOWN = 20  # bad rows that are named one by one


@dataclass(frozen=True)
class Request:
    """What is to be imported, and how.

    Attributes:
        files: read one behind the other.
        fields: "prompt", "responses" and "rewards", each a column or None to find it.
        model: whose tokenizer makes the token ids.
        seed: of the permutation of each prompt's responses.
        rendered: the prompts' text is rendered by the model's chat template.
        skip_bad_rows: leave bad rows out and count them, instead of importing nothing.
    """

    files: list[Path]
    fields: dict[str, str | None]
    model: Model
    seed: int
    rendered: bool
    skip_bad_rows: bool


class RefusedRowsError(ValueError):
    """Rows that cannot be imported; nothing was written."""

    def __init__(self, lines: Sequence[str], rows: int) -> None:
        more = len(lines) - SHOWN
        self.lines = [*lines[:SHOWN], *([f"... and {more} more"] if more > 0 else [])]
        super().__init__(
            f"import: {len(lines)} of {rows} rows cannot be imported, and nothing was written; mend them, or leave "
            "them out with --skip-bad-rows"
        )


def import_pool(store: Store, request: Request) -> tuple[str, dict[str, Any]]:
    """Make a pool of the files: its key and facts.

    Every row is looked at before anything is written; then the pool is built in a scratch folder and renamed. The same
    files and settings give the same key, and then there is nothing to do.

    Raises:
        RefusedRowsError: when rows are bad and are not to be skipped.
        ValueError: when the files cannot be read, or hold no row that can be imported.
    """
    fields = fields_of(request.files, request.fields)
    sources = [{"name": file.name, "sha256": _digest(file)} for file in request.files]
    made_of = [[source["sha256"] for source in sources], asdict(fields), request.seed, request.rendered]
    pool = key("import", VERSION, *made_of, request.skip_bad_rows, identity(request.model))
    folder = store.folder("samples", pool)
    if not folder.exists():
        tokens = load(request.model)
        bad = _bad_rows(request, fields, tokens)
        facts: dict[str, Any] = {
            "sources": sources,
            "fields": asdict(fields),
            "seed": request.seed,
            "rendered": request.rendered,
            "left_out": len(bad),
            "left_out_rows": bad[:SHOWN],
            "model": identity(request.model),
            "model_name": request.model.path,
            "rewards": None if fields.rewards is None else key(ImportedReward(), pool),
        }
        _build(store, pool, _good_rows(request, fields, tokens), request, tokens, facts)
    return pool, json.loads((folder / "meta.json").read_text())["import"]


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _bad_rows(request: Request, fields: Fields, tokens: Tokens) -> list[str]:
    """The lines of the rows that cannot be imported.

    Raises:
        RefusedRowsError: when they may not be left out.
        ValueError: when nothing would be left.
    """
    bad: list[str] = []
    rows = 0
    for row in _examined(request, fields, tokens):
        rows += 1
        bad += [row.line] if isinstance(row, BadRow) else []
    if bad and not request.skip_bad_rows:
        raise RefusedRowsError(bad, rows)
    if len(bad) == rows:
        raise ValueError(f"import: none of the {rows} rows can be imported; the first: {bad[0]}")
    return bad


def _good_rows(request: Request, fields: Fields, tokens: Tokens) -> Iterator[Row]:
    return (row for row in _examined(request, fields, tokens) if isinstance(row, Row))


def _examined(request: Request, fields: Fields, tokens: Tokens) -> Iterator[Row | BadRow]:
    """The rows of the files, those with a response that is no plain text among the bad ones."""
    read_prompt = tokens.rendered_prompt if request.rendered else tokens.plain_prompt
    for row in rows_of(request.files, fields, read_prompt):
        fault = tokens.fault(row.responses) if isinstance(row, Row) else None
        yield BadRow(f"{row.source}: {fault}") if isinstance(row, Row) and fault else row


def _build(
    store: Store, pool: str, rows: Iterator[Row], request: Request, tokens: Tokens, facts: dict[str, Any]
) -> None:
    """Write the pool and its rewards, and add its counts to the facts; the pool's folder is renamed last."""
    with contextlib.ExitStack() as stack:
        made = {"model": to_config(request.model), "import": facts}
        samples = stack.enter_context(store.building(store.folder("samples", pool), made))
        rewards = None
        if facts["rewards"] is not None:
            about = {"reward_model": to_config(ImportedReward()), "samples": pool}
            rewards = stack.enter_context(store.building(store.folder("rewards", facts["rewards"]), about))
        write_text(samples / "probe.json", json.dumps(tokens.probe) + "\n")
        prompts: list[dict[str, Any]] = []
        counts, total, changed = [], 0, 0
        while group := [_shuffled(row, request.seed) for row in itertools.islice(rows, TILE_PROMPTS)]:
            for first in range(0, max(len(row.responses) for row in group), IMPORTED_BLOCK):
                total += _write_tile(group, first, tokens, samples, rewards)
            prompts += [{"prompt_id": row.prompt_id, "messages": row.messages, "source": row.source} for row in group]
            counts += [len(row.responses) for row in group]
            changed += sum(row.halves for row in group)
        write_tile(samples / IMPORTED_PROMPTS, pa.Table.from_pylist(prompts, schema=PROMPTS), {})
        facts |= {"prompts": len(prompts), "responses": sum(counts), "least": min(counts), "most": max(counts)}
        facts |= {"tokens": total, "halves": changed}


def _shuffled(row: Row, seed: int) -> Row:
    """The row with its responses, and their rewards with them, in the order that seed and prompt decide.

    Files are often sorted by reward, and strategies take the first samples of a pool for random draws.
    """
    order = np.random.default_rng([seed, int(row.prompt_id, 16)]).permutation(len(row.responses)).tolist()
    rewards = None if row.rewards is None else [row.rewards[place] for place in order]
    return replace(row, responses=[row.responses[place] for place in order], rewards=rewards)


def _write_tile(group: Sequence[Row], first: int, tokens: Tokens, samples: Path, rewards: Path | None) -> int:
    """Write the block from `first` on as a tile of samples and one of rewards; returns the number of tokens."""
    stop = first + IMPORTED_BLOCK
    places = [(row, index) for row in group for index in range(first, min(stop, len(row.responses)))]
    ids = tokens.ids([row.responses[index] for row, index in places])
    keys = [{"prompt_id": row.prompt_id, "sample_index": index} for row, index in places]
    drawn = [
        {**place, "response": row.responses[index], "token_ids": own, "n_tokens": len(own), "finish_reason": "stop"}
        for place, (row, index), own in zip(keys, places, ids, strict=True)
    ]
    prompt_ids = [row.prompt_id for row in group]
    name = f"{tile_name(prompt_ids, first)}.parquet"
    write_tile(samples / name, pa.Table.from_pylist(drawn, schema=SAMPLES), {"set_aside": {}}, prompt_ids)
    if rewards is not None:
        worth = [
            {**place, "reward": row.rewards[index]}
            for place, (row, index) in zip(keys, places, strict=True)
            if row.rewards is not None
        ]
        write_tile(rewards / name, pa.Table.from_pylist(worth, schema=REWARDS), {"truncated": 0}, prompt_ids)
    return sum(map(len, ids))
