"""The points of a sweep: their names, and whether each axis changes what a run makes."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweetspot.component import build, key, refusal
from sweetspot.report.groups import BUDGET

LONGEST = 120  # characters of a name; a file name may have 255 bytes
POOLED = ("model", "data", "sampler", "reward_model", "seed")  # what decides samples and rewards, but for n
ELSEWHERE = ("launcher", "launch", "logger", "store", "remake_corrupt")  # where and how fast, not what


def axes(overrides: Sequence[str]) -> list[str]:
    """The keys that sweep ("n_samples"), in the order of the command line.

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

    An adaptive budget is part of it, though no part of a sampler's identity: it decides which samples of the pool a run
    selects from, and not what they are.

    Raises:
        ValueError: when a component refuses its fields.
    """
    parts = {name: _identity(part, name) for name, part in config.items() if name not in ELSEWHERE}
    sampler = config.get("sampler", {})
    if sampler.get("budget") == "adaptive":
        parts["budget"] = {name: sampler[name] for name in BUDGET}
    return key(parts)


@dataclass(frozen=True)
class Composed:
    """A point's plain configuration, and the key of its results."""

    config: Mapping[str, Any]
    key: str


Known = Mapping[tuple[str, ...], Composed | str]  # points with their configurations, or with why they are refused


def composed(
    points: Sequence[Sequence[str]],
    compose: Callable[[Sequence[str]], Mapping[str, Any]],
    check: Callable[[Mapping[str, Any]], object],
) -> Known:
    """Each point composed once, or why it is refused, which its job will report too.

    Args:
        points: the overrides of each.
        compose: gives the plain configuration of a point.
        check: raises ValueError for one that a run would refuse.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    found: dict[tuple[str, ...], Composed | str] = {}
    for point in points:
        try:
            config = compose(point)
            check(config)
            found[tuple(point)] = Composed(config, result_key(config))
        except (ValueError, HydraException, OmegaConfBaseException, YAMLError) as error:
            found[tuple(point)] = refusal(error)
    return found


def pool_points(known: Known) -> list[tuple[str, ...]]:
    """The overrides of runs that fill the pools which the points share, up to the scores of their largest n.

    Points that differ in strategy, training or evaluation share a pool; a pool that serves one point alone is left to
    it, and so is a point that does not compose.
    """
    groups: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    for point, one in known.items():
        if isinstance(one, Composed):
            shared = key({name: _identity(one.config[name], name) for name in POOLED})
            groups.setdefault(shared, []).append((one.config["n_samples"], point))
    largest = [max(group, key=lambda one: one[0])[1] for group in groups.values() if len(group) > 1]
    return [(*(one for one in point if key_of(one) != "until"), "until=score") for point in largest]


def check_axes(known: Known, keys: Sequence[str]) -> None:
    """Hold every axis against the identity of the run, each at the first values of the others.

    A value that does not compose is left to its job to report.

    Args:
        known: the points, composed.
        keys: the axes.

    Raises:
        ValueError: for an axis of which two values make the same run.
    """
    first = next(iter(known))
    for axis in keys:
        seen: dict[str, str] = {}
        for point, one in known.items():
            if isinstance(one, str) or not _same_but(point, first, axis):
                continue
            value = next(word for word in point if key_of(word) == axis)
            if (other := seen.setdefault(one.key, value)) != value:
                raise ValueError(
                    f"{axis}: an axis of a sweep must change what a run makes; {other} and {value} make the same"
                )


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
