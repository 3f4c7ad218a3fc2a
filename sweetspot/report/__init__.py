"""The report of a run, report.html beside its manifest.json; that of a sweep; and the summary on the terminal."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sweetspot.report.results import evaluated, evaluation_result
from sweetspot.report.rows import Shown, points, read_history, read_scored, read_shown
from sweetspot.report.summary import sections, summary, verdict
from sweetspot.report.words import count, duration, in_sd, number, percent, signed

__all__ = ["summary", "write", "write_sweep"]


def write_sweep(path: Path, sweep: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]]) -> Path:
    """Write the report of a sweep: a table of its points, the failures with reasons and logs, and what it took.

    Args:
        path: where it goes; an earlier report is replaced.
        sweep: {"command", "created", "commit", "seconds": of each stage over all jobs (forecast, actual), or None}.
        jobs: of the points {"name", "standing", "reason", "log", "page": its report.html from here or None, "manifest":
            or None}.
    """
    names = dict.fromkeys(one["name"] for job in jobs if job["manifest"] for one in job["manifest"]["evaluations"])
    page = _template("sweep.html.j2").render(
        sweep=sweep,
        evaluations=list(names),
        points=[_point(job, list(names)) for job in jobs],
        bad=[job for job in jobs if job["reason"] and job["standing"] != "done"],
    )
    return _replace(path, page)


def _point(job: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What the table of a sweep shows of a point; None and "" where it did not get so far."""
    manifest: Mapping[str, Any] = job["manifest"] or {"rounds": [], "evaluations": []}
    last = manifest["rounds"][-1] if manifest["rounds"] else {}
    found = {one["name"]: evaluation_result(one) for one in manifest["evaluations"]}
    facts = {name: last.get(name) for name in ("samples", "pairs", "policy")}
    return {**job, **facts, "results": [found.get(name, "") for name in names], "seconds": manifest.get("seconds")}


def write(manifest_path: Path) -> Path:
    """Write report.html beside the manifest: one self-contained file, a section for every stage that was reached.

    Args:
        manifest_path: manifest.json, which names the store and the files that are read.

    Returns:
        The report's path. An earlier report is replaced.
    """
    manifest: dict[str, Any] = json.loads(manifest_path.read_text(encoding="utf-8"))
    page = _template("report.html.j2").render(
        manifest=manifest,
        verdict=verdict(manifest),
        sections=list(sections(manifest)),
        rounds=[_round(turn, found, manifest) for turn, found in enumerate(manifest["rounds"], 1)],
        evaluations=[_evaluation(number, found) for number, found in enumerate(manifest["evaluations"], 1)],
        keys=list(_keys(manifest)),
        config=yaml.safe_dump(manifest["config"], sort_keys=False, allow_unicode=True, width=100),
    )
    return _replace(manifest_path.with_name("report.html"), page)


def _replace(path: Path, page: str) -> Path:
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text(page, encoding="utf-8")
    return scratch.replace(path)


def _template(name: str) -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {show.__name__: show for show in (count, duration, in_sd, number, percent, signed)}
    return environment.get_template(name)


def _round(turn: int, found: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of a round; None where the run did not get so far."""
    from sweetspot.report import figures  # matplotlib takes a second to import, which `--help` should not wait for

    store, name, last = Path(manifest["store"]), f"round{turn}", len(manifest["rounds"])
    samples, rewards, pairs, policy = (found.get(part) for part in ("samples", "rewards", "pairs", "policy"))
    scored = read_scored(store, samples, rewards) if samples and rewards else None
    places = points(scored) if scored else []
    shown = read_shown(store, found, scored) if samples else []
    history = read_history(store, policy) if policy else []
    z = [pairs[f"{side}_z"] if pairs else None for side in ("chosen", "rejected")]
    return {
        "title": f"Round {turn}: " if last > 1 else "",
        "name": name,
        "n": samples["n_samples"] if samples else 0,
        "pooled": figures.pooled(f"{name}-pooled", scored, places, *z) if scored and places else None,
        "places": places,
        "beyond": figures.beyond(scored) if scored else 0,
        "strategy": pairs["strategy"] if pairs else None,
        "chosen_z": z[0],
        "rejected_z": z[1],
        "multiples": _multiples(f"{name}-prompts", shown),
        "shown": shown,
        "training": figures.training(f"{name}-training", history) if history else None,
        "window": figures.smoothing_window(len(history)),
        "set_aside": samples["set_aside"] if samples else {},
    }


def _multiples(name: str, shown: list[Shown]) -> Any:
    from sweetspot.report import figures

    scored = shown and all(prompt.rewards is not None and len(prompt.rewards) for prompt in shown)
    return figures.multiples(name, shown) if scored else None


def _evaluation(number: int, found: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of an evaluation: a figure where it has one, and its lines."""
    from sweetspot.report import figures

    at = f"evaluation{number}"
    figure = figures.held_out(at, found["judges"]) if found["kind"] == "held_out" else None
    return {**found, "at": at, "figure": figure, "section": evaluated(found)}


def _keys(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(what, key, place in the store) of every artefact of the run."""
    if "sft" in manifest:
        yield "fine-tuned start model", manifest["sft"]["key"], manifest["sft"]["folder"]
    for turn, found in enumerate(manifest["rounds"], 1):
        of_round = f"round {turn} " if len(manifest["rounds"]) > 1 else ""
        for name, part in found.items():
            yield of_round + name, part["key"], part.get("folder") or part["path"]
    for found in manifest["evaluations"]:
        yield found["name"], found["key"], found["path"]
