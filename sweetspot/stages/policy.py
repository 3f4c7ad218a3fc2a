"""Training: from pairs with their reference log-probabilities to a policy, in a worker."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from sweetspot import ranks
from sweetspot.component import key, to_config
from sweetspot.dpo import DPO, DeepSpeed
from sweetspot.launch import Launch
from sweetspot.model import Model
from sweetspot.stages.pairs import Pairs
from sweetspot.stages.pool import rows_at
from sweetspot.stages.prepare import check_spread, make_once
from sweetspot.stages.reference import reference_logprobs
from sweetspot.stages.run import Run
from sweetspot.store import write_tile


@dataclasses.dataclass(frozen=True)
class Policy:
    """A trained policy: a model, and how its training went."""

    key: str
    folder: Path
    model: Model
    history: list[dict[str, Any]]  # one row a step
    counts: dict[str, int]  # of pairs: trained on, dropped as too long, held out
    reference_error: dict[str, float] | None  # of the sampler's log-probabilities as reference (`SamplerError`)


def check_training(dpo: DPO, deepspeed: DeepSpeed, launch: Launch) -> list[str]:
    """Refuse, before anything is made, what cannot be trained here.

    Returns:
        What should be known of it, a line each.

    Raises:
        ValueError: in one line.
    """
    dpo.check_libraries()
    check_spread("dpo", dpo, dpo.adapter, deepspeed, launch)
    used, there = ranks.of_node(ranks.fitted(launch, dpo.batch_size)), ranks.of_node(launch)
    return [f"train: dpo.batch_size={dpo.batch_size} is shared by {used} of {there} GPUs"] if used < there else []


def train(
    pairs: Pairs, start: Model, reference: Model, dpo: DPO, deepspeed: DeepSpeed, card: Mapping[str, Any], run: Run
) -> Policy:
    """The policy that DPO makes of `start` on the pairs, against the log-probabilities of `reference`.

    Its training curve is in the run's logs, also where the policy was there already.

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
    name = key(dpo, deepspeed, start, None if dpo.reference_free else reference, pairs.key)
    folder = run.store.folder("policies", name)
    if ranks.node(run.launch):
        run.lend("train", "sweetspot.trainer", folder, deepspeed, dpo)
        return _read(name, folder, start, None)
    logprobs, error = reference_logprobs(pairs.samples, wanted, reference, dpo, run)
    started = time.monotonic()
    made = make_once(folder, lambda: _make(folder, pairs, wanted, logprobs, start, dpo, deepspeed, card, run), run)
    policy = _read(name, folder, start, error)
    for row in policy.history:  # of a policy that another run has trained, or begun
        run.log.curve(name, row)
    run.did("train", "policies", int(made), int(not made), started)
    return policy


def _read(name: str, folder: Path, start: Model, error: dict[str, float] | None) -> Policy:
    """A policy of the store."""
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    counts = json.loads((folder / "pairs.json").read_text())
    return Policy(name, folder, start.at(folder, f"{start.name}-dpo"), history, counts, error)


def _make(
    folder: Path,
    pairs: Pairs,
    wanted: set[tuple[str, int]],
    logprobs: Mapping[tuple[str, int], float],
    start: Model,
    dpo: DPO,
    deepspeed: DeepSpeed,
    card: Mapping[str, Any],
    run: Run,
) -> None:
    """Have the worker train the policy into its folder."""
    provenance = {"start": to_config(start), "dpo": to_config(dpo), "pairs": pairs.key}
    with run.store.building(folder, provenance) as scratch:
        rows = scratch / "pairs-with-ids.parquet"  # in the store, where the ranks of other nodes find it
        rows.unlink(missing_ok=True)
        write_tile(rows, _training_rows(pairs, wanted, logprobs), {})
        job = {
            "model": to_config(start),
            "dpo": to_config(dpo),
            "deepspeed": to_config(deepspeed),
            "probe": pairs.samples.probe,
            "pairs": str(rows.absolute()),
            "output": str(scratch.absolute()),
            "card": dict(card),
        }
        run.train("train", "sweetspot.trainer", job, deepspeed, dpo, folder.name)
        rows.unlink()


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
