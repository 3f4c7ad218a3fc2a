"""The judging worker: pairs of responses in, a table of scores out.

The pairs' judge is asked here (served here first, where it is our own), or their preferences are given already, where a
reward model judged.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweetspot.component import build
from sweetspot.eval import alpaca, arena, serve
from sweetspot.eval.alpaca_metrics import digest, metrics, published_order, regulariser, write_regulariser
from sweetspot.eval.answers import Answers, request_key
from sweetspot.eval.asking import Progress, ask, sent
from sweetspot.eval.judge import OpenAIJudge, PairJudge, forecast
from sweetspot.eval.judged import bias_facts, order_bias, preference_of, rate
from sweetspot.launch import Emit
from sweetspot.schema import PAIRINGS, SCORES
from sweetspot.statistics import as_floats
from sweetspot.store import write_tile
from sweetspot.visible import halves_told

PROGRESS_SECONDS = 0.5
BENCHMARKS: dict[str, Any] = {"alpaca_eval_2": alpaca, "arena_hard": arena}


def main(job: Mapping[str, Any], emit: Emit) -> None:
    """Judge the pairs of a job and write their scores.

    Args:
        job: {"benchmark": name, "settings": the benchmark's own, "judge": config or None, "label": the judge's name,
            "pairs": a PAIRINGS file, "answers": where answers are kept, "scores": the table to write, "gamed": path or
            None, "max_cost": US dollars or None, "resamples": count, "seed": integer, "store": path of the
            store, "facts": what goes into the metrics as it is}.
        emit: takes progress.
    """
    rows = pq.read_table(job["pairs"], schema=PAIRINGS).to_pylist()
    spent: dict[str, Any] = {}
    orders: list[list[dict[str, Any]]] = [[] for _ in rows]
    given = [0.5 if row["preference"] is None else row["preference"] for row in rows]
    if job["judge"] is not None:
        orders = judge_pairs(rows, build(job["judge"], "eval.judge"), job, emit, spent)
        given = [preference_of(row) for row in orders]
    figures, equal_length = figures_of(rows, given, orders, job)
    scores = [
        {
            **{name: row[name] for name in ("prompt_id", "response", "baseline")},
            "sample_index": 0,
            "preference": given[number],
            "orders": orders[number] or None,
            "equal_length": equal_length[number] if equal_length else None,
        }
        for number, row in enumerate(rows)
    ]
    table = pa.Table.from_pylist(scores, schema=SCORES)
    told = halves_told(f"judge {job['label']}", spent.get("halves", 0))
    facts = {**job["facts"], **figures, "spent": spent, "text_warning": told[0] if told else None}
    write_tile(Path(job["scores"]), table, facts)


def judge_pairs(
    rows: list[dict[str, Any]], judge: Any, job: Mapping[str, Any], emit: Emit, spent: dict[str, Any]
) -> list[list[dict[str, Any]]]:
    """For each row its ORDERS by the judge; `spent` takes what this call came to."""
    if isinstance(judge, PairJudge):
        return [in_both_orders(row, judge) for row in rows]
    benchmark, path = BENCHMARKS[job["benchmark"]], Path(job["answers"])
    answers = Answers(path)
    try:
        with serve.serving(judge, path.parent / "server.log", emit) as asked:

            def complete(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
                within(bodies, asked, answers, job["max_cost"], emit)
                found, paid = ask(bodies, asked, answers, benchmark.verdict, job["max_cost"], told(emit))
                tokens = [sum(answer[f"tokens_{way}"] for answer in found) for way in ("in", "out")]
                served_by = sorted({str(answer["model"]) for answer in found})
                spent.update(paid, served_by=served_by, price_of_answers=asked.price(*tokens))
                return [answer["choice"] for answer in found]

            return benchmark.annotate(rows, complete, **job["settings"])
    finally:
        answers.close()


def in_both_orders(row: Mapping[str, Any], judge: PairJudge) -> list[dict[str, Any]]:
    """The ORDERS of a row by a judge of somebody's own.

    Raises:
        ValueError: for a preference that is no number from 0 to 1.
    """
    orders: list[dict[str, Any]] = []
    for policy_first in (True, False):
        shown = ("response", "baseline") if policy_first else ("baseline", "response")
        found: Any = judge.prefer(row["instruction"], *(row[side] for side in shown))
        if not isinstance(found, int | float) or not 0 <= found <= 1:
            raise ValueError(f"eval.judge: {type(judge).__name__} must prefer by a number from 0 to 1, got {found!r}")
        value = float(found)
        orders.append({"policy_first": policy_first, "preference": value if policy_first else 1 - value, "weight": 1.0})
    return orders


def within(
    bodies: list[dict[str, Any]], judge: OpenAIJudge, answers: Answers, max_cost: float | None, emit: Emit
) -> None:
    """Tell what the missing answers will come to.

    Raises:
        ValueError: when that is more than `max_cost` US dollars; nothing has been asked then.
    """
    missing = [body for body in bodies if request_key(sent(body, judge)) not in answers.by_key]
    lengths = [sum(len(message["content"]) for message in body["messages"]) for body in missing]
    plan = forecast(judge, lengths, max((body["max_tokens"] for body in missing), default=0))
    note = f"{plan['requests']:,} requests, about {plan['tokens']:,} tokens and {plan['price']:.2f} USD"
    emit({"progress": {"done": len(bodies) - len(missing), "total": len(bodies), "unit": "judged", "note": note}})
    emit({"metrics": {f"judge/forecast_{name}": value for name, value in plan.items()}})
    if max_cost is not None and plan["price"] > max_cost:
        raise ValueError(f"eval.max_cost must cover what judging needs ({note}), got {max_cost:g}")


def told(emit: Emit) -> Progress:
    """A function that passes progress on, now and then and at the end."""
    last = time.monotonic()

    def tell(done: int, needed: int, price: float) -> None:
        nonlocal last
        if done == needed or time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            emit({"progress": {"done": done, "total": needed, "unit": "judged", "note": f"{price:.2f} USD"}})

    return tell


def figures_of(
    rows: list[dict[str, Any]], given: list[float], orders: list[list[dict[str, Any]]], job: Mapping[str, Any]
) -> tuple[dict[str, Any], list[float] | None]:
    """The metrics of the judgements, and what each would be at equal length, where that is defined."""
    preference = as_floats(given)
    bias = order_bias(orders, job["resamples"], job["seed"])
    found = {**rate(preference, job["resamples"], job["seed"]), **bias_facts(bias, job["label"])}
    if job["benchmark"] == "arena_hard":
        return {**found, **arena.figures(orders, job["resamples"], job["seed"])}, None
    whole = published_order([row["instruction"] for row in rows])
    gamed = Path(job["gamed"]) if whole and job["gamed"] else None
    annotated = [
        {**alpaca.annotation(row, "policy", "baseline"), "preference": 1 + value}
        for row, value in zip(rows, given, strict=True)
    ]
    figures, equal_length = metrics(annotated, gamed)
    if gamed:
        place = Path(job["store"]) / f"regulariser/{digest(gamed)}.parquet"
        write_regulariser(place, regulariser(gamed), [row["prompt_id"] for row in rows])
        found["regulariser"] = str(place.relative_to(job["store"]))
    note = None if gamed else "df_gamed.csv was not found" if whole else "not the 805 published prompts in their order"
    return {**found, **figures, "lc_note": note}, equal_length
