"""What a run found, in lines: read on the terminal at its end, and at the head of the report."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Facts = Mapping[str, Any]
NAMES_WIDTH = 20  # columns of the terminal for what a line is about
NOTHING, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Section:
    """Some lines about one part of a run: (what, value)."""

    title: str
    lines: list[tuple[str, str]]


def summary(manifest: Facts) -> RenderableType:
    """The run on the terminal, 80 columns wide: its stages, what each part found, and its warnings.

    Args:
        manifest: as in manifest.json; parts that the run did not reach are left out, NaN and None show as a dash.
    """
    stages = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    stages.add_column("stage", no_wrap=True)
    for name in ("made", "reused", "time"):
        stages.add_column(name, justify="right", no_wrap=True)
    stages.add_column("of", style="dim", no_wrap=True)
    for stage in manifest["stages"]:
        made = Text(count(stage["made"]), style="bold" if stage["made"] else "dim")
        stages.add_row(stage["name"], made, count(stage["reused"]), duration(stage["seconds"]), stage["unit"])
    last = [held_out(manifest["evaluation"])] if manifest["evaluation"] else []
    parts: list[RenderableType] = [stages]
    for section in [*sections(manifest), *last]:
        lines = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        lines.add_column(style="dim", min_width=NAMES_WIDTH)
        lines.add_column(overflow="fold")
        for what, value in section.lines:
            lines.add_row(what, Text(value))
        parts += [Text(), Text(section.title, style="bold"), lines]
    if manifest["warnings"]:
        parts += [Text(), *(Text(f"warning: {warning}", style="yellow") for warning in manifest["warnings"])]
    return Group(*parts, Text(), Text(verdict(manifest), style="bold"))


def verdict(manifest: Facts) -> str:
    """The run's result in one sentence."""
    evaluation = manifest["evaluation"]
    if evaluation:
        judge = next(judge for judge in evaluation["judges"] if judge["role"] == "judge")
        found = f"{signed(judge['difference'])} ({interval(judge['low'], judge['high'], signed)})"
        over = f"over {count(evaluation['n_prompts'])} held-out prompts"
        if absent(judge["low"]) or judge["low"] <= 0 <= judge["high"]:
            return f"No change of the mean reward by {judge['name']} that can be told from chance: {found} {over}."
        turn = "rose" if judge["difference"] > 0 else "fell"
        return f"The mean reward by {judge['name']} {turn}: {found} {over}."
    last: Facts = manifest["rounds"][-1] if manifest["rounds"] else {}
    if "policy" in last:
        return f"A policy was trained on {count(last['pairs']['kept'])} pairs; it was not evaluated."
    if "pairs" in last:
        return f"{count(last['pairs']['kept'])} pairs were selected from {count(last['samples']['n_prompts'])} prompts."
    if "samples" in last:
        done, samples = "sampled and scored" if "rewards" in last else "sampled", last["samples"]
        return f"{count(samples['n_prompts'])} prompts were {done}, {samples['n_samples']} responses each."
    return "The run made nothing."


def sections(manifest: Facts) -> Iterator[Section]:
    """The lines of every round."""
    for number, found in enumerate(manifest["rounds"], 1):
        of_round = f"Round {number}: " if len(manifest["rounds"]) > 1 else ""
        for name, lines_of in _PARTS.items():
            if name in found:
                title, lines = lines_of(found[name], manifest)
                title = of_round + title
                yield Section(title[0].upper() + title[1:], lines)


def _samples(found: Facts, _: Facts) -> tuple[str, list[tuple[str, str]]]:
    aside = len(found["set_aside"])
    return "samples", [
        ("prompts", count(found["n_prompts"]) + (f", {count(aside)} set aside as too long" if aside else "")),
        (
            "samples",
            f"{count(found['drawn'])}, {count(found['n_samples'])} a prompt, "
            f"{percent(found['duplicate_rate'])} duplicates",
        ),
        (
            "distinct",
            f"{number(found['effective_samples'])} of {count(found['n_samples'])} a prompt in effect, "
            f"{percent(found['near_duplicate_rate'])} near-duplicates",
        ),
        ("length", f"{number(found['mean_tokens'])} tokens, {percent(found['cut_share'])} cut at the limit"),
        ("tokens", count(found["tokens"])),
    ]


def _rewards(found: Facts, _: Facts) -> tuple[str, list[tuple[str, str]]]:
    shares = [percent(found[f"normal_share_{test}"]) for test in ("shapiro", "lilliefors")]
    return f"rewards by {found['reward_model']}", [
        ("mean", f"{signed(found['mean'])}, sd within a prompt {number(found['mean_sd'])}"),
        ("shape", f"skew {in_sd(found['skew'])}, excess kurtosis {in_sd(found['kurtosis'])}"),
        ("look normal", f"{shares[0]} of prompts by Shapiro, {shares[1]} by Lilliefors"),
    ]


def _pairs(found: Facts, _: Facts) -> tuple[str, list[tuple[str, str]]]:
    reasons = {why: many for why, many in found["dropped"].items() if many}
    dropped = ", ".join(f"{why.replace('_', ' ')} {count(many)}" for why, many in reasons.items())
    ignored = found["ignored_duplicates"]
    return f"pairs {found['strategy']}", [
        ("kept", f"{count(found['kept'])} of {count(found['kept'] + sum(reasons.values()))}"),
        ("dropped", f"{count(sum(reasons.values()))} ({dropped})" if reasons else "none"),
        *([("ignored", f"{count(ignored)} copies of earlier responses")] if ignored else []),
        ("z", f"chosen {in_sd(found['chosen_z'])}, rejected {in_sd(found['rejected_z'])}"),
        ("margin", f"{number(found['margin'])} of reward"),
        ("length", f"chosen {number(found['chosen_tokens'])}, rejected {number(found['rejected_tokens'])} tokens"),
    ]


def _policy(found: Facts, manifest: Facts) -> tuple[str, list[tuple[str, str]]]:
    return "training", [
        ("loss", f"{number(found['loss_first'])} → {number(found['loss_last'])} in {count(found['steps'])} steps"),
        ("policy", f"{manifest['store']}/{found['folder']}"),
    ]


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


_PARTS = {"samples": _samples, "rewards": _rewards, "pairs": _pairs, "policy": _policy}


def absent(value: float | None) -> bool:
    """Whether there is no number: None in a manifest that was read, NaN in one that was not written yet."""
    return value is None or math.isnan(value)


def count(value: float | None) -> str:
    """A whole number with thousands apart: 4,992."""
    return NOTHING if value is None or math.isnan(value) else f"{value:,.0f}"


def number(value: float | None) -> str:
    """About three significant digits; a long way from 1 as a power of ten."""
    if value is None or math.isnan(value):
        return NOTHING
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}".replace("-", MINUS)
    places = 2 if not value else min(3 if abs(value) >= 0.01 else 4, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{places}f}".replace("-", MINUS)


def signed(value: float | None) -> str:
    """`number` with its sign."""
    text = number(value)
    return text if value is None or math.isnan(value) or value <= 0 else f"+{text}"


def in_sd(value: float | None) -> str:
    """A z, a skew, or anything else in standard deviations: its sign and two decimals."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{value:+.2f}".replace("-", MINUS).replace(f"{MINUS}0.00", "+0.00")


def percent(value: float | None) -> str:
    """A share in percent, with a decimal below ten."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{100 * value:.{1 if 0 < abs(value) < 0.0995 else 0}f}%"


def interval(low: float | None, high: float | None, show: Any) -> str:
    """A 95% interval, its bounds written by `show`."""
    return f"95%: {show(low)} to {show(high)}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
