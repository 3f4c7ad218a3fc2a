"""Checked benchmarks, which need no judge: responses that a program checks, and reward models against known answers."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from sweetspot.component import canonical_json, identity, key, to_config
from sweetspot.eval import ifeval, reward_bench
from sweetspot.eval.ifeval import IFEval
from sweetspot.eval.lm_eval import LmEval
from sweetspot.eval.reward_bench import RewardBench
from sweetspot.model import Model
from sweetspot.schema import ACADEMIC, AGREEMENT, CHECKED, prompt_id
from sweetspot.stages.judged import respond, score_texts
from sweetspot.stages.run import Run
from sweetspot.stages.subject import Evaluation, Subject
from sweetspot.statistics import bootstrap_mean
from sweetspot.store import read_tile, write_tile


def checked(name: str, evaluation: IFEval, subject: Subject, run: Run) -> Evaluation:
    """IFEval's accuracies of the policy, and of the start, which all policies of it share.

    `difference`, `low` and `high`: how much larger a share of a prompt's instructions the policy follows strictly than
    the start, in percent points, with the paired 95% bootstrap interval over prompts.
    """
    started = time.monotonic()
    rows, whole, _ = ifeval.read(evaluation)
    (path, made), (start, _) = (
        _check(side, name, evaluation, rows, whole, dataclasses.replace(subject, policy=model), run)
        for side, model in (("", subject.policy), ("start ", subject.start))
    )
    (own, metrics), (base, of_start) = (read_tile(one, CHECKED) for one in (path, start))
    gain = 100 * (ifeval.followed(own) - ifeval.followed(base))
    paired = bootstrap_mean(gain, evaluation.resamples, evaluation.sampler.seed)
    more = {"difference": paired.mean, "low": paired.low, "high": paired.high, "start": of_start}
    run.did(f"evaluate {name}", "evaluations", int(made), int(not made), started)
    place, start_place = (str(one.relative_to(run.store.root)) for one in (path, start))
    return Evaluation(name, "ifeval", path.parent.name, place, {**metrics, **more, "start_path": start_place})


def _check(
    side: str, name: str, evaluation: IFEval, rows: list[dict[str, Any]], whole: int, subject: Subject, run: Run
) -> tuple[Path, bool]:
    """The table of a model's checked responses, and whether it was made now."""
    sampler = dataclasses.replace(evaluation.sampler, tile_samples=1)
    content = key(canonical_json(rows))
    made_key = key(
        "ifeval", evaluation.version, content, identity(subject.policy), identity(sampler), evaluation.resamples
    )
    provenance = {"evaluation": to_config(evaluation), "policy": to_config(subject.policy)}
    path = run.store.artefact("checked", made_key, provenance) / "checked.parquet"
    made = bool(run.missing([path], CHECKED))
    if made:
        prompts = [row["prompt"] for row in rows]
        responses = respond(f"{side}{name}", prompts, subject, sampler, run)
        table = path.with_name("responses.parquet")
        write_tile(table, asked(rows, responses), {})
        job = {
            "responses": str(table),
            "checked": str(path),
            "facts": {"n_benchmark": whole, "partial": len(rows) < whole},
            "resamples": evaluation.resamples,
            "seed": sampler.seed,
        }
        run.work(f"check {side}{name}", "sweetspot.eval.ifeval", job)
    return path, made


def measured(name: str, evaluation: LmEval, subject: Subject, run: Run) -> Evaluation:
    """lm-eval's figures of the policy, and of the start, which all policies of it share."""
    started = time.monotonic()
    (path, made, metrics), (_, _, start) = (
        _measure(f"measure {side}{name}", evaluation, model, run)
        for side, model in (("", subject.policy), ("start ", subject.start))
    )
    run.did(f"evaluate {name}", "evaluations", int(made), int(not made), started)
    place = str(path.relative_to(run.store.root))
    return Evaluation(name, "lm_eval", path.parent.name, place, {**metrics, "start_tasks": start["tasks"]})


def _measure(title: str, evaluation: LmEval, model: Model, run: Run) -> tuple[Path, bool, dict[str, Any]]:
    """A model's figures: their table, whether it was made now, and what it tells."""
    provenance = {"evaluation": to_config(evaluation), "policy": to_config(model)}
    path = run.store.artefact("academic", key(evaluation, model), provenance) / "academic.parquet"
    made = bool(run.missing([path], ACADEMIC))
    if made:
        job = {"evaluation": to_config(evaluation), "model": to_config(model), "figures": str(path)}
        run.work(title, "sweetspot.eval.lm_eval", job)
    table, facts = read_tile(path, ACADEMIC)
    return path, made, {**facts, "tasks": table.to_pylist()}


def benched(name: str, evaluation: RewardBench, run: Run) -> Evaluation:
    """How often the reward model agrees with local preference sets; no policy is needed."""
    started = time.monotonic()
    pairs = reward_bench.read(evaluation)
    turns = [[{"role": "user", "content": pair.prompt}] for pair in pairs]
    rows = [(turn, text) for turn, pair in zip(turns, pairs, strict=True) for text in (pair.chosen, pair.rejected)]
    made_key = key("reward_bench", evaluation.version, identity(evaluation.reward_model), rows, evaluation.resamples)
    path = run.store.artefact("agreement", made_key, {"evaluation": to_config(evaluation)}) / "agreement.parquet"
    made = bool(run.missing([path], AGREEMENT))
    if made:
        rewards = score_texts(f"score {name}", rows, evaluation.reward_model, run).reshape(-1, 2)
        columns = [[pair.source for pair in pairs], [pair.prompt for pair in pairs], rewards[:, 0], rewards[:, 1]]
        table = pa.Table.from_pydict(dict(zip(AGREEMENT.names, columns, strict=True)), schema=AGREEMENT)
        margins = rewards[:, 0] - rewards[:, 1]
        write_tile(path, table, reward_bench.figures(pairs, margins, evaluation.resamples, evaluation.seed))
    metrics = read_tile(path, AGREEMENT)[1]
    run.did(f"evaluate {name}", "evaluations", int(made), int(not made), started)
    return Evaluation(name, "reward_bench", made_key, str(path.relative_to(run.store.root)), metrics)


def asked(rows: list[dict[str, Any]], responses: list[str]) -> pa.Table:
    """The responses with what they were asked to follow."""
    listed = [
        {
            "prompt_id": prompt_id([{"role": "user", "content": row["prompt"]}]),
            "prompt": row["prompt"],
            "instructions": json.dumps(row["instruction_id_list"]),
            "settings": json.dumps(row["kwargs"]),
            "response": response,
        }
        for row, response in zip(rows, responses, strict=True)
    ]
    return pa.Table.from_pylist(listed)
