"""Groups of runs that differ in their seed alone: what they are worth, and the paired differences of two groups."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from sweetspot.component import deciding
from sweetspot.report import runs
from sweetspot.report.runs import Floats, Point, Settings
from sweetspot.statistics import PERMUTATIONS, holm, sign_flip_p

MAKING = ("model", "data", "sampler", "reward_model", "strategy", "n_samples", "ignore_duplicates", "dpo", "rounds")
BUDGET = ("budget", "pilot_samples", "mean_samples", "gain_threshold", "tail")  # of a sampler: which samples it draws
JUDGING = ("model.", "sampler.", "eval.", "judge.")
UNCOUNTED = {  # of what does not change a prompt's figure, or is seen in the prompts
    *("data.held_out_limit", "model.trust_remote_code"),
    *("eval.resamples", "eval.kl_samples", "eval.judge_name", "eval.gamed_path"),
}
SHOWN = 60  # characters of a setting's value in an error


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, and what each is worth, which is read once.

    Attributes:
        changes: `runs.changes` by seed.
        settings: what made the results but the seed, by key of the configuration.
    """

    points: Sequence[Point]
    measure: str
    changes: Mapping[int, Mapping[str, float]]
    settings: Mapping[str, str]

    @property
    def prompts(self) -> list[str]:
        """The ids of the prompts on which the policies were judged, sorted."""
        return sorted(next(iter(self.changes.values())))

    def values(self, seeds: Sequence[int] | None = None) -> Floats:
        """The mean over these seeds, or over all, in the order of the prompts' ids [prompts]."""
        names, used = self.prompts, self.changes if seeds is None else seeds
        return np.mean([[self.changes[seed][name] for name in names] for seed in used], axis=0)


def group(points: Sequence[Point], measure: str) -> Group:
    """Runs whose prompts' figures are to be averaged over their seeds.

    Raises:
        ValueError: one line, when they differ in more than their seed, or were not judged on the same prompts.
    """
    told = f"{points[0].strategy}, n = {points[0].n}, seeds {', '.join(str(point.seed) for point in points)}"
    of = [settings_of(point, measure) for point in points]
    other = differing(of)
    if other or len({point.seed for point in points}) < len(points):
        raise ValueError(
            f"runs that are averaged must differ in their seed alone, got {told}{' with ' * bool(other)}{other}: read "
            "other settings apart"
        )
    changes = {point.seed: runs.changes(point, measure) for point in points}
    if len({tuple(sorted(one)) for one in changes.values()}) > 1:
        raise ValueError(f"runs that are averaged must be judged on the same prompts, got others for {told}")
    return Group(points, measure, changes, of[0])


def effect(own: Group, settings: Settings) -> dict[str, Any]:
    """What the runs are worth, as columns: the measure, against whom, the seeds, the mean with its interval over
    prompts, for these seeds, and `seed_sd`, the standard deviation of the seeds' means; None with one seed."""
    means = [np.mean(list(one.values())) for one in own.changes.values()]
    names = {"measure": own.measure, "baseline": runs.baseline(own.points[0], own.measure)}
    return {
        **names,
        "seeds": runs.seeds(own.points),
        **runs.interval(own.values(), settings),
        "seed_sd": float(np.std(means, ddof=1)) if len(means) > 1 else None,
    }


def against(own: Group, other: Group, settings: Settings, prefix: str) -> dict[str, Any]:
    """The paired difference of two groups over the seeds that both have, as columns: mean, interval, prompts, the
    p-value of random signs, and the seeds; none without a common seed.

    Raises:
        ValueError: one line, when the two were not judged alike, or not on the same prompts.
    """
    names = " and ".join(f"{one.points[0].strategy} (n = {one.points[0].n})" for one in (own, other))
    if apart := differing([_judging(one) for one in (own, other)]):
        raise ValueError(f"policies that are compared must be judged alike, got {apart} for {names}")
    if own.prompts != other.prompts:
        raise ValueError(f"policies that are compared must be judged on the same prompts, got others for {names}")
    common = sorted(own.changes.keys() & other.changes.keys())
    if not common:
        return {}
    difference = own.values(common) - other.values(common)
    return {
        **runs.interval(difference, settings, prefix),
        f"{prefix}p": sign_flip_p(difference, PERMUTATIONS, settings.seed),
        f"{prefix}seeds": ", ".join(map(str, common)),
    }


def _judging(of: Group) -> dict[str, str]:
    """The settings that decide how the policies are judged, whatever they were trained on."""
    budget = {f"sampler.{name}" for name in BUDGET}
    return {key: value for key, value in of.settings.items() if key.startswith(JUDGING) and key not in budget}


def with_holm(rows: Sequence[Mapping[str, Any]], prefix: str) -> list[dict[str, Any]]:
    """The rows; those that have a p-value of this prefix have it also adjusted over all of them (Holm)."""
    adjusted = iter(holm([row[f"{prefix}p"] for row in rows if f"{prefix}p" in row]))
    return [{**row, **({f"{prefix}p_holm": float(next(adjusted))} if f"{prefix}p" in row else {})} for row in rows]


def settings_of(point: Point, measure: str) -> dict[str, str]:
    """What made a run's result but its seed, by key of the configuration: what changes speed alone is left out."""
    config, found = point.config, runs.evaluation(point, measure)
    parts = {name: deciding(config.get(name)) for name in MAKING}
    sampler, dpo = config.get("sampler", {}), config.get("dpo", {})
    drawn = BUDGET if sampler.get("budget") == "adaptive" else BUDGET[:1]
    parts["sampler"] = {**parts["sampler"], **{name: sampler.get(name) for name in drawn}} if sampler else None
    if config.get("rounds", 1) > 1:
        parts["dpo"] = {**parts["dpo"], "reference_model": dpo.get("reference_model")}
    parts["eval"] = deciding(config.get("also", {}).get(found.get("name"), config.get("eval")))
    parts["judge"] = {name: found.get(name) for name in ("kind", "judge_key", "baseline")}
    return {key: value for key, value in _flat(parts) if key not in UNCOUNTED and not key.endswith(".seed")}


def _flat(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """(key, value) of the leaves; null is the same as no key."""
    if isinstance(value, Mapping):
        for name, part in cast("Mapping[str, Any]", value).items():
            yield from _flat(part, f"{at}.{name}" if at else name)
    elif value is not None:
        yield at, str(value)


def differing(settings: Sequence[Mapping[str, str]]) -> str:
    """In what settings differ ("dpo.beta 0.1 or 0.3; ..."); "" where they do not."""
    keys = dict.fromkeys(key for one in settings for key in one)
    values = {key: dict.fromkeys(one.get(key, "null") for one in settings) for key in keys}
    return "; ".join(f"{key} {' or '.join(_short(one) for one in of)}" for key, of in values.items() if len(of) > 1)


def _short(value: str) -> str:
    return value if len(value) <= SHOWN else f"{value[:SHOWN]}\N{HORIZONTAL ELLIPSIS}"
