"""The runs in the folders of runs and sweeps; what they are worth is read by `sweetspot.report`: `runs`, `groups` of
seeds, and their win rate at equal `length`."""

from collections.abc import Iterable
from pathlib import Path

from sweetspot import manifest as manifests
from sweetspot.report.groups import Group, against, differing, effect, group, settings_of, with_holm
from sweetspot.report.length import at_equal_length
from sweetspot.report.runs import (
    LEVEL,
    START,
    Point,
    Settings,
    evaluation,
    grouped,
    having,
    history,
    interval,
    judged,
    measure_of,
    pair_picks,
    pools,
    prompt_ids,
    scored,
    seeds,
    selectable,
    tokens,
)
from sweetspot.sweep import folder as sweeps

__all__ = [
    "LEVEL",
    "START",
    "Group",
    "Point",
    "Settings",
    "against",
    "at_equal_length",
    "differing",
    "effect",
    "evaluation",
    "group",
    "grouped",
    "having",
    "history",
    "interval",
    "judged",
    "measure_of",
    "pair_picks",
    "pools",
    "prompt_ids",
    "read",
    "scored",
    "seeds",
    "selectable",
    "settings_of",
    "tokens",
    "with_holm",
]


def read(places: Iterable[Path]) -> tuple[list[Point], list[str]]:
    """The runs in the folders of runs and sweeps, and how the jobs of the sweeps stand that are not done.

    Raises:
        ValueError: one line, for a folder that is neither.
    """
    found: dict[Path, Point] = {}
    missing: list[str] = []
    for place in places:
        if (place / "manifest.json").is_file():
            folders = [place]
        elif (place / "jobs.json").is_file():
            sweep = sweeps.read(place)
            folders = [sweep.path(job) for job in sweep.jobs if job.part == "run"]
        else:
            raise ValueError(f"a study reads folders with a manifest.json or a jobs.json, got {place}")
        for folder in folders:
            path, status = folder / "manifest.json", sweeps.read_status(folder)
            if path.is_file():
                found[folder.resolve()] = Point(folder, manifests.read(path))
            if not path.is_file() or (status and status.state != "done"):
                missing.append(f"{folder.name} ({status.state if status else 'no manifest'})")
    return list(found.values()), missing
