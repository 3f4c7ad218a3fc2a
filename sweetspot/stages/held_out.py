"""Held out: policy and start sample the same prompts again, and reward models compare them."""

import dataclasses
import time
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from sweetspot.component import key, to_config
from sweetspot.distribution import moments
from sweetspot.dpo import DPO
from sweetspot.eval import HeldOut, distinct, preferences
from sweetspot.model import Model
from sweetspot.schema import SCORES
from sweetspot.stages.pool import Samples, sample, score
from sweetspot.stages.reference import log_probabilities
from sweetspot.stages.run import Run
from sweetspot.stages.subject import Evaluation, Subject
from sweetspot.statistics import PERMUTATIONS, Interval, bootstrap_mean, sign_flip_p
from sweetspot.store import read_tile, write_tile


def held_out(name: str, evaluation: HeldOut, subject: Subject, run: Run) -> Evaluation:
    """The comparison of policy and start on the held-out prompts, `evaluation.n_samples` fresh responses a prompt with
    the same seeds for both; the selecting reward model is reported beside the judge, so that over-optimisation shows.

    Raises:
        ValueError: when every held-out prompt was set aside as too long.
    """
    policy, start, prompts, selecting = subject.policy, subject.start, subject.held_out, subject.selecting
    started = time.monotonic()
    cut = {"tile_prompts": evaluation.tile_prompts, "tile_samples": evaluation.n_samples}
    fresh = dataclasses.replace(subject.sampler, **cut)
    ids = prompts["prompt_id"].to_pylist()
    made_key = key(evaluation, fresh, policy, start, selecting and selecting[1], ids)
    provenance = {"policy": to_config(policy), "start": to_config(start), "evaluation": to_config(evaluation)}
    path = run.store.artefact("scores", made_key, provenance) / "scores.parquet"
    made = bool(run.missing([path], SCORES))
    if made:
        pools = {
            side: sample(prompts, model, fresh, evaluation.n_samples, run, f"sample {side}")
            for side, model in (("start", start), ("policy", policy))
        }
        answered = len(ids) - len(pools["policy"].set_aside())
        if answered == 0:
            raise ValueError(
                f"data: a held-out prompt must fit sampler.max_prompt_tokens, got {len(ids)} that are all longer than "
                f"{fresh.max_prompt_tokens}"
            )
        judges = {"judge": (evaluation.judge_name, evaluation.judge)} | ({"selecting": selecting} if selecting else {})
        rewards = {
            role: {side: score(pool, judge, run, f"score {side} {label}").matrix() for side, pool in pools.items()}
            for role, (label, judge) in judges.items()
        }
        metrics = {
            "judge_key": key(evaluation.judge),
            "n_prompts": answered,
            "n_samples": evaluation.n_samples,
            "judges": [
                {"name": judges[role][0], "role": role, **_compare(matrices, evaluation.resamples, fresh.seed)}
                for role, matrices in rewards.items()
            ],
            **_texts(pools),
            "kl": _kl(pools["policy"], policy, start, evaluation, subject.dpo, fresh.seed, run),
        }
        write_tile(path, _score_rows(pools, rewards["judge"]), metrics)
    table, metrics = read_tile(path, SCORES)
    p = signs_p(table, fresh.seed)
    judged = [{**one, "p": p} if one["role"] == "judge" else one for one in metrics["judges"]]
    run.did("evaluate", "evaluations", int(made), int(not made), started)
    return Evaluation(name, "held_out", made_key, str(path.relative_to(run.store.root)), {**metrics, "judges": judged})


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


def signs_p(scores: pa.Table, seed: int) -> float:
    """The p-value of no change of the judge's mean reward, by random signs of the prompts' differences.

    It is not kept with the scores, so that it can be told of those that were made before.

    Args:
        scores: SCORES rows of a judge with rewards.
        seed: of the draws.
    """
    difference = scores["reward"].to_numpy() - scores["baseline_reward"].to_numpy()
    _, prompt = np.unique(scores["prompt_id"].to_pylist(), return_inverse=True)
    return sign_flip_p(np.bincount(prompt, weights=difference) / np.bincount(prompt), PERMUTATIONS, seed)


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
            "reward": float(rewards["policy"][row, index]),
            "baseline_reward": float(rewards["start"][row, index]),
        }
        for row, index in zip(*np.nonzero(np.isfinite(matrix)), strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SCORES)
