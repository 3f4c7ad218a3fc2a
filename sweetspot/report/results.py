"""What the evaluations of a run found, in lines."""

from collections.abc import Mapping
from typing import Any

from sweetspot.report.words import (
    Section,
    absent,
    count,
    in_sd,
    interval,
    number,
    percent,
    signed,
)
from sweetspot.statistics import ALPHA

Facts = Mapping[str, Any]


def evaluation_verdict(found: Facts) -> str:
    """An evaluation's result in one sentence."""
    return reward_verdict(found) if found["kind"] == "held_out" else f"{_TITLES[found['kind']](found)}."


def evaluation_result(found: Facts) -> str:
    """An evaluation's result as a cell of a table."""
    if found["kind"] != "held_out":
        return _TITLES[found["kind"]](found)
    judge = next(judge for judge in found["judges"] if judge["role"] == "judge")
    return f"{signed(judge['difference'])} ({interval(judge['low'], judge['high'], signed)})"


def evaluated(found: Facts) -> Section:
    """The lines of an evaluation."""
    if found["kind"] == "held_out":
        return held_out(found)
    return Section(f"{found['name']}: {_TITLES[found['kind']](found)}", _LINES[found["kind"]](found))


def reward_verdict(found: Facts) -> str:
    """The held-out result in one sentence, which claims a change where the interval and the test of random signs do.

    Of an earlier version's manifest, which has no p, it claims nothing.
    """
    judge = next(judge for judge in found["judges"] if judge["role"] == "judge")
    gain = f"{signed(judge['difference'])} ({interval(judge['low'], judge['high'], signed)})"
    over = f"over {count(found['n_prompts'])} held-out prompts"
    if absent(judge["low"]) or judge["low"] <= 0 <= judge["high"]:
        return f"No change of the mean reward by {judge['name']} that can be told from chance: {gain} {over}."
    if "p" not in judge:
        return f"The mean reward by {judge['name']} changed by {gain} {over}, which was not tested."
    if judge["p"] >= ALPHA:
        return (
            f"No change of the mean reward by {judge['name']} that can be told from chance by random signs "
            f"(p {judge['p']:.3f}): {gain} {over}."
        )
    turn = "rose" if judge["difference"] > 0 else "fell"
    return f"The mean reward by {judge['name']} {turn}: {gain} {over}."


def held_out(found: Facts) -> Section:
    """The lines of the evaluation."""
    lines: list[tuple[str, str]] = []
    for judge in found["judges"]:
        name = judge["name"] + (" (selecting)" if judge["role"] == "selecting" else "")
        gain = f"{signed(judge['difference'])} ({interval(judge['low'], judge['high'], signed)})"
        sd = "" if absent(judge["difference_sd"]) else f", {in_sd(judge['difference_sd'])} sd"
        wins = f"wins {percent(judge['win_rate'])} ({interval(judge['win_rate_low'], judge['win_rate_high'], percent)})"
        lines += [(name, gain + sd), ("", wins)]
    for what, name, show, unit in (
        ("length", "tokens", number, " tokens"),
        ("distinct-2", "distinct_2", number, ""),
        ("cut", "cut_share", percent, " at the token limit"),
    ):
        lines.append((what, f"{show(found[name]['start'])} → {show(found[name]['policy'])}{unit}"))
    if found["kl"]:
        bounds = interval(found["kl"]["low"], found["kl"]["high"], number)
        lines.append(("KL to start", f"{number(found['kl']['mean'])} nats a response ({bounds})"))
    title = f"Held out: {count(found['n_prompts'])} prompts, {found['n_samples']} responses each, start → policy"
    return Section(title, lines)


def _judged_title(found: Facts) -> str:
    rate = found.get("length_controlled_winrate")
    of = f"{found['n_prompts']} of {found['n_benchmark']}" if found["partial"] else f"all {found['n_prompts']}"
    part = "partial result, " if found["partial"] else ""
    against = f"against {found['baseline']} by judge {found['judge']}, {of} prompts"
    if found["kind"] == "arena_hard":
        return f"{part}score {found['score']:.1f}% {against}, without style control"
    figure = f"win rate {found['win_rate']:.2f}%" if rate is None else f"length-controlled win rate {rate:.2f}%"
    return f"{part}{figure} {against}"


def _judged_lines(found: Facts) -> list[tuple[str, str]]:
    bounds = f"95%: {found['win_rate_low']:.2f} to {found['win_rate_high']:.2f}"
    lines = [("win rate", f"{found['win_rate']:.2f}% ({bounds}), {count(found['n_draws'])} draws")]
    if found["kind"] == "arena_hard":
        lines += [("score", f"{found['score']:.1f}% (95%: {found['score_low']:.1f} to {found['score_high']:.1f})")]
    else:
        lines += _length_lines(found)
    first = f"{number(found['shown_first'])} for the response shown first"
    spent = found["spent"]
    if spent:
        lines += [("order", first + (", a warning" if found["order_warning"] else ""))]
        cost = f"{count(spent['requests'])} requests, {count(spent['unusable'])} without a verdict"
        lines += [
            (
                "judge",
                f"{cost}, answers for {spent['price_of_answers']:.2f} USD, served by {', '.join(spent['served_by'])}",
            )
        ]
    return lines


def _length_lines(found: Facts) -> list[tuple[str, str]]:
    rate = found["length_controlled_winrate"]
    controlled = f"none: {found['lc_note']}" if rate is None else f"{rate:.2f}%, difficulties {found['difficulty']}"
    own, base = found["mean_length"], found["baseline_mean_length"]
    return [("at equal length", controlled), ("length", f"{count(own)} characters, the baseline's {count(base)}")]


def _ifeval_title(found: Facts) -> str:
    part = f"partial result, {found['n_prompts']} of {found['n_benchmark']}" if found["partial"] else "all"
    many = "prompts" if found["partial"] else f"{found['n_prompts']} prompts"
    return f"instructions followed in {found['prompt_strict']:.1f}% of {part} {many}"


def _ifeval_lines(found: Facts) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for level in ("prompt", "instruction"):
        for way in ("strict", "loose"):
            at = f"{level}_{way}"
            bounds = f"95%: {found[f'{at}_low']:.1f} to {found[f'{at}_high']:.1f}"
            lines.append((f"by {level}, {way}", f"{found[at]:.1f}% ({bounds}), the start {found['start'][at]:.1f}%"))
    more = f"{signed(found['difference'])} points ({interval(found['low'], found['high'], signed)})"
    lines.append(("share of a prompt's, than the start", more))
    return [*lines, ("empty", f"{count(found['empty'])} responses")]


def _bench_title(found: Facts) -> str:
    whole = found["parts"][0]
    agrees = f"agrees with {percent(whole['accuracy'])} of {count(found['n_pairs'])} preferences"
    return f"{agrees}, longer wins {percent(whole['longer'])}"


def _bench_lines(found: Facts) -> list[tuple[str, str]]:
    lines = [
        (
            one["name"],
            f"{percent(one['accuracy'])} ({interval(one['low'], one['high'], percent)}), longer wins "
            f"{percent(one['longer'])}, balanced by length {percent(one['balanced'])}, {count(one['n'])} pairs",
        )
        for one in found["parts"]
    ]
    between = interval(found["calibration_low"], found["calibration_high"], number)
    loss = f"{number(found['calibration_loss'])} nats a pair (0.693 for a coin)"
    scale = f"{number(found['calibration_scale'])} ({between}), {loss}"
    return [*lines, ("calibrating scale", scale)]


def _academic_title(found: Facts) -> str:
    part = "partial result, " if found["partial"] else ""
    return f"{part}{count(len(found['tasks']))} tasks of lm-eval {found['lm_eval']}, start → policy"


def _academic_lines(found: Facts) -> list[tuple[str, str]]:
    start = {row["task"]: row for row in found["start_tasks"]}
    return [
        (
            row["task"],
            f"{row['metric']} {number(start[row['task']]['value'])} → {number(row['value'])} (standard error "
            f"{number(row['standard_error'])}), {count(row['n'])} documents, {row['fewshot']} shots",
        )
        for row in found["tasks"]
    ]


_TITLES: dict[str, Any] = {
    "lm_eval": _academic_title,
    "reward_bench": _bench_title,
    "ifeval": _ifeval_title,
    "alpaca_eval_2": _judged_title,
    "arena_hard": _judged_title,
}
_LINES: dict[str, Any] = {
    "lm_eval": _academic_lines,
    "reward_bench": _bench_lines,
    "ifeval": _ifeval_lines,
    "alpaca_eval_2": _judged_lines,
    "arena_hard": _judged_lines,
}
