"""A judging job on hand-made pairs, for tests; `python -m tests.judging JOB.json FOLDER` runs one as a run would."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from sweetspot import launch
from sweetspot.component import to_config
from sweetspot.eval.judge import OpenAIJudge
from sweetspot.schema import PAIRINGS, SCORES, prompt_id
from sweetspot.store import read_tile, write_tile

CONCURRENCY = 16


def judge(url: str, **changes: Any) -> OpenAIJudge:
    """A judge at the address."""
    fields: dict[str, Any] = {
        "name": "loopback",
        "model": "judge",
        "base_url": url,
        "extra": {},
        "key_variable": None,
        "lists_models": True,
        "concurrency": CONCURRENCY,
        "attempts": 8,
        "timeout": 60.0,
        "backoff": 0.01,
        "price_in": 10.0,
        "price_out": 30.0,
    }
    return OpenAIJudge(**{**fields, **changes})


def pairs(n: int) -> list[dict[str, Any]]:
    """n pairs of short texts; every 100th is a pair of equal ones."""
    rows = []
    for number in range(n):
        question = f"Question {number}: what rhymes with {number % 7}?"
        response = f"Policy says {number * 3}."
        rows.append(
            {
                "prompt_id": prompt_id([{"role": "user", "content": question}]),
                "instruction": question,
                "response": response,
                "baseline": response if number % 100 == 99 else f"Baseline says {number * 5}.",
                "preference": None,
            }
        )
    return rows


def swapped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same pairs with policy and baseline changing places."""
    return [{**row, "response": row["baseline"], "baseline": row["response"]} for row in rows]


def job(rows: list[dict[str, Any]], asked: Any, folder: Path, **changes: Any) -> dict[str, Any]:
    """The worker's job; its files lie in the folder."""
    write_tile(folder / "pairs.parquet", pa.Table.from_pylist(rows, schema=PAIRINGS), {})
    fields: dict[str, Any] = {
        "benchmark": "alpaca_eval_2",
        "settings": {},
        "judge": to_config(asked),
        "label": asked.name,
        "pairs": str(folder / "pairs.parquet"),
        "answers": str(folder / "answers.jsonl"),
        "scores": str(folder / "scores.parquet"),
        "gamed": None,
        "max_cost": None,
        "resamples": 1000,
        "seed": 0,
        "store": str(folder),
        "facts": {},
    }
    return {**fields, **changes}


def scores(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows and the metrics that the job left."""
    table, facts = read_tile(folder / "scores.parquet", SCORES)
    return table.to_pylist(), facts


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text())
    launch.run("sweetspot.eval.worker", spec, Path(sys.argv[2]) / "judge", {}, lambda _: None)
