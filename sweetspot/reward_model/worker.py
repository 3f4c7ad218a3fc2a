"""The scoring worker: scores the tiles of samples that have no tile of rewards yet."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sweetspot.component import build, canonical_json
from sweetspot.launch import Emit
from sweetspot.model import Model, Probe, compare_probes, conversation, load_tokenizer
from sweetspot.reward_model import Conversation, RewardModel, Scores
from sweetspot.schema import PROMPTS, REWARDS, SAMPLES
from sweetspot.store import read_tile, write_tile

PROGRESS_SECONDS = 1.0  # between two events


def main(job: Mapping[str, Any], emit: Emit) -> None:
    """Make the missing tiles of a job; nothing is loaded when none is missing.

    Args:
        job: {"reward_model": config, "model": the policy's config or None (an imported pool), "probe": the sampler's or
            None, "prompts": a PROMPTS file, "tiles": [{"samples": path, "rewards": path}]}.
        emit: takes progress.
    """
    missing = [tile for tile in job["tiles"] if not Path(tile["rewards"]).exists()]
    if not missing:
        return
    reward_model: RewardModel = build(job["reward_model"])
    policy: Model | None = build(job["model"]) if job["model"] else None
    scorer = reward_model.scorer()
    reads = scorer.tokenizer is not None
    shared = reads and policy is not None and shares_tokens(policy, job["probe"], scorer.tokenizer)
    prompts = {row["prompt_id"]: row["messages"] for row in pq.read_table(job["prompts"], schema=PROMPTS).to_pylist()}
    told = reporter(emit, sum(pq.read_metadata(tile["samples"]).num_rows for tile in missing))
    for tile in missing:
        samples, _ = read_tile(Path(tile["samples"]), SAMPLES)
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
        scores = scorer(answered, told)
        facts = {"truncated": scores.truncated}  # nothing of the clock: a tile made again has the same bytes
        write_tile(Path(tile["rewards"]), rewards_table(rows, scores), facts)


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


def reporter(emit: Emit, total: int) -> Callable[[int], None]:
    """A function that is told how many responses were scored and passes the sum on, at most once a second."""
    started = last = time.monotonic()
    done = 0

    def told(scored: int) -> None:
        nonlocal done, last
        done += scored
        now = time.monotonic()
        if done == total or now - last > PROGRESS_SECONDS:
            last = now
            note = f"{done / (now - started):.1f} responses/s"
            emit({"progress": {"done": done, "total": total, "unit": "responses", "note": note}})

    return told
