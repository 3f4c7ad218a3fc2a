"""Launch a sweep: check it, go on where a sweep of the same axes is, submit, and follow the jobs to their ends."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from sweetspot import provenance
from sweetspot.component import build
from sweetspot.sweep import collect
from sweetspot.sweep import folder as folders
from sweetspot.sweep.check import NoClusterError, check, check_writable
from sweetspot.sweep.folder import Job, Sweep
from sweetspot.sweep.forecast import lines
from sweetspot.sweep.launcher import Launcher, Local, Slurm
from sweetspot.sweep.outcome import Outcome, outcomes
from sweetspot.sweep.planning import forecast
from sweetspot.sweep.points import Composed, Known, axes, check_axes, composed, key_of, own, point_name, pool_points
from sweetspot.sweep.submit import submit
from sweetspot.visible import one_line, visible

POLL_SECONDS = 2.0
GIVEN_UP_SECONDS = 120  # SLURM may be away for so long


class SweepError(RuntimeError):
    """Jobs of a sweep failed; the text says how many and where to look."""


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Attributes:
        folder: the sweep's.
        command: as it was typed.
        program: run.py.
        launcher: the composed group, `_target_` included.
        task: the overrides as they were typed, sweeps not yet spread out.
        points: the overrides of each job.
        compose: gives the plain configuration of a point, hydra's part left out.
        check: raises ValueError for a configuration that a run would refuse.
        search: places with choices of one's own that the command line named.
    """

    folder: Path
    command: str
    program: Path
    launcher: Mapping[str, Any]
    task: Sequence[str]
    points: Sequence[Sequence[str]]
    compose: Callable[[Sequence[str]], Mapping[str, Any]]
    check: Callable[[Mapping[str, Any]], object]
    search: Sequence[str] = ()


def launch(asked: Asked) -> Sweep:
    """Submit the jobs of a sweep that are not done, and follow them where the launcher waits.

    Raises:
        ValueError: one line, for a sweep that is refused; nothing is submitted then.
        SweepError: when jobs have failed; all others have ended by then.
    """
    launcher: Launcher = build(asked.launcher, "launcher")
    keys = varying(asked)
    known = _accepted(asked, keys, launcher)
    sweep = written(asked, keys, launcher, known)
    standing = outcomes(sweep)
    keys_now = _keys(sweep, known)
    wanted = [job.number for job in sweep.jobs if _wanted(job, standing[job.number], keys_now.get(job.number))]
    _tell(sweep, standing, wanted)
    jobs = [job for job in sweep.jobs if job.number in wanted]
    older = [job.overrides for job in jobs if job.overrides not in known]  # pools, and points of a sweep before
    known = {**known, **composed(older, asked.compose, asked.check)}
    sweep = keyed(sweep, standing, wanted, known)
    found, left_out = forecast(jobs, known, launcher)
    for line in (
        *lines(found, launcher.price_per_device_hour, launcher.calibration),
        *(f"left out  {one}" for one in left_out),
    ):
        print(visible(line), flush=True)
    if launcher.dry_run:
        return sweep
    sweep.folder.mkdir(parents=True, exist_ok=True)
    provenance.keep(sweep.folder, [asked.command])
    provenance.link_latest(sweep.folder)
    if wanted:
        folders.write_forecast(sweep.folder, wanted, found.seconds)
    sweep = submit(sweep, wanted)
    if isinstance(launcher, Local) or launcher.wait:
        follow(sweep)
    else:
        print(f"submitted; python -m sweetspot.sweep status {asked.folder}", flush=True)
    return sweep


def _accepted(asked: Asked, keys: Sequence[str], launcher: Launcher) -> Known:
    """The points as they compose, of which one at least is sound.

    Raises:
        ValueError: one line, for a sweep that is refused.
    """
    if not asked.points:
        swept = [one for one in asked.task if key_of(one) in axes(asked.task)]
        raise ValueError(f"a sweep must have at least one point, got none from {' '.join(swept) or 'the sweeper'}")
    if swept := [key for key in axes(asked.task) if not own([key])]:
        raise ValueError(f"{swept[0]}: an axis of a sweep must change what a run makes, and this says where it runs")
    known = composed(asked.points, asked.compose, asked.check)
    sound = [one for one in known.values() if isinstance(one, Composed)]
    if not sound:
        raise ValueError(str(next(iter(known.values()))))
    check_axes(known, keys)
    places = {"store": Path(str(sound[0].config["store"])), "hydra.sweep.dir": asked.folder}
    for name, place in places.items():
        check_writable(name, place)
    if isinstance(launcher, Slurm):
        _hold(launcher, {**places, "run.py": asked.program.parent})
    return known


def _hold(launcher: Slurm, folders: dict[str, Path]) -> None:
    """Hold the request against the cluster; where none answers, a plan is made all the same and says so."""
    try:
        check(launcher, folders)
    except NoClusterError as error:
        if not launcher.dry_run:
            raise
        print(visible(f"caution   the request is not held against a cluster: {error}"), flush=True)


def varying(asked: Asked) -> list[str]:
    """The keys in which the points differ: the axes of the command line, or what the sweeper adds to it."""
    constant = {key_of(one) for one in asked.task} - set(axes(asked.task))
    return list(dict.fromkeys(key_of(one) for point in asked.points for one in point if key_of(one) not in constant))


def written(asked: Asked, keys: Sequence[str], launcher: Launcher, known: Known) -> Sweep:
    """The sweep that is asked for, with the jobs that its folder has already; nothing is written yet.

    Args:
        asked: for.
        keys: its axes.
        launcher: where it runs.
        known: its points, composed.
    """
    plan = launcher.plan if isinstance(launcher, Slurm) else "simple"
    before = folders.read(asked.folder).jobs if (asked.folder / "jobs.json").exists() else ()
    there = {frozenset(job.overrides): job for job in before if job.part == "run"}
    number = max((job.number for job in before), default=-1) + 1
    added: list[Job] = []
    for point in asked.points:
        if frozenset(point) not in there:
            name = point_name([one for one in point if key_of(one) in keys]) if keys else "point"
            added.append(Job(number + len(added), name, tuple(point)))
            there[frozenset(point)] = added[-1]
    pools: list[Job] = []
    if isinstance(launcher, Slurm) and launcher.plan == "pooled":
        pools = _pools(known, before, number + len(added), launcher.pool_jobs)
    merged = [*before, *pools, *added]
    return Sweep(
        folder=asked.folder.resolve(),
        command=asked.command,
        created=folders.now(),
        program=str(asked.program),
        directory=str(Path.cwd()),
        launcher=asked.launcher,
        plan=plan,
        commit=provenance.commit(),
        jobs=tuple(sorted(merged, key=lambda job: job.part)),
        search=tuple(asked.search),
    )


def _pools(known: Known, before: Sequence[Job], number: int, count: int) -> list[Job]:
    """The jobs that fill the shared pools and are not in the sweep yet, numbered from `number`."""
    there = [job for job in before if job.part == "pool"]
    old = {job.overrides for job in there}
    wanted = [one for one in pool_points(known) if one not in old for _ in range(count)]
    return [Job(number + place, f"pool-{len(there) + place}", one, part="pool") for place, one in enumerate(wanted)]


def follow(sweep: Sweep) -> None:
    """Wait until no job of the sweep waits or runs, telling what changes; then write its tables and its report.

    Raises:
        SweepError: when jobs have failed or were stopped.
    """
    told = ""
    while True:
        now = _asked_again(sweep)
        words = ", ".join(
            f"{count} {name}" for name, count in sorted(Counter(one.standing for one in now.values()).items())
        )
        if words != told:
            print(f"jobs: {words}", flush=True)
            told = words
        if not any(one.lives for one in now.values()):
            break
        time.sleep(POLL_SECONDS)
    bad = [job for job in sweep.jobs if now[job.number].standing != "done"]
    for job in bad:
        one = now[job.number]
        where = sweep.log(job) or sweep.path(job) / "error.txt"
        Console(stderr=True).print(
            one_line(f"{one.standing}  {job.name}: {one.reason} (log: {where})"),
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
    page = collect.write(sweep, now)[-1]
    print(f"sweep     {sweep.folder}\nreport    {page}", flush=True)
    if bad:
        again = f"python -m sweetspot.sweep resubmit {sweep.folder}"
        raise SweepError(f"{len(bad)} of {len(sweep.jobs)} jobs failed; to repeat them: {again}")


def _asked_again(sweep: Sweep) -> dict[int, Outcome]:
    """The outcomes, from a SLURM that may be away for a moment."""
    end = time.monotonic() + GIVEN_UP_SECONDS
    while True:
        try:
            return outcomes(sweep)
        except ValueError:
            if time.monotonic() > end:
                raise
            time.sleep(POLL_SECONDS)


def keyed(sweep: Sweep, standing: Mapping[int, Outcome], wanted: Sequence[int], known: Known) -> Sweep:
    """The sweep with the keys, where they are known, of the jobs that are submitted now, and of those that are done and
    have none: by it a later edit is noticed."""
    first = [job.number for job in sweep.jobs if job.key is None and standing[job.number].standing == "done"]
    keys = _keys(sweep, known)
    return sweep.with_jobs(
        {
            job.number: replace(job, key=keys[job.number])
            for job in sweep.jobs
            if job.number in {*wanted, *first} & {*keys}
        }
    )


def _keys(sweep: Sweep, known: Known) -> dict[int, str]:
    """What jobs would make now, by number, where they are among the points."""
    makes = {frozenset(one): found.key for one, found in known.items() if isinstance(found, Composed)}
    return {job.number: makes[one] for job in sweep.jobs if (one := frozenset(job.overrides)) in makes}


def _wanted(job: Job, one: Outcome, key: str | None) -> bool:
    """Whether it is to be submitted: it has not been done, or what it makes is another thing by now, because a file of
    conf/ or a component of somebody's own was edited."""
    changed = None not in (job.key, key) and job.key != key
    return not one.lives and (one.standing != "done" or changed)


def _tell(sweep: Sweep, standing: Mapping[int, Outcome], wanted: Sequence[int]) -> None:
    kind = str(sweep.launcher["_target_"]).rpartition(".")[2]
    there = Counter(one.standing for number, one in standing.items() if number not in wanted)
    rest = "".join(f", {count} {name} already" for name, count in sorted(there.items()))
    print(f"sweep     {sweep.folder}\njobs: {len(wanted)} to submit ({kind}){rest}", flush=True)
    for job in sweep.jobs:
        if job.number in wanted:
            print(f"  {job.number:3}  {job.name}", flush=True)
