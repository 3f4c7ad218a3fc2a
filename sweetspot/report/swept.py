"""What the report of a sweep shows: from the manifests of its points and the store that they name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweetspot.component import key as key_of
from sweetspot.report import runs
from sweetspot.report.cost import cost
from sweetspot.report.effects import BASELINE, by_n, effects, positions
from sweetspot.report.pool import of_sweep
from sweetspot.report.results import evaluation_result
from sweetspot.report.runs import Point, Settings
from sweetspot.report.words import count, interval, percent, pretty, signed
from sweetspot.statistics import ALPHA
from sweetspot.strategy import POINTS

SETTINGS = Settings(resamples=2000, seed=0)
POOLS = 3  # pools whose curves over n are drawn
FEW = 5  # training curves that are named one by one
GRID = 21  # pairs of the seven points
SEEDS = ("seed",)
STRATEGIES = ("strategy", "strategy.chosen", "strategy.rejected")
Row = dict[str, Any]


@dataclass(frozen=True)
class Swept:
    """What is known of a sweep as a whole.

    Attributes:
        command, created, commit: as it was typed, when, and the code; None outside git.
        price: of a device-hour, in the user's currency; None = not told.
        seconds: of each stage over the jobs that were submitted last (forecast, taken); None until they are done.
        manifests: of all jobs, those that fill the pool among them.
        stores: where the artefacts lie, as it is told.
        texts: whether prompts and responses are shown.
    """

    command: str
    created: str
    commit: str | None
    price: float | None
    seconds: Mapping[str, tuple[float, float]] | None
    manifests: Sequence[Mapping[str, Any]]
    stores: Sequence[str]
    texts: bool = True


@dataclass(frozen=True)
class Job:
    """A job of a sweep.

    Attributes:
        name: its folder, in the sweep's.
        standing, reason: how it stands, in a word, and why it is not done.
        log: where to look.
        page: its report.html from the sweep's folder; None without.
        overrides: of run.py.
        manifest: None where there is none yet.
    """

    name: str
    standing: str
    reason: str
    log: str
    page: str | None
    overrides: Sequence[str]
    manifest: Mapping[str, Any] | None


def facts(sweep: Swept, jobs: Sequence[Job]) -> Row:
    """All that the template asks for."""
    names = dict.fromkeys(one["name"] for job in jobs if job.manifest for one in job.manifest["evaluations"])
    settings = _settings(jobs)
    of_setting = {Path(job.name): setting for job, setting in zip(jobs, settings, strict=True)}
    points = [Point(Path(job.name), job.manifest) for job in jobs if job.manifest and _readable(job.manifest)]
    measure = runs.measure_of(points)
    rows: list[Row] = [
        {**row, "setting": setting, "n": group[0].n}
        for setting, group in _comparable(points, measure, of_setting).items()
        for row in effects(group, measure, SETTINGS)
    ]
    return {
        "sweep": sweep,
        "evaluations": list(names),
        "points": [_point(job, name, list(names)) for job, name in zip(jobs, _names(jobs), strict=True)],
        "bad": [job for job in jobs if job.reason and job.standing != "done"],
        "verdict": verdict(rows, jobs),
        "about": list(_about(rows, points, jobs)),
        "rows": sorted(rows, key=lambda row: -row["mean"]),
        "measure": measure,
        "baseline": rows[0]["baseline"] if rows else "",
        "tested": sum("than_random_p_holm" in row for row in rows),
        "cost": cost(sweep.manifests, sweep.price),
        "lineage": list(_lineage(sweep, points)),
        "pools": list(_pools(points)),
        **_figures(rows, points, measure, of_setting),
        **of_sweep(next(iter(_largest_pools(points)), None), points, sweep.texts),
    }


def _figures(rows: Sequence[Row], points: Sequence[Point], measure: str, of: Mapping[Path, str]) -> Row:
    """What can be drawn; None or [] where there is nothing to draw."""
    from sweetspot.report import sweep_figures as figures  # matplotlib takes a second to import

    by_setting = {row["setting"]: [one for one in rows if one["setting"] == row["setting"]] for row in rows}
    grids = {setting: own for setting, own in by_setting.items() if _is_grid(own)}
    lines = list(_curves(points, of))
    lines = [{**line, "shade": shade} for line, shade in zip(lines, figures.shades(lines), strict=True)]
    return {
        "forest": figures.forest("result", rows, measure) if rows else None,
        "heats": [
            (setting, figures.heat(f"grid{number}", own, runs.LEVEL[measure]))
            for number, (setting, own) in enumerate(grids.items(), 1)
        ],
        "by_n": [
            (point, max(row["prompts"] for row in curves), figures.by_n(f"pool{number}", curves))
            for number, point in enumerate(_largest_pools(points), 1)
            if (curves := by_n(point, positions(points), SETTINGS))
        ],
        "trained": figures.trained("trained", rows, measure) if len({row["n"] for row in rows}) > 1 else None,
        "training": figures.dynamics("training", lines) if lines else None,
        "lines": lines,
        "legend": list(_legend(lines)),
    }


def verdict(rows: Sequence[Row], jobs: Sequence[Job]) -> str:
    """The result of a sweep in one sentence, which claims no more than the tests."""
    if not rows:
        return _done(jobs)
    best = max(rows, key=lambda row: row["mean"])
    told = f"{_name(best)} is highest of {len(rows)}: {gain(best)} against {best['baseline']}"
    tested = [row for row in rows if "than_random_p_holm" in row]
    if not tested:
        return f"{told}."
    apart = sum(row["than_random_p_holm"] < ALPHA for row in tested)
    which = "none" if not apart else f"{apart} of {len(tested)}"
    return f"{told}; {which} can be told from the random pair."


def gain(row: Row, prefix: str = "") -> str:
    """A mean with its interval, in the measure's unit."""
    rate = row["measure"] == "win_rate"
    show = _rate if rate and not prefix else signed
    return f"{show(row[prefix + 'mean'])} ({interval(row[prefix + 'low'], row[prefix + 'high'], show)})"


def _rate(value: float) -> str:
    return percent(value / 100)


def _done(jobs: Sequence[Job]) -> str:
    return f"{sum(job.standing == 'done' for job in jobs)} of {len(jobs)} points are done"


def _name(row: Row) -> str:
    return pretty(row["strategy"]) + (f" with {row['setting']}" if row["setting"] else "")


def _readable(manifest: Mapping[str, Any]) -> bool:
    """Whether the store still has what the manifest names."""
    store = manifest.get("store")
    return store is not None and all((Path(store) / place).exists() for _, _, place in runs.artefacts(manifest))


def _settings(jobs: Sequence[Job]) -> list[str]:
    """What distinguishes each job from others beside its strategy and seed ("n_samples=32 dpo.beta=0.1")."""
    given = [dict(one.lstrip("+").split("=", 1) for one in job.overrides if "=" in one) for job in jobs]
    keys = dict.fromkeys(key for one in given for key in one if key not in (*STRATEGIES, *SEEDS))
    varied = [key for key in keys if len({one.get(key) for one in given}) > 1]
    return [" ".join(f"{key}={_short(one[key])}" for key in varied if key in one) for one in given]


def _short(value: str) -> str:
    """A value as it is told: a long one by its beginning and its key."""
    return value if len(value) <= 60 else f"{value[:40]}\N{HORIZONTAL ELLIPSIS}{key_of(value)}"


def _names(jobs: Sequence[Job]) -> list[str]:
    """The overrides in which each job differs from others, or its folder where they do not."""
    given = [set(job.overrides) for job in jobs]
    shared = set.intersection(*given) if given else set[str]()
    own = [" ".join(_short(one) for one in job.overrides if one not in shared) for job in jobs]
    return [name or job.name for name, job in zip(own, jobs, strict=True)]


def _evaluated(points: Sequence[Point]) -> list[Point]:
    return runs.having(points, "evaluation") if any(runs.judged(point) for point in points) else []


def _comparable(points: Sequence[Point], measure: str, of: Mapping[Path, str]) -> dict[str, list[Point]]:
    """The evaluated runs by their setting; those that were judged on other prompts of the same setting stand apart."""
    groups = runs.grouped(_evaluated(points), lambda point: (of[point.folder], _prompts(point, measure)))
    named: dict[str, list[Point]] = {}
    for setting, prompts in groups:
        sets = [one for other, one in groups if other == setting]
        more = f"prompts={sets.index(prompts) + 1}" if len(sets) > 1 else ""
        named[f"{setting} {more}".strip()] = groups[setting, prompts]
    return named


def _prompts(point: Point, measure: str) -> tuple[str, ...]:
    """The prompts on which a policy was judged: others are not compared with it."""
    return tuple(sorted(runs.changes(point, measure)))


def _is_grid(rows: Sequence[Row]) -> bool:
    """Whether most of the paper's 21 pairs are there, each once (not with another ddof as well)."""
    cells = [(row["chosen"], row["rejected"]) for row in rows if {row["chosen"], row["rejected"]} <= {*POINTS}]
    return GRID // 2 < len(cells) == len(set(cells))


def _largest_pools(points: Sequence[Point]) -> list[Point]:
    scored = [point for point in points if point.part("rewards").get("mean") is not None and point.n > 2]
    uniform = [point for point in scored if point.config["sampler"]["budget"] == "uniform"]
    return runs.pools(uniform)[:POOLS] if uniform else []


def _curves(points: Sequence[Point], of: Mapping[Path, str]) -> Iterator[Row]:
    """The training curve of each policy of the first seed, its pair's distance in z, and how it is named."""
    trained = runs.having(points, "policy") if any(point.part("policy") for point in points) else []
    for point in trained:
        if point.seed == trained[0].seed:
            pairs = point.part("pairs")
            apart = pairs["chosen_z"] - pairs["rejected_z"] if pairs["chosen_z"] is not None else None
            name = _name({"strategy": point.strategy, "setting": of[point.folder]})
            yield {"name": name, "random": point.strategy == BASELINE, "apart": apart, "history": runs.history(point)}


def _legend(lines: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """(colour variable, words) of the training curves: each by its name, or of many those of a shade together."""
    if len(lines) <= FEW:
        yield from ((line["shade"], line["name"]) for line in lines)
        return
    for colour, group in sorted(runs.grouped(lines, lambda line: line["shade"]).items(), reverse=True):
        z = [line["apart"] for line in group if line["apart"] is not None]
        yield colour, "random pair" if colour == "ink" else f"{min(z):.1f} to {max(z):.1f}"


def _about(rows: Sequence[Row], points: Sequence[Point], jobs: Sequence[Job]) -> Iterator[tuple[str, str]]:
    """The sweep's summary, in lines."""
    yield "points", _done(jobs)
    pools = {point.part("rewards").get("key") for point in points if point.part("rewards")}
    if pools:
        largest = max((point for point in points if point.part("rewards")), key=lambda point: point.n)
        samples = largest.part("samples")
        what = f"{count(samples['n_prompts'])} prompts, up to {count(samples['n_samples'])} responses each"
        yield "pool", f"{what}, scored by {largest.part('rewards')['reward_model']}"
        yield "shared", f"{count(len(pools))} pool{'s' if len(pools) > 1 else ''} for {count(len(points))} points"
    if points:
        yield "seeds", runs.seeds(points)
    ranked = sorted(rows, key=lambda row: -row["mean"])
    for what, row in (("highest", ranked[:1]), ("lowest", ranked[-1:])):
        yield from ((what, f"{_name(one)} {gain(one)}") for one in row if len(ranked) > 1)
    for row in rows:
        if row["strategy"] == BASELINE:
            yield "random pair", gain(row) + (f" with {row['setting']}" if row["setting"] else "")
    told = [row for row in ranked if row.get("than_random_p_holm", 1.0) < ALPHA]
    if any("than_random_p_holm" in row for row in rows):
        yield "told from random", ", ".join(_name(row) for row in told) or "none (5%, Holm)"
    below = [row for row in rows if row["high"] < runs.LEVEL[row["measure"]]]
    if rows:
        yield f"below {rows[0]['baseline']}", f"{count(len(below))} of {count(len(rows))} by their intervals"


def _point(job: Job, name: str, names: Sequence[str]) -> Row:
    """What the table of a sweep shows of a point; None and "" where it did not get so far."""
    manifest: Mapping[str, Any] = job.manifest or {"rounds": [], "evaluations": []}
    last = manifest["rounds"][-1] if manifest["rounds"] else {}
    found = {one["name"]: evaluation_result(one) for one in manifest["evaluations"]}
    parts = {name: last.get(name) for name in ("samples", "pairs", "policy")}
    results = [found.get(name, "") for name in names]
    return {"job": job, "name": name, **parts, "results": results, "seconds": manifest.get("seconds")}


def _lineage(sweep: Swept, points: Sequence[Point]) -> Iterator[tuple[str, str]]:
    yield "created", sweep.created
    commits = dict.fromkeys([point.manifest["commit"] for point in points] or [sweep.commit])
    yield "commit", ", ".join(commit or "not in a git working tree" for commit in commits)
    yield "seeds", runs.seeds(points)
    yield "store", ", ".join(sweep.stores)
    yield from (points[0].manifest["libraries"] if points else {}).items()


def _pools(points: Sequence[Point]) -> Iterator[tuple[str, str, int]]:
    """(kind, key, points that read it) of the artefacts that points share."""
    for kind in ("samples", "rewards", "pairs", "policy"):
        keys = [point.part(kind)["key"] for point in points if point.part(kind)]
        yield from ((kind, key, keys.count(key)) for key in dict.fromkeys(keys))
    scores = [(one["name"], one["key"]) for point in points for one in point.manifest["evaluations"]]
    yield from ((name, key, scores.count((name, key))) for name, key in dict.fromkeys(scores))
