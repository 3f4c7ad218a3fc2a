"""Judged benchmarks: one response a prompt, compared with a baseline's by a judge."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sweetspot.component import identity, key, to_config
from sweetspot.eval import alpaca, arena
from sweetspot.eval.alpaca import AlpacaEval
from sweetspot.eval.alpaca_metrics import digest, published_order, regulariser
from sweetspot.eval.arena import ArenaHard
from sweetspot.eval.benchmark import Baseline
from sweetspot.eval.judge import OpenAIJudge, RewardJudge, forecast
from sweetspot.reward_model import RewardModel
from sweetspot.sampler import Sampler
from sweetspot.schema import PAIRINGS, PROMPTS, REWARDS, SAMPLES, SCORES, prompt_id
from sweetspot.stages.pool import sample
from sweetspot.stages.run import Run
from sweetspot.stages.subject import Evaluation, Subject
from sweetspot.store import read_tile, write_tile
from sweetspot.visible import halves_told

JUDGE_PROMPT_CHARACTERS = 1400  # of alpaca-eval's template around a pair
TEST_RESPONSE = "I do not know."  # beside the baseline's, which must differ: equal ones are a draw that nobody is asked


def judged(name: str, evaluation: AlpacaEval | ArenaHard, subject: Subject, run: Run) -> Evaluation:
    """The judge's comparison of the policy with the benchmark's baseline, all prompts or none.

    Raises:
        ValueError: for a benchmark whose files cannot be used; one line.
        WorkerError: for a judge that cannot go on; what was answered is kept.
    """
    started = time.monotonic()
    baseline, gamed = source(evaluation)
    sampler = dataclasses.replace(evaluation.sampler, tile_samples=1)
    settings, kind = settings_of(evaluation), kind_of(evaluation)
    compared = [kind, evaluation.version, identity(evaluation.judge), identity(subject.policy), identity(sampler)]
    content = [baseline.instructions, baseline.outputs, digest(gamed) if gamed else None, evaluation.resamples]
    made_key = key(*compared, settings, content)
    provenance = {"evaluation": to_config(evaluation), "policy": to_config(subject.policy)}
    path = run.store.artefact("scores", made_key, provenance) / "scores.parquet"
    made = bool(run.missing([path], SCORES))
    if made:
        responses = respond(name, baseline.instructions, subject, sampler, run)
        preferences = rewarded(name, evaluation.judge, baseline, responses, run)
        write_tile(path.with_name("pairs.parquet"), pairings(baseline, responses, preferences), {})
    run.before.pop(name, None)  # from here on only answers that are missing need the judge, and the worker knows which
    if made:
        answers = run.store.artefact("judgements", key(*compared, settings), provenance)
        job = job_of(evaluation, answers, path, run)
        about = {"gamed": str(gamed) if gamed else None, "facts": facts(evaluation, baseline)}
        run.work(f"judge {name}", "sweetspot.eval.worker", {**job, **about})
    metrics = read_tile(path, SCORES)[1]
    run.did(f"evaluate {name}", "evaluations", int(made), int(not made), started)
    return Evaluation(name, kind, made_key, str(path.relative_to(run.store.root)), metrics)


def job_of(evaluation: AlpacaEval | ArenaHard, answers: Path, scores: Path, run: Run) -> dict[str, Any]:
    """The judging worker's job, without what belongs to the whole benchmark.

    Args:
        answers: the folder where answers are kept.
        scores: the table to write; the pairs lie beside it.
    """
    return {
        "benchmark": kind_of(evaluation),
        "settings": settings_of(evaluation),
        "judge": None if isinstance(evaluation.judge, RewardJudge) else to_config(evaluation.judge),
        "label": evaluation.judge.name,
        "pairs": str(scores.with_name("pairs.parquet")),
        "answers": str(answers / "answers.jsonl"),
        "scores": str(scores),
        "gamed": None,
        "max_cost": evaluation.max_cost,
        "resamples": evaluation.resamples,
        "seed": evaluation.sampler.seed,
        "store": str(run.store.root),
        "facts": {},
    }


def tested(name: str, evaluation: AlpacaEval | ArenaHard, run: Run) -> None:
    """Ask a paid judge for its models, and have it judge one pair, unless it did so before.

    The pair is the benchmark's first prompt with the baseline's response and a made-up one. It takes one request, two
    where both orders are asked, and is paid once a judge, benchmark and store.

    Raises:
        ValueError: for a judge without its key, at an address that does not answer or does not serve it; one line.
        WorkerError: for one that refuses, keeps failing or answers without a verdict; one line.
    """
    judge = evaluation.judge
    if not isinstance(judge, OpenAIJudge):
        return
    judge.check()
    started = time.monotonic()
    whole = baseline_of(evaluation)
    first = dataclasses.replace(whole, instructions=whole.instructions[:1], outputs=whole.outputs[:1])
    pair = pairings(first, [TEST_RESPONSE], [None])
    asked = key("test", kind_of(evaluation), identity(judge), settings_of(evaluation), pair.to_pylist())
    folder = run.store.artefact("judgements", asked, {"evaluation": to_config(evaluation)})
    path = folder / "scores.parquet"
    made = bool(run.missing([path], SCORES))
    if made:
        write_tile(path.with_name("pairs.parquet"), pair, {})
        run.work(f"test the judge of {name}", "sweetspot.eval.worker", job_of(evaluation, folder, path, run))
    run.did(f"test the judge of {name}", "judgements", int(made), int(not made), started)


def settings_of(evaluation: AlpacaEval | ArenaHard) -> dict[str, Any]:
    """What the judge is sent beside a pair, where the benchmark lets it be chosen."""
    return evaluation.settings() if isinstance(evaluation, ArenaHard) else {}


def kind_of(evaluation: AlpacaEval | ArenaHard) -> str:
    """Which benchmark it is."""
    return "arena_hard" if isinstance(evaluation, ArenaHard) else "alpaca_eval_2"


def source(evaluation: AlpacaEval | ArenaHard) -> tuple[Baseline, Path | None]:
    """The prompts with the baseline's responses, and the file of difficulties where there is one."""
    return baseline_of(evaluation), None if isinstance(evaluation, ArenaHard) else alpaca.gamed_file(evaluation)


def baseline_of(evaluation: AlpacaEval | ArenaHard) -> Baseline:
    """The prompts with the baseline's responses."""
    if isinstance(evaluation, ArenaHard):
        return arena.read(evaluation)
    return alpaca.read_baseline(alpaca.baseline_file(evaluation), evaluation.limit)


def facts(evaluation: AlpacaEval | ArenaHard, baseline: Baseline) -> dict[str, Any]:
    """What belongs to the figures: who judged, against whom, and whether the benchmark was judged as a whole."""
    return {
        "judge": evaluation.judge.name,
        "judge_key": key(evaluation.judge),
        "baseline": baseline.generator,
        "n_benchmark": baseline.whole,
        "partial": len(baseline.instructions) < baseline.whole,
    }


def respond(name: str, instructions: list[str], subject: Subject, sampler: Sampler, run: Run) -> list[str]:
    """The policy's response to each instruction, in their order.

    Raises:
        ValueError: when one is too long for the sampler.
    """
    turns = [[{"role": "user", "content": text}] for text in instructions]
    ids = [prompt_id(turn) for turn in turns]
    rows = [{"prompt_id": one, "messages": turn, "source": name} for one, turn in zip(ids, turns, strict=True)]
    prompts = pa.Table.from_pylist(rows, schema=PROMPTS)
    samples = sample(prompts, subject.policy, sampler, 1, run, f"sample {name}")
    if aside := samples.set_aside():
        longest = max(aside.values())
        raise ValueError(f"eval.sampler.max_prompt_tokens must be >= {longest} to take every prompt of {name}")
    texts = {row["prompt_id"]: row["response"] for row in samples.read().to_pylist()}
    return [texts[one] for one in ids]


def rewarded(name: str, judge: Any, baseline: Baseline, responses: list[str], run: Run) -> list[float | None]:
    """The preferences of a reward model as judge; None for each where a judge is to be asked."""
    if not isinstance(judge, RewardJudge):
        return [None] * len(responses)
    turns = [[{"role": "user", "content": text}] for text in baseline.instructions]
    rows = [
        (turn, text)
        for turn, pair in zip(turns, zip(responses, baseline.outputs, strict=True), strict=True)
        for text in pair
    ]
    rewards = score_texts(f"score {name}", rows, judge.reward_model, run).reshape(-1, 2)
    return [float(value) for value in 1 / (1 + np.exp(-judge.scale * (rewards[:, 0] - rewards[:, 1])))]


def pairings(baseline: Baseline, responses: list[str], preferences: list[float | None]) -> pa.Table:
    """The PAIRINGS of a benchmark."""
    columns = [baseline.prompt_ids, baseline.instructions, responses, baseline.outputs, preferences]
    return pa.Table.from_pydict(dict(zip(PAIRINGS.names, columns, strict=True)), schema=PAIRINGS)


def score_texts(title: str, rows: list[tuple[list[dict[str, str]], str]], reward_model: RewardModel, run: Run) -> Any:
    """The reward of each (messages, response) as float64 [rows], from the store where they were scored before.

    The texts become a pool of their own: row r is sample r of its prompt, so that equal prompts do not clash.
    """
    started = time.monotonic()
    content = key([[prompt_id(messages), text] for messages, text in rows])
    folder = run.store.artefact("texts", content, {})
    prompts = {prompt_id(messages): messages for messages, _ in rows}
    listed = [{"prompt_id": one, "messages": turns, "source": title} for one, turns in prompts.items()]
    write_tile(folder / "prompts.parquet", pa.Table.from_pylist(listed, schema=PROMPTS), {})
    samples = [
        {"prompt_id": prompt_id(messages), "sample_index": number, "response": text, "token_ids": []}
        for number, (messages, text) in enumerate(rows)
    ]
    write_tile(folder / "texts.parquet", pa.Table.from_pylist(samples, schema=SAMPLES), {"set_aside": {}})
    name = key(reward_model, "texts", content)
    path = run.store.artefact("rewards", name, {"reward_model": to_config(reward_model), "texts": content})
    path = path / "texts.parquet"
    made = bool(run.missing([path], REWARDS))
    if made:
        job = {
            "reward_model": to_config(reward_model),
            "model": None,
            "probe": None,
            "prompts": str(folder / "prompts.parquet"),
            "tiles": [{"samples": str(folder / "texts.parquet"), "rewards": str(path), "prompt_ids": None}],
        }
        group: int = getattr(reward_model, "tensor_parallel", 1)
        run.fill(title, "sweetspot.reward_model.worker", job, 1, group, reward_model.environment())
    run.did(title, "tiles", int(made), int(not made), started)
    table = read_tile(path, REWARDS)[0]
    rewards = np.full(len(rows), np.nan)
    rewards[table["sample_index"].to_numpy()] = table["reward"].to_numpy()
    return rewards


def preflight(name: str, evaluation: AlpacaEval | ArenaHard) -> list[str]:
    """What a user should know before a run that ends in a judged benchmark; files are read, and nothing is paid.

    Raises:
        ValueError: for a file that cannot be used, or a price above `max_cost`; one line.
    """
    baseline, gamed = source(evaluation)
    told = halves_told(name, baseline.halves)
    told += length_control(name, baseline, gamed) if isinstance(evaluation, AlpacaEval) else []
    if len(baseline.instructions) < baseline.whole:
        told.append(f"{name}: {len(baseline.instructions)} of {baseline.whole} prompts: a partial result, without LC")
    if not isinstance(evaluation.judge, OpenAIJudge):
        return told
    judge = evaluation.judge
    twice = 2 if isinstance(evaluation, ArenaHard) else 1
    lengths = [
        len(prompt) + 2 * len(output) + JUDGE_PROMPT_CHARACTERS
        for prompt, output in zip(baseline.instructions, baseline.outputs, strict=True)
    ] * twice
    plan = forecast(judge, lengths, evaluation.max_tokens if isinstance(evaluation, ArenaHard) else 1)
    what = f"{plan['requests']:,} requests, about {plan['tokens']:,} tokens and at most {plan['price']:.2f} USD"
    if evaluation.max_cost is not None and plan["price"] > evaluation.max_cost:
        raise ValueError(f"eval.max_cost must cover judging by {judge.name} ({what}), got {evaluation.max_cost:g}")
    return [*told, f"{name}: judging by {judge.name} takes {what}, if answers are as long as the baseline's"]


def length_control(name: str, baseline: Baseline, gamed: Path | None) -> list[str]:
    """Why there will be no length-controlled rate, if so; a file of difficulties that will be needed is read.

    Raises:
        ValueError: for one that cannot be used.
    """
    if gamed is None:
        return [f"{name}: df_gamed.csv was not found, so there is a win rate and no length-controlled one"]
    if published_order(baseline.instructions):
        regulariser(gamed)
    elif len(baseline.instructions) == baseline.whole:
        return [f"{name}: not the 805 published prompts in their order, so there is no length-controlled rate"]
    return []
