"""PURE: how the points of a sweep are told apart: by the overrides in which they differ."""

from collections.abc import Sequence

from sweetspot.component import key
from sweetspot.visible import encodable

POLICIES = ("strategy", "strategy.chosen", "strategy.rejected", "seed")  # what policies of one setting differ in
LONG = 60  # characters of an override's value that is told whole


def settings(given: Sequence[Sequence[str]]) -> list[str]:
    """What distinguishes each point from others beside its strategy and seed ("n_samples=32 dpo.beta=0.1")."""
    values = [dict(one.lstrip("+").split("=", 1) for one in own if "=" in one) for own in given]
    names = dict.fromkeys(name for one in values for name in one if name not in POLICIES)
    varied = [name for name in names if len({one.get(name) for one in values}) > 1]
    return [" ".join(f"{name}={_short(one[name])}" for name in varied if name in one) for one in values]


def names(given: Sequence[Sequence[str]], folders: Sequence[str]) -> list[str]:
    """The overrides in which each point differs from others, or its folder where it does not."""
    shared = set.intersection(*map(set, given)) if given else set[str]()
    own = [" ".join(_short(one) for one in overrides if one not in shared) for overrides in given]
    return [name or folder for name, folder in zip(own, folders, strict=True)]


def _short(value: str) -> str:
    """A value as it is told: a long one by its beginning and its key."""
    value = encodable(value)
    return value if len(value) <= LONG else f"{value[:40]}\N{HORIZONTAL ELLIPSIS}{key(value)}"
