"""What a run found, in lines: read on the terminal at its end, and at the head of the report."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sweetspot.report.results import evaluated, evaluation_verdict
from sweetspot.report.words import Section, count, duration, in_sd, number, percent, signed
from sweetspot.visible import visible

Facts = Mapping[str, Any]
NAMES_WIDTH = 20  # columns of the terminal for what a line is about


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
        stages.add_row(
            Text(visible(stage["name"])), made, count(stage["reused"]), duration(stage["seconds"]), stage["unit"]
        )
    last = [evaluated(found) for found in manifest["evaluations"]]
    parts: list[RenderableType] = [stages]
    for section in [*sections(manifest), *last]:
        lines = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        lines.add_column(style="dim", min_width=NAMES_WIDTH)
        lines.add_column(overflow="fold")
        for what, value in section.lines:
            lines.add_row(Text(visible(what)), Text(visible(value)))
        parts += [Text(), Text(visible(section.title), style="bold"), lines]
    if manifest["warnings"]:
        parts += [Text(), *(Text(f"warning: {visible(warning)}", style="yellow") for warning in manifest["warnings"])]
    return Group(*parts, Text(), Text(visible(verdict(manifest)), style="bold"))


def verdict(manifest: Facts) -> str:
    """The run's result in one sentence."""
    if manifest["evaluations"]:
        first = manifest["evaluations"][0]
        return evaluation_verdict(first)
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
    """The lines of the start model's fine-tuning, where there was one, and of every round."""
    if "sft" in manifest:
        yield Section("Fine-tuned start model", _sft(manifest["sft"], manifest))
    for turn, found in enumerate(manifest["rounds"], 1):
        of_round = f"Round {turn}: " if len(manifest["rounds"]) > 1 else ""
        for name, lines_of in _PARTS.items():
            if name in found:
                title, lines = lines_of(found[name], manifest)
                title = of_round + title
                yield Section(title[0].upper() + title[1:], lines)


def _sft(found: Facts, manifest: Facts) -> list[tuple[str, str]]:
    reasons = {"too long": found["too_long"], "unclear": found["unclear"]}
    left_out = ", ".join(f"{count(many)} {why}" for why, many in reasons.items() if many)
    shortened = f", {count(found['shortened'])} without their last turns" if found["shortened"] else ""
    return [
        ("conversations", count(found["conversations"]) + shortened + (f"; left out {left_out}" if left_out else "")),
        ("loss", f"{number(found['loss_first'])} → {number(found['loss_last'])} in {count(found['steps'])} steps"),
        ("model", f"{manifest['store']}/{found['folder']}"),
    ]


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
    return f"rewards by {found['reward_model']}", [
        ("mean", f"{signed(found['mean'])}, sd within a prompt {number(found['mean_sd'])}"),
        ("shape", f"skew {in_sd(found['skew'])}, excess kurtosis {in_sd(found['kurtosis'])}"),
        ("look normal", _look_normal(found)),
    ]


def _look_normal(found: Facts) -> str:
    """By each prompt's test, as the study of normality tells it, and adjusted; an older manifest lacks the former."""

    def shares(end: str) -> str:
        shapiro, lilliefors = (percent(found[f"normal_share_{test}{end}"]) for test in ("shapiro", "lilliefors"))
        return f"{shapiro} of prompts by Shapiro, {lilliefors} by Lilliefors"

    adjusted = f"{shares('')}, adjusted over prompts (Benjamini-Hochberg)"
    return f"{shares('_single')}; {adjusted}" if "normal_share_shapiro_single" in found else adjusted


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
    reasons = {"too long": found["too_long"], "held out": found["held_out"]}
    left_out = ", ".join(f"{count(many)} {why}" for why, many in reasons.items() if many)
    return "training", [
        ("pairs", count(found["pairs"]) + (f", without {left_out}" if left_out else "")),
        ("loss", f"{number(found['loss_first'])} → {number(found['loss_last'])} in {count(found['steps'])} steps"),
        *([("reference", _reference(error))] if (error := found["reference_error"]) else []),
        ("policy", f"{manifest['store']}/{found['folder']}"),
    ]


def _reference(error: Facts) -> str:
    off, largest, responses = number(error["mean_absolute"]), number(error["largest"]), count(error["responses"])
    return f"the sampler's log-probabilities, off by {off} nats a response ({largest} at most, of {responses} compared)"


_PARTS = {"samples": _samples, "rewards": _rewards, "pairs": _pairs, "policy": _policy}
