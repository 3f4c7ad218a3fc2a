"""PURE: what a sweep will make and reuse, and what that takes in hours, disk and money."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sweetspot.sweep.rates import ASSUMPTION, Calibration, Kind

STAGES: tuple[str, ...] = ("prepare", "sample", "score", "reference", "train", "evaluate", "start and end")
SPREAD = ("sample", "score", "train")  # kinds of work that all devices of a job divide among themselves
SHOWN = ("stage", "makes", "reuses", "hours", "device-hours", "disk")


@dataclass(frozen=True)
class Need:
    """What a job needs in one of its stages.

    Attributes:
        stage: one of STAGES.
        kind: whose rate it takes.
        of: as `rates.label` says it.
        parts: responses in each part that is to be there; two jobs that need the same part give it the same name.
        there: the parts that the store has.
        tokens: of a response, in the mean.
        unit: what the parts are ("tiles").
        divided: whether jobs that need a part at once divide the parts among themselves. Else one makes it and the
            others wait, or each makes it for itself.
    """

    stage: str
    kind: Kind
    of: str
    parts: Mapping[str, float]
    there: frozenset[str]
    tokens: float
    unit: str
    divided: bool = False


@dataclass
class Spent:
    """What a stage takes in all jobs: parts and responses that are made, parts that are reused; seconds summed over the
    jobs, and those times their devices; bytes."""

    made: dict[str, float] = field(default_factory=dict[str, float])
    reused: set[str] = field(default_factory=set[str])
    unit: str = ""
    seconds: float = 0.0
    device_seconds: float = 0.0
    bytes: float = 0.0


class Forecast:
    """Adds up what jobs will take, in the order in which they are submitted.

    Args:
        calibration: how fast work goes.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.stages = {name: Spent() for name in STAGES}
        self.cautions: dict[str, None] = {}
        self.longest = 0.0  # seconds of the longest job
        self._made: set[tuple[Kind, str]] = set()
        self._counted: set[tuple[Kind, str]] = set()

    def add(self, jobs: Sequence[Sequence[Need]], at_once: int, devices: int) -> None:
        """Count jobs that run after those that were added before.

        Args:
            jobs: what each needs, in the order of its stages.
            at_once: jobs that run together; they find nothing of one another's when they begin.
            devices: of a job.
        """
        for start in range(0, len(jobs), at_once):
            wave = [list(_once(needs)) for needs in jobs[start : start + at_once]]
            wanting: Counter[tuple[Kind, str]] = Counter(
                (need.kind, name) for needs in wave for need in needs if need.divided for name in self._open(need)
            )
            for needs in wave:
                seconds = sum(self._count(need, wanting, devices) for need in needs)
                self.longest = max(self.longest, seconds + self._begin(devices))
            self._made |= {(need.kind, name) for needs in wave for need in needs for name in need.parts}

    def _open(self, need: Need) -> dict[str, float]:
        return {
            name: responses
            for name, responses in need.parts.items()
            if name not in need.there and (need.kind, name) not in self._made
        }

    def _count(self, need: Need, wanting: Mapping[tuple[Kind, str], int], devices: int) -> float:
        """Add what one job takes in one stage; returns its seconds."""
        spent, todo = self.stages[need.stage], self._open(need)
        if need.unit:
            spent.unit = need.unit
            spent.reused |= need.there & need.parts.keys()
        if not todo:
            return 0.0
        rate = self.calibration.find(need.kind, need.of)
        if told := self.calibration.caution(need.kind, need.of):
            self.cautions[told] = None
        share = sum(responses / wanting.get((need.kind, name), 1) for name, responses in todo.items())
        own = max(share, max(todo.values())) if need.divided else share  # whoever waits, waits for a whole part
        seconds = rate.start + rate.per_token * own * need.tokens / (devices if need.kind in SPREAD else 1)
        spent.seconds += seconds
        spent.device_seconds += seconds * devices
        counted = {name: responses for name, responses in todo.items() if (need.kind, name) not in self._counted}
        self._counted |= {(need.kind, name) for name in counted}
        if need.unit:
            spent.made |= counted
        spent.bytes += rate.bytes_per_token * need.tokens * sum(counted.values()) + rate.bytes_each * len(counted)
        return seconds

    def _begin(self, devices: int) -> float:
        """Add what a job takes beside its stages; returns the seconds."""
        spent, seconds = self.stages["start and end"], self.calibration.find("job", "job").start
        spent.seconds += seconds
        spent.device_seconds += seconds * devices
        return seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Of each stage, summed over the jobs."""
        return {name: spent.seconds for name, spent in self.stages.items()}

    @property
    def device_hours(self) -> float:
        """Of all stages."""
        return sum(spent.device_seconds for spent in self.stages.values()) / 3600


def _once(needs: Sequence[Need]) -> Iterator[Need]:
    """What a job needs, each part in the first stage that needs it."""
    seen: set[tuple[Kind, str]] = set()
    for need in needs:
        yield replace(need, parts={name: n for name, n in need.parts.items() if (need.kind, name) not in seen})
        seen |= {(need.kind, name) for name in need.parts}


def lines(forecast: Forecast, price: float | None, calibration: str) -> Iterator[str]:
    """The forecast as it is printed.

    Args:
        forecast: of a sweep.
        price: of a device-hour, in the user's currency; None = not told.
        calibration: the file that was read, or would be.
    """
    table = [list(SHOWN), *(_row(name, spent) for name, spent in forecast.stages.items())]
    widths = [max(len(row[column]) for row in table) for column in range(len(SHOWN))]
    for row in table:
        left = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        yield "  ".join([*left, *(cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True))])
    hours = forecast.device_hours
    total = sum(spent.bytes for spent in forecast.stages.values())
    cost = "" if price is None else f", {hours * price:,.2f} at {price:g} a device-hour"
    longest = f"the longest job {forecast.longest / 60:.1f} minutes"
    yield f"in all    {_hours(hours)} device-hours{cost}; {_bytes(total)}; {longest}"
    if forecast.calibration.rates:
        yield f"measured  {forecast.calibration.measured} ({calibration})"
    else:
        yield f"assumed   {ASSUMPTION}; to measure: python -m sweetspot.sweep calibrate (there is no {calibration})"
    yield from (f"caution   {one}" for one in forecast.cautions)


def _row(name: str, spent: Spent) -> list[str]:
    return [
        name,
        _parts(len(spent.made), sum(spent.made.values()), spent.unit),
        _parts(len(spent.reused - spent.made.keys()), 0, spent.unit),
        _hours(spent.seconds / 3600),
        _hours(spent.device_seconds / 3600),
        _bytes(spent.bytes) if spent.bytes else "-",
    ]


def _parts(count: int, responses: float, unit: str) -> str:
    if not count:
        return "-"
    return f"{count:,} {unit}" + (f", {responses:,.0f} responses" if responses else "")


def _hours(hours: float) -> str:
    return f"{hours:,.3f}" if hours < 1 else f"{hours:,.1f}"


def _bytes(count: float) -> str:
    power = 0
    while count >= 1000 and power < 4:
        count, power = count / 1000, power + 1
    return f"{count:.1f} {('B', 'KB', 'MB', 'GB', 'TB')[power]}"
