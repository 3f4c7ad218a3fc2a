"""What the report of a sweep shows: from the manifests of its points and the store that they name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sweetspot.logger.secret import typed
from sweetspot.report import answers, overrides, page, runs
from sweetspot.report.cost import cost
from sweetspot.report.effects import BASELINE, THAN_RANDOM, by_n, effects, positions
from sweetspot.report.groups import with_holm
from sweetspot.report.pool import of_sweep
from sweetspot.report.results import evaluation_result
from sweetspot.report.runs import Point, Settings
from sweetspot.report.words import as_measure, count, interval, pretty, signed
from sweetspot.statistics import ALPHA
from sweetspot.strategy import POINTS

SETTINGS = Settings(resamples=2000, seed=0)
POOLS = 3  # pools whose curves over n are drawn
FEW = 5  # training curves that are named one by one
GRID = 21  # pairs of the seven points
WHAT = {  # a measure is, and the head of its column
    "reward": ("Gain of the mean reward by the judge, which selected nothing,", "gain"),
    "win_rate": ("Win rate by the judge", "win rate (%)"),
    "instructions": ("Gain of the share of instructions (IFEval) that are followed", "gain (points)"),
}
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
    given = [job.overrides for job in jobs]
    of_setting = {Path(job.name): setting for job, setting in zip(jobs, overrides.settings(given), strict=True)}
    points = [Point(Path(job.name), job.manifest) for job in jobs if job.manifest and _readable(job.manifest)]
    measure, called = runs.measure_of(points), overrides.names(given, [job.name for job in jobs])
    groups = _comparable(points, measure, of_setting)
    rows, apart = _rows(groups, measure)
    pool = of_sweep(next(iter(_largest_pools(points)), None), points, sweep.texts)
    compared = answers.of_sweep(rows, groups, measure) if sweep.texts else []
    texts = [text for shown in (pool["shown"], *(one[2] for one in compared)) for one in shown for text in one.texts]
    return {
        "sweep": replace(sweep, command=typed(sweep.command)),
        "evaluations": list(names),
        "points": [_point(job, name, list(names)) for job, name in zip(jobs, called, strict=True)],
        "bad": [job for job in jobs if job.reason and job.standing != "done"],
        "verdict": verdict(rows, jobs),
        "about": list(_about(rows, points, jobs)),
        "rows": sorted(rows, key=lambda row: -row["mean"]),
        "apart": apart,
        "what": WHAT[measure],
        "show": as_measure(measure),
        "baseline": rows[0]["baseline"] if rows else "",
        "tested": sum("than_random_p_holm" in row for row in rows),
        "cost": cost(sweep.manifests, sweep.price),
        "lineage": list(_lineage(sweep, points)),
        "pools": list(_pools(points)),
        **_figures(rows, points, measure, of_setting),
        **pool,
        "answers": [(what, _name(row), shown) for what, row, shown in compared],
        "limit": page.fitting(texts),
    }


def _rows(groups: Mapping[str, Sequence[Point]], measure: str) -> tuple[list[Row], list[str]]:
    """What the policies are worth, and why those of a setting are not told: they differ in more than they should. All
    tests against the random pair, whatever the setting, are one family, since they are shown and counted as one."""
    rows: list[Row] = []
    apart: list[str] = []
    for setting, group in groups.items():
        try:
            rows += [{**row, "setting": setting, "n": group[0].n} for row in effects(group, measure, SETTINGS)]
        except ValueError as error:
            apart.append(str(error))
    return with_holm(rows, THAN_RANDOM[BASELINE]), apart


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
    show = signed if prefix else as_measure(row["measure"])
    return f"{show(row[prefix + 'mean'])} ({interval(row[prefix + 'low'], row[prefix + 'high'], show)})"


def _done(jobs: Sequence[Job]) -> str:
    return f"{sum(job.standing == 'done' for job in jobs)} of {len(jobs)} points are done"


def _name(row: Mapping[str, Any]) -> str:
    return pretty(row["strategy"]) + (f" with {row['setting']}" if row["setting"] else "")


def _readable(manifest: Mapping[str, Any]) -> bool:
    """Whether the store still has what the manifest names."""
    store = manifest.get("store")
    return store is not None and all((Path(store) / place).exists() for _, _, place in runs.artefacts(manifest))


def _evaluated(points: Sequence[Point], measure: str) -> list[Point]:
    there = any(runs.evaluation(point, measure) for point in points)
    return runs.having(points, "evaluation", measure) if there else []


def _comparable(points: Sequence[Point], measure: str, of: Mapping[Path, str]) -> dict[str, list[Point]]:
    """The evaluated runs by their setting; those that were judged on other prompts of the same setting stand apart."""
    groups = runs.grouped(_evaluated(points, measure), lambda point: (of[point.folder], _prompts(point, measure)))
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
