"""The points of a sweep: their names, and whether each axis changes what a run makes."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sweetspot.component import build, key

LONGEST = 120  # characters of a name; a file name may have 255 bytes
POOLED = ("model", "data", "sampler", "reward_model", "seed")  # what decides samples and rewards, but for n
ELSEWHERE = ("launcher", "launch", "logger", "store", "remake_corrupt")  # where and how fast, not what


def axes(overrides: Sequence[str]) -> list[str]:
    """The keys that sweep ("n_samples"), in the order of the command line, hydra's and launcher's left out.

    Raises:
        HydraException: when an override cannot be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [one.get_key_element() for one in parsed if one.is_sweep_override()]


def own(overrides: Sequence[str]) -> list[str]:
    """The overrides of the run itself: without hydra's and the launcher's."""
    return [one for one in overrides if not re.match(r"[+~]*(launcher|hydra)([./@=]|$)", one)]


def point_name(overrides: Sequence[str]) -> str:
    """The name of a point ("n_samples=5,strategy=max_min"); different overrides have different names.

    What a file name should not hold becomes "-", and a name that is not the whole truth ends with a hash of it.
    """
    whole = ",".join(overrides)
    name = re.sub(r"[^A-Za-z0-9_.=,+@-]+", "-", whole)[:LONGEST].strip("-.")
    if name == whole and name:
        return name
    return f"{name}-{_hash(overrides)}" if whole else "default"


def sweep_name(overrides: Sequence[str]) -> str:
    """The name of a sweep: its axes, or the experiment that brings them, and a hash of what its jobs have in common.

    A second sweep with the same axes and the same rest has the same name, whatever the values, and so goes on where
    the first is.

    Args:
        overrides: of the command line, in any order.
    """
    kept = own(overrides)
    keys = axes(kept)
    common = sorted(one for one in kept if key_of(one) not in keys)
    name = re.sub(r"[^A-Za-z0-9_.+@-]+", "-", "+".join(sorted(keys)))[:LONGEST]
    name = name or next((one.partition("=")[2] for one in common if key_of(one) == "experiment"), "point")
    return f"{name}-{_hash([*sorted(keys), *common])}"


def run_name(overrides: Sequence[str]) -> str:
    """The name of a single run: its overrides."""
    return point_name(own(overrides))


def key_of(override: str) -> str:
    """What an override sets: "n_samples" of "n_samples=5", "+a.b" of "+a.b=1"."""
    return override.partition("=")[0]


def result_key(config: Mapping[str, Any]) -> str:
    """A hash of what of a composed configuration decides a run's results.

    Raises:
        ValueError: when a component refuses its fields.
    """
    return key({name: _identity(part, name) for name, part in config.items() if name not in ELSEWHERE})


def pool_points(
    points: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], Mapping[str, Any]]
) -> list[tuple[str, ...]]:
    """The overrides of runs that fill the pools which the points share, up to the scores of their largest n.

    Points that differ in strategy, training or evaluation share a pool; a pool that serves one point alone is left to
    it, and so is a point that does not compose.
    """
    groups: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    for point in points:
        if compose_key(point, compose) is None:
            continue
        config = compose(point)
        shared = key({name: _identity(config[name], name) for name in POOLED})
        groups.setdefault(shared, []).append((config["n_samples"], tuple(point)))
    largest = [max(group, key=lambda one: one[0])[1] for group in groups.values() if len(group) > 1]
    return [(*(one for one in point if key_of(one) != "until"), "until=score") for point in largest]


def check_axes(points: Sequence[Sequence[str]], keys: Sequence[str], compose: Callable[[Sequence[str]], Any]) -> None:
    """Hold every axis against the identity of the run, each at the first values of the others.

    A value that does not compose is left to its job to report.

    Args:
        points: the overrides of each job.
        keys: the axes.
        compose: gives the plain configuration of a point.

    Raises:
        ValueError: for an axis of which two values make the same run.
    """
    keys_at = {point: compose_key(point, compose) for point in _along_axes(points, keys)}
    for axis in keys:
        seen: dict[str, str] = {}
        for point, of in keys_at.items():
            value = next(one for one in point if key_of(one) == axis)
            if of is not None and seen.setdefault(of, value) != value and _same_but(point, points[0], axis):
                raise ValueError(
                    f"{axis}: an axis of a sweep must change what a run makes; {seen[of]} and {value} make the same"
                )


def compose_key(point: Sequence[str], compose: Callable[[Sequence[str]], Any]) -> str | None:
    """The key of a point's results; None when it does not compose."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        return result_key(compose(point))
    except (ValueError, HydraException, OmegaConfBaseException):
        return None


def _along_axes(points: Sequence[Sequence[str]], keys: Sequence[str]) -> list[tuple[str, ...]]:
    """The points that differ from the first one in one axis at most."""
    return [tuple(point) for point in points if any(_same_but(point, points[0], axis) for axis in keys)]


def _same_but(point: Sequence[str], other: Sequence[str], axis: str) -> bool:
    return all(a == b for a, b in zip(point, other, strict=True) if key_of(a) != axis)


def _identity(part: Any, at: str) -> Any:
    if not isinstance(part, Mapping):
        return part
    if "_target_" in part:
        from sweetspot.component import identity

        return identity(build(part, at))
    return {name: _identity(one, f"{at}.{name}") for name, one in part.items()}


def _hash(overrides: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(overrides).encode()).hexdigest()[:8]
