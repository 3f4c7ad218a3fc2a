"""Training: reference log-probabilities as rows of the store, then DPO in a worker."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from sweetspot.component import key, to_config
from sweetspot.dpo import DPO, DeepSpeed
from sweetspot.model import Model
from sweetspot.schema import LOGPROBS
from sweetspot.stages.pairs import Pairs
from sweetspot.stages.pool import Samples, rows_at
from sweetspot.stages.run import Run
from sweetspot.store import read_tile, write_tile


@dataclasses.dataclass(frozen=True)
class Policy:
    """A trained policy: a model, and how its training went."""

    key: str
    folder: Path
    model: Model
    history: list[dict[str, Any]]  # one row a step
    counts: dict[str, int]  # of pairs: trained on, dropped as too long, held out


def log_probabilities(
    samples: Samples, wanted: set[tuple[str, int]], model: Model, dpo: DPO, run: Run, title: str
) -> dict[tuple[str, int], float]:
    """The log-probability under `model` of the responses at (prompt_id, sample_index), computed once and kept as rows.

    The rows are shared by every strategy, n and beta: their key is the model's content, the numerics, the truncation
    and the pool. Parts are appended; a row that stands in two parts is harmless.
    """
    started = time.monotonic()
    name = logprob_key(model, dpo, samples.key)
    provenance = {"model": to_config(model), "dpo": to_config(dpo), "samples": samples.key}
    folder = run.store.artefact("logprobs", name, provenance)
    run.missing(folder.glob("*.parquet"), LOGPROBS)
    known, too_long = _read_logprobs(folder)
    todo = sorted(wanted - known.keys() - too_long)
    if todo:
        messages = dict(zip(samples.prompt_ids, samples.prompts["messages"].to_pylist(), strict=True))
        rows = rows_at(samples, set(todo), ["token_ids"])
        table = pa.Table.from_pylist([{**rows[place], "messages": messages[place[0]]} for place in todo])
        path = run.folder / "jobs" / f"{title.replace(' ', '-')}-rows.parquet"
        write_tile(path, table, {})
        job = {
            "model": to_config(model),
            "dpo": to_config(dpo),
            "probe": samples.probe,
            "rows": str(path),
            "parts": str(folder),
        }
        run.work(title, "sweetspot.logprob", job, dpo.environment())
        known, too_long = _read_logprobs(folder)
    run.did(title, "rows", len(todo), len(wanted) - len(todo), started)
    return {place: known[place] for place in wanted if place in known}


def logprob_key(model: Model, dpo: DPO, samples_key: str) -> str:
    """The key of log-probabilities: content and template of the model, numerics, truncation, and the pool.

    Strategy, n, beta and everything else of training leave it alone.
    """
    numerics = {name: getattr(dpo, name) for name in ("dtype", "autocast", "max_tokens", "max_prompt_tokens")}
    return key(model, numerics, samples_key)


def _read_logprobs(folder: Path) -> tuple[dict[tuple[str, int], float], set[tuple[str, int]]]:
    """The rows of all parts by (prompt_id, sample_index), and the places of responses that are too long to have one."""
    known: dict[tuple[str, int], float] = {}
    too_long: set[tuple[str, int]] = set()
    for path in sorted(folder.glob("*.parquet")):
        table, facts = read_tile(path, LOGPROBS)
        columns = table.select(["prompt_id", "sample_index", "logprob"]).to_pydict()
        places = zip(columns["prompt_id"], columns["sample_index"], strict=True)
        known |= dict(zip(places, columns["logprob"], strict=True))
        too_long |= {(prompt, index) for prompt, index in facts["too_long"]}
    return known, too_long


def train(
    pairs: Pairs, start: Model, reference: Model, dpo: DPO, deepspeed: DeepSpeed, card: Mapping[str, Any], run: Run
) -> Policy:
    """The policy that DPO makes of `start` on the pairs, against the log-probabilities of `reference`.

    A reference-free loss has none: no log-probability is computed, and the reference is no part of the policy's key.

    Raises:
        ValueError: when there is no pair to train on.
    """
    if pairs.table.num_rows == 0:
        counts = ", ".join(f"{why} {len(names)}" for why, names in pairs.dropped.items())
        aside = len(pairs.samples.set_aside())
        raise ValueError(
            f"select: no pair is left of {pairs.samples.prompts.num_rows} prompts ({counts}); {aside} of them were set "
            "aside as longer than sampler.max_prompt_tokens"
        )
    ends = pairs.table.select(["prompt_id", "chosen_index", "rejected_index"]).to_pylist()
    wanted = {(row["prompt_id"], row[side]) for row in ends for side in ("chosen_index", "rejected_index")}
    logprobs = {} if dpo.reference_free else log_probabilities(pairs.samples, wanted, reference, dpo, run, "reference")
    started = time.monotonic()
    name = key(dpo, deepspeed, start, None if dpo.reference_free else reference, pairs.key)
    folder = run.store.folder("policies", name)
    made = not folder.exists()
    if made:
        provenance = {"start": to_config(start), "dpo": to_config(dpo), "pairs": pairs.key}
        rows = run.folder / "jobs" / "pairs-with-ids.parquet"
        write_tile(rows, _training_rows(pairs, wanted, logprobs), {})
        with run.store.building(folder, provenance) as scratch:
            job = {
                "model": to_config(start),
                "dpo": to_config(dpo),
                "deepspeed": to_config(deepspeed),
                "probe": pairs.samples.probe,
                "pairs": str(rows),
                "output": str(scratch),
                "card": dict(card),
            }
            run.work("train", "sweetspot.trainer", job, dpo.environment())
    run.did("train", "policies", int(made), int(not made), started)
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    counts = json.loads((folder / "pairs.json").read_text())
    return Policy(name, folder, start.at(folder, f"{start.name}-dpo"), history, counts)


def _training_rows(pairs: Pairs, wanted: set[tuple[str, int]], logprobs: Mapping[tuple[str, int], float]) -> pa.Table:
    """The pairs with their sampled token ids and reference log-probabilities, ready for the training worker."""
    ids = rows_at(pairs.samples, wanted, ["token_ids"])
    nan = float("nan")  # of a loss without reference, or of a pair that does not fit: the trainer drops and counts it

    def pick(row: Mapping[str, Any], side: str) -> tuple[str, int]:
        return row["prompt_id"], row[f"{side}_index"]

    rows = [
        {
            "prompt_id": row["prompt_id"],
            "pair_index": row["pair_index"],
            "messages": row["messages"],
            **{f"{side}_ids": ids[pick(row, side)]["token_ids"] for side in ("chosen", "rejected")},
            **{f"reference_{side}": logprobs.get(pick(row, side), nan) for side in ("chosen", "rejected")},
        }
        for row in pairs.table.to_pylist()
    ]
    return pa.Table.from_pylist(rows)
