"""The report of a run, report.html beside its manifest.json; that of a sweep; and the summary on the terminal."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from sweetspot import manifest as manifests
from sweetspot.logger import Logger, Logs, withhold_texts
from sweetspot.logger.private import READ, flat, private
from sweetspot.logger.secret import typed, without_secrets
from sweetspot.logger.wandb_logger import WITHOUT_TEXTS
from sweetspot.report import page
from sweetspot.report.answers import read_answers
from sweetspot.report.cost import cost
from sweetspot.report.pool import curves
from sweetspot.report.results import evaluated
from sweetspot.report.rows import Shown, points, read_history, read_scored, read_shown
from sweetspot.report.runs import artefacts
from sweetspot.report.summary import sections, summary, verdict
from sweetspot.report.swept import Job, Swept, facts
from sweetspot.visible import one_line

__all__ = ["Job", "Swept", "close", "summary", "tried", "write", "write_sweep", "write_without_texts"]
CONFIGURATION = 100_000  # characters of the configuration that are shown


def tried(write: Callable[[], Path], warnings: list[str]) -> list[Path]:
    """The page that `write` makes; none, and a line in the warnings and on the terminal, where it fails for whatever
    reason: what a page shows is kept elsewhere, and its fault must not be that of what it shows."""
    try:
        return [write()]
    except Exception as error:
        warnings.append(f"the report could not be written: {type(error).__name__}: {one_line(str(error))}")
        print(f"warning: {warnings[-1]}", file=sys.stderr, flush=True)
        return []


def write_sweep(path: Path, sweep: Swept, jobs: Sequence[Job]) -> Path:
    """Write the report of a sweep: its result, its points, what fewer samples would give, training, cost and lineage.

    Args:
        path: where it goes; an earlier report is replaced.
        sweep: what is known of all of it.
        jobs: its points, and other jobs that are not done.
    """
    return page.replace(path, page.render("sweep.html.j2", **facts(sweep, jobs)))


def write(manifest_path: Path) -> Path:
    """Write report.html beside the manifest: one self-contained file, a section for every stage that was reached.

    Args:
        manifest_path: manifest.json, which names the store and the files that are read.

    Returns:
        The report's path. An earlier report is replaced.
    """
    manifest = manifests.read(manifest_path)
    return page.replace(manifest_path.with_name("report.html"), _page(manifest, manifest["store"]))


def close(logs: Logs, loggers: Mapping[str, Logger], found: Mapping[str, Any], files: Sequence[Path]) -> None:
    """End the logs of a run with its files; where a logger takes no texts, with its report without them as well.

    Args:
        logs, loggers: the open logs, and the loggers of the configuration.
        found: what the run came to.
        files: its manifest, and report.html where there is one.
    """
    with TemporaryDirectory() as folder:
        withheld = len(files) > 1 and withhold_texts(loggers)
        more = tried(lambda: write_without_texts(files[0], Path(folder)), logs.warnings) if withheld else []
        logs.close(found, [*files, *more])


def write_without_texts(manifest_path: Path, folder: Path) -> Path:
    """Write the report as it may leave this machine: without prompts and responses, and with what `private` takes out
    gone from the facts of which it is made; in a finished page that would be cut short and quoted, and so not be found.

    Args:
        manifest_path: as for `write`.
        folder: where it goes, under the name by which the W&B logger knows it.
    """
    manifest = manifests.read(manifest_path)
    composed = flat(manifest["config"])
    hidden = private(composed, text=False)
    name = hidden.name(manifest_path.parent.name, composed)
    shown = {**hidden.manifest(manifest, READ), "command": name, "store": hidden.text(manifest["store"])}
    return page.replace(folder / WITHOUT_TEXTS, _page(shown, manifest["store"], texts=False))


def _page(manifest: Mapping[str, Any], place: str, texts: bool = True) -> str:
    """The report that a manifest makes with the store at this place."""
    store = Path(place)
    rounds = [_round(turn, found, manifest, store, texts) for turn, found in enumerate(manifest["rounds"], 1)]
    evaluations = [_evaluation(turn, found, store, texts) for turn, found in enumerate(manifest["evaluations"], 1)]
    shown = [one for part in (*rounds, *evaluations) for one in part["shown"]]
    config = without_secrets(manifest["config"])
    launcher = config.get("launcher") or {}
    return page.render(
        "report.html.j2",
        manifest={**manifest, "command": typed(manifest["command"])},
        verdict=verdict(manifest),
        sections=list(sections(manifest)),
        rounds=rounds,
        evaluations=evaluations,
        cost=cost([manifest], launcher.get("price_per_device_hour")),
        limit=page.fitting(one for prompt in shown for one in prompt.texts),
        keys=list(artefacts(manifest)),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)[:CONFIGURATION],
    )


def _round(
    turn: int, found: Mapping[str, Any], manifest: Mapping[str, Any], store: Path, texts: bool
) -> dict[str, Any]:
    """What the template shows of a round; None where the run did not get so far."""
    from sweetspot.report import figures  # matplotlib takes a second to import, which `--help` should not wait for

    name = f"round{turn}"
    samples, rewards, pairs, policy = (found.get(part) for part in ("samples", "rewards", "pairs", "policy"))
    every = read_scored(store, samples, rewards) if samples and rewards else None
    ignoring = pairs and manifest["config"].get("ignore_duplicates", False)
    scored = read_scored(store, samples, rewards, True) if samples and rewards and ignoring else every
    places = points(scored) if scored else []
    shown = read_shown(store, found, scored) if samples and texts else []
    history = read_history(store, policy) if policy else []
    z = [pairs[f"{side}_z"] if pairs else None for side in ("chosen", "rejected")]
    return {
        "title": f"Round {turn}: " if len(manifest["rounds"]) > 1 else "",
        "name": name,
        "n": samples["n_samples"] if samples else 0,
        "pooled": figures.pooled(f"{name}-pooled", scored, places, *z) if scored and places else None,
        "places": places,
        "beyond": figures.beyond(scored) if scored else 0,
        "by_n": curves(f"{name}-by-n", found, manifest, every) if every and places else None,
        "reward_model": rewards["reward_model"] if rewards else None,
        "strategy": pairs["strategy"] if pairs else None,
        "chosen_z": z[0],
        "rejected_z": z[1],
        "multiples": _multiples(f"{name}-prompts", shown),
        "shown": shown,
        "training": figures.training(f"{name}-training", history) if history else None,
        "logps": bool(history) and "logps/chosen" in history[0],
        "steps": len(history),
        "dots": figures.DOTS,
        "window": figures.smoothing_window(len(history)),
        "set_aside": samples["set_aside"] if samples else {},
    }


def _multiples(name: str, shown: list[Shown]) -> Any:
    from sweetspot.report import figures

    scored = shown and all(prompt.rewards is not None and len(prompt.rewards) for prompt in shown)
    return figures.multiples(name, shown) if scored else None


def _evaluation(number: int, found: Mapping[str, Any], store: Path, texts: bool) -> dict[str, Any]:
    """What the template shows of an evaluation: a figure where it has one, its lines, and answers side by side."""
    from sweetspot.report import figures

    at = f"evaluation{number}"
    figure = figures.held_out(at, found["judges"]) if found["kind"] == "held_out" else None
    shown = read_answers(store, found) if texts else []
    return {**found, "at": at, "figure": figure, "section": evaluated(found), "shown": shown}
