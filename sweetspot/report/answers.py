"""Answers before and after training, as an evaluation compared them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweetspot.component import key
from sweetspot.report.rows import SHOWN, Response, Shown, spaced
from sweetspot.report.runs import JUDGED, Point, evaluation
from sweetspot.schema import PAIRINGS, PROMPTS, SCORES
from sweetspot.store import read_tile

Turns = list[tuple[str, str]]
OF_A_SWEEP = 4  # prompts of each policy of a sweep whose answers are shown
CONVENTION = ("max", "min")


def read_answers(store: Path, found: Mapping[str, Any], most: int = SHOWN) -> list[Shown]:
    """Up to `most` prompts of an evaluation with the first response of both sides: evenly spaced by how much the judge
    likes the policy's better, from the most lost to the most gained. [] for one that compares no responses, or whose
    rows the store has no more, or has without texts.

    Args:
        store: its root.
        found: the evaluation, as in the manifest.
        most: prompts.
    """
    if found.get("kind") not in JUDGED or not (store / found["path"]).exists():
        return []
    rows = read_tile(store / found["path"], SCORES)[0].drop_columns(["orders"]).to_pylist()
    if not any(row["response"] or row["baseline"] for row in rows):
        return []
    judged = [row for row in rows if row["preference"] is not None]
    first = {row["prompt_id"]: row for row in sorted(judged, key=lambda row: row["sample_index"] or 0, reverse=True)}
    ranked = sorted(first.values(), key=lambda row: (gain(row), row["prompt_id"]))
    picked = [ranked[place] for place in spaced(len(ranked), most).to_pylist()]
    asked = prompts(store, found, list(dict.fromkeys(row["prompt_id"] for row in rows)))
    before = "start" if found["kind"] == "held_out" else found["baseline"]
    return [_shown(row, asked.get(row["prompt_id"], []), before) for row in picked]


def of_sweep(
    rows: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[Point]], measure: str
) -> list[tuple[str, Mapping[str, Any], list[Shown]]]:
    """(what it is, its row, prompts with answers) of two policies: the highest, and that of the convention (max, min)
    with the same setting, or where there is none the lowest. One whose answers cannot be shown is left out.

    Args:
        rows: what the policies are worth.
        groups: the evaluated runs by setting; of several seeds the first is shown.
        measure: as for `runs.changes`.
    """
    ranked = sorted(rows, key=lambda row: -row["mean"])
    usual = [row for row in ranked if (row["chosen"], row["rejected"]) == CONVENTION]
    usual = [row for row in usual if row["setting"] == ranked[0]["setting"]]
    other = ("the convention", usual[0]) if usual else ("the lowest", ranked[-1]) if ranked else None
    picked = [("the highest", row) for row in ranked[:1]]
    picked += [other] if other and other[1] is not ranked[0] else []
    found: list[tuple[str, Mapping[str, Any], list[Shown]]] = []
    for what, row in picked:
        point = next(one for one in groups[row["setting"]] if one.strategy == row["strategy"])
        if shown := read_answers(point.store, evaluation(point, measure), OF_A_SWEEP):
            found.append((what, row, shown))
    return found


def gain(row: Mapping[str, Any]) -> float:
    """How much better the judge finds the policy's response: of rewards the difference, else the preference."""
    return row["preference"] if row["reward"] is None else row["reward"] - row["baseline_reward"]


def prompts(store: Path, found: Mapping[str, Any], ids: Sequence[str]) -> dict[str, Turns]:
    """The messages of the prompts of an evaluation, by id; {} where the store has them no more.

    Held-out prompts lie under the key of their ids; where some of them were set aside, which is not in the scores, the
    table that has the others is searched for.
    """
    pairs = (store / found["path"]).with_name("pairs.parquet")
    if pairs.exists():
        listed = read_tile(pairs, PAIRINGS)[0].select(["prompt_id", "instruction"]).to_pylist()
        return {row["prompt_id"]: [("user", row["instruction"])] for row in listed}
    own = store / "prompts" / f"{key(list(ids))}.parquet"
    for path in [own] if own.exists() else sorted((store / "prompts").glob("[!.]*.parquet")):
        table = read_tile(path, PROMPTS)[0]
        if set(ids) <= set(table["prompt_id"].to_pylist()):
            wanted = set(ids)
            rows = [row for row in table.to_pylist() if row["prompt_id"] in wanted]
            return {row["prompt_id"]: [(turn["role"], turn["content"]) for turn in row["messages"]] for row in rows}
    return {}


def _shown(row: Mapping[str, Any], turns: Turns, before: str) -> Shown:
    sides = [
        Response("before", row["baseline"], row["baseline_reward"], None, before),
        Response("after", row["response"], row["reward"], None, "policy"),
    ]
    return Shown(row["prompt_id"], turns, sides, None, row["preference"])
