"""The scoring worker: scores the tiles of samples that have no tile of rewards yet."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sweetspot.component import build, canonical_json
from sweetspot.fill import Todo, Told, absent, fill
from sweetspot.launch import Emit
from sweetspot.model import Model, Probe, compare_probes, conversation, load_tokenizer
from sweetspot.reward_model import Conversation, Scorer, Scores
from sweetspot.schema import PROMPTS, REWARDS, SAMPLES
from sweetspot.store import read_labels, read_tile, write_tile


def main(job: Mapping[str, Any], emit: Emit) -> None:
    """Make the missing tiles of a job; nothing is loaded when none is missing.

    Args:
        job: {"reward_model": config, "model": the policy's config or None (an imported pool), "probe": the sampler's or
            None, "prompts": a PROMPTS file, "tiles": [{"samples": path, "rewards": path, "prompt_ids": those of them to
            score, None = all}], "lease_seconds": term of a lease}.
        emit: takes progress.
    """
    todos = [
        Todo(Path(tile["rewards"]), pq.read_metadata(tile["samples"]).num_rows, tile)
        for tile in job["tiles"]
        if not Path(tile["rewards"]).exists()
    ]
    policy: Model | None = build(job["model"]) if job["model"] else None

    def load() -> tuple[Scorer, bool, dict[str, Any]]:
        scorer = build(job["reward_model"]).scorer()
        reads = scorer.tokenizer is not None
        shared = reads and policy is not None and shares_tokens(policy, job["probe"], scorer.tokenizer)
        prompts = pq.read_table(job["prompts"], schema=PROMPTS).to_pylist()
        return scorer, shared, {row["prompt_id"]: row["messages"] for row in prompts}

    def make(loaded: tuple[Scorer, bool, dict[str, Any]], todo: Todo, told: Told) -> Callable[[], bool]:
        scorer, shared, prompts = loaded
        samples, ids = read_part(Path(todo.what["samples"]), todo.what["prompt_ids"])
        rows = samples.to_pylist()
        answered = [
            Conversation(
                conversation(policy, prompts[row["prompt_id"]]) if policy else prompts[row["prompt_id"]],
                row["response"],
                row["token_ids"] if shared else None,
                row["n_tokens"],
            )
            for row in rows
        ]
        scores = scorer(answered, lambda count: told.add(count, count))
        facts = {"truncated": scores.truncated}  # nothing of the clock: a tile made again has the same bytes
        table = rewards_table(rows, scores)
        return lambda: write_tile(todo.path, table, facts, ids)

    fill(lambda: absent(todos), load, make, emit, job["lease_seconds"], "responses/s")


def read_part(path: Path, prompt_ids: list[str] | None) -> tuple[pa.Table, list[str] | None]:
    """The samples of a tile's named prompts (all of them for None), and the prompt ids of the tile of their rewards."""
    samples, _ = read_tile(path, SAMPLES)
    if prompt_ids is None:
        return samples, read_labels(path)[0]
    return samples.filter(pc.field("prompt_id").isin(prompt_ids)), prompt_ids


def shares_tokens(policy: Model, probe: Mapping[str, Any] | None, tokenizer: Any) -> bool:
    """Whether sampled token ids mean the same to the reward model: its tokenizer and template are the policy's.

    Raises:
        TemplateError: when they are and the template doctor's conversation is still rendered otherwise than sampled.
    """
    own = load_tokenizer(policy)
    if tokenizer_digest(own) != tokenizer_digest(tokenizer):
        return False
    if probe is not None:
        compare_probes(Probe.read(probe), Probe.of(policy, tokenizer), "scoring")
    return True


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of what decides token ids: the tokenizer's vocabulary, rules and chat template.

    How the tokenizer was last asked to pad or truncate is stored beside its rules and does not count.
    """
    fast = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(fast.to_str()) if fast is not None else tokenizer.get_vocab()
    kept = {name: value for name, value in rules.items() if name not in ("padding", "truncation")}
    return hashlib.sha256(canonical_json([kept, tokenizer.chat_template]).encode()).hexdigest()


def rewards_table(rows: list[dict[str, Any]], scores: Scores) -> pa.Table:
    """The rows' rewards in the order of the samples.

    Raises:
        ValueError: for a NaN or infinite reward, naming the sample.
    """
    values = scores.rewards[:, None] if scores.heads is None else np.column_stack([scores.rewards, scores.heads])
    for place in np.flatnonzero(~np.isfinite(values).all(axis=1))[:1]:
        row = rows[place]
        raise ValueError(
            f"reward_model: rewards must be finite, got {values[place].tolist()} for prompt_id {row['prompt_id']}, "
            f"sample_index {row['sample_index']}"
        )
    return pa.table(
        {
            "prompt_id": [row["prompt_id"] for row in rows],
            "sample_index": [row["sample_index"] for row in rows],
            "reward": scores.rewards,
            "heads": [None] * len(rows) if scores.heads is None else scores.heads.tolist(),
        },
        schema=REWARDS,
    )
