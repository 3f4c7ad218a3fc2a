"""Evaluating: the policy samples the held-out prompts again, and judges compare it with the start."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from sweetspot.component import key, to_config
from sweetspot.distribution import moments
from sweetspot.dpo import DPO
from sweetspot.eval import HeldOut, Interval, bootstrap_mean, distinct, preferences
from sweetspot.model import Model
from sweetspot.reward_model import RewardModel
from sweetspot.sampler import Sampler
from sweetspot.schema import SCORES
from sweetspot.stages.policy import log_probabilities
from sweetspot.stages.pool import Samples, sample, score
from sweetspot.stages.run import Run
from sweetspot.store import read_tile, write_tile


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How the policy answers held-out prompts, beside the start."""

    key: str
    path: str  # of the SCORES rows, relative to the store
    metrics: dict[str, Any]


def evaluate(
    policy: Model,
    start: Model,
    held_out: pa.Table,
    sampler: Sampler,
    evaluation: HeldOut,
    selecting: tuple[str, RewardModel],
    dpo: DPO,
    run: Run,
) -> Evaluation:
    """The held-out comparison of policy and start.

    Args:
        held_out: PROMPTS that nothing was trained on.
        sampler: draws the fresh responses, `evaluation.n_samples` a prompt, with the same seeds for both models.
        selecting: name and reward model that built the pairs; reported beside the judge, so that over-optimisation
        shows. dpo: its numerics are those of the log-probabilities in the KL estimate.

    Raises:
        ValueError: when every held-out prompt was set aside as too long.
    """
    started = time.monotonic()
    fresh = dataclasses.replace(sampler, tile_prompts=evaluation.tile_prompts, tile_samples=evaluation.n_samples)
    ids = held_out["prompt_id"].to_pylist()
    name = key(evaluation, fresh, policy, start, selecting[1], ids)
    provenance = {"policy": to_config(policy), "start": to_config(start), "evaluation": to_config(evaluation)}
    path = run.store.artefact("scores", name, provenance) / "scores.parquet"
    made = bool(run.missing([path], SCORES))
    if made:
        pools = {
            side: sample(held_out, model, fresh, evaluation.n_samples, run, f"sample {side}")
            for side, model in (("start", start), ("policy", policy))
        }
        answered = len(ids) - len(pools["policy"].set_aside())
        if answered == 0:
            raise ValueError(
                f"data: a held-out prompt must fit sampler.max_prompt_tokens, got {len(ids)} that are all longer than "
                f"{sampler.max_prompt_tokens}"
            )
        judges = {"judge": (evaluation.judge_name, evaluation.judge), "selecting": selecting}
        rewards = {
            role: {side: score(pool, judge, run, f"score {side} {label}").matrix() for side, pool in pools.items()}
            for role, (label, judge) in judges.items()
        }
        metrics = {
            "n_prompts": answered,
            "n_samples": evaluation.n_samples,
            "judges": [
                {"name": judges[role][0], "role": role, **_compare(matrices, evaluation.resamples, fresh.seed)}
                for role, matrices in rewards.items()
            ],
            **_texts(pools),
            "kl": _kl(pools["policy"], policy, start, evaluation, dpo, fresh.seed, run),
        }
        write_tile(path, _score_rows(pools, rewards["judge"]), metrics)
    metrics = read_tile(path, SCORES)[1]
    run.did("evaluate", "evaluations", int(made), int(not made), started)
    return Evaluation(name, str(path.relative_to(run.store.root)), metrics)


def _compare(rewards: Mapping[str, np.ndarray], resamples: int, seed: int) -> dict[str, float]:
    """Difference of the mean rewards and win rate, each with its interval; matrices are [prompts, n]."""
    start, policy = rewards["start"].astype(np.float64), rewards["policy"].astype(np.float64)
    difference = bootstrap_mean(_row_means(policy - start), resamples, seed)
    wins = bootstrap_mean(_row_means(preferences(policy, start)), resamples, seed)
    sds = moments(start).sd
    spread = float(sds[np.isfinite(sds)].mean()) if np.isfinite(sds).any() else float("nan")
    return {
        "start_mean": float(np.nanmean(start)),
        "policy_mean": float(np.nanmean(policy)),
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "difference_sd": difference.mean / spread if spread > 0 else float("nan"),
        "win_rate": wins.mean,
        "win_rate_low": wins.low,
        "win_rate_high": wins.high,
    }


def _row_means(matrix: np.ndarray) -> np.ndarray:
    """Mean over a prompt's responses [prompts]; NaN for a prompt that was set aside."""
    counts = np.isfinite(matrix).sum(axis=1)
    return np.where(counts > 0, np.nansum(matrix, axis=1) / np.maximum(counts, 1), np.nan)


def _texts(pools: Mapping[str, Samples]) -> dict[str, dict[str, float]]:
    """Mean tokens, distinct-2 and the share of responses cut at the token limit, for each side."""
    tables = {side: pool.read() for side, pool in pools.items()}
    return {
        "tokens": {side: float(np.mean(table["n_tokens"].to_numpy())) for side, table in tables.items()},
        "distinct_2": {side: distinct(table["response"].to_pylist()) for side, table in tables.items()},
        "cut_share": {
            side: float(np.mean([reason == "length" for reason in table["finish_reason"].to_pylist()]))
            for side, table in tables.items()
        },
    }


def _kl(
    pool: Samples, policy: Model, start: Model, evaluation: HeldOut, dpo: DPO, seed: int, run: Run
) -> dict[str, float] | None:
    """KL(policy to start) in nats a response: the mean over the policy's own responses of log policy - log start.

    Both log-probabilities come from the training forward. The responses are drawn at the sampler's temperature, so at a
    temperature other than 1 this estimates E under the tempered policy, not the KL itself.
    """
    places = {(name, index) for name in pool.prompt_ids for index in range(evaluation.kl_samples)}
    places &= {(row["prompt_id"], row["sample_index"]) for row in pool.read().to_pylist()}
    if not places:
        return None
    of_policy = log_probabilities(pool, places, policy, dpo, run, "logprobs policy")
    of_start = log_probabilities(pool, places, start, dpo, run, "logprobs start")
    by_prompt: dict[str, list[float]] = {}
    for place in sorted(of_policy.keys() & of_start.keys()):
        by_prompt.setdefault(place[0], []).append(of_policy[place] - of_start[place])
    means = np.array([np.mean(values) for values in by_prompt.values()])
    interval: Interval = bootstrap_mean(means, evaluation.resamples, seed)
    return dataclasses.asdict(interval)


def _score_rows(pools: Mapping[str, Samples], rewards: Mapping[str, np.ndarray]) -> pa.Table:
    """The SCORES rows: one a held-out prompt and sample, with the judge's preference."""
    ids = pools["policy"].prompt_ids
    texts = {
        side: {(row["prompt_id"], row["sample_index"]): row["response"] for row in pool.read().to_pylist()}
        for side, pool in pools.items()
    }
    matrix = preferences(rewards["policy"], rewards["start"])
    rows = [
        {
            "prompt_id": ids[row],
            "sample_index": index,
            "response": texts["policy"][ids[row], index],
            "baseline": texts["start"][ids[row], index],
            "preference": float(matrix[row, index]),
        }
        for row, index in zip(*np.nonzero(np.isfinite(matrix)), strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SCORES)
