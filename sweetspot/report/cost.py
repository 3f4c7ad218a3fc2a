"""What runs took: hours of devices by stage, and money where a price is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Manifest = Mapping[str, Any]
BETWEEN = "start and end"  # of a run, beside its stages


@dataclass
class Spent:
    """What a stage took in all runs.

    made, reused: of its units. seconds: summed over the runs. device_hours: those times the devices of each run; a
    device is a GPU, or a machine without GPUs.
    """

    stage: str
    unit: str
    made: int = 0
    reused: int = 0
    seconds: float = 0.0
    device_hours: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What runs took.

    Attributes:
        stages: by name, in the order of a run.
        seconds, device_hours: of all.
        price: of a device-hour, in the user's currency; None = not told.
        judging: US dollars for the answers of judges that are paid, each evaluation once; None where none was.
    """

    stages: list[Spent]
    seconds: float
    device_hours: float
    price: float | None
    judging: float | None

    def of(self, device_hours: float) -> float | None:
        """The price of so many device-hours, where it is known."""
        return None if self.price is None else device_hours * self.price


def cost(manifests: Sequence[Manifest], price: float | None) -> Cost:
    """What the runs of these manifests took.

    Args:
        manifests: as in manifest.json. Of a run that was stopped and went on: what its last turn did.
        price: of a device-hour.
    """
    found: dict[str, Spent] = {}
    for manifest in manifests:
        devices = manifest.get("devices", 1)  # manifests of earlier versions do not tell
        stages: list[Manifest] = manifest.get("stages", [])
        rest = max(0.0, manifest["seconds"] - sum(stage["seconds"] for stage in stages))
        last: Manifest = {"name": BETWEEN, "unit": "", "made": 0, "reused": 0, "seconds": rest}
        for stage in [*stages, last]:
            spent = found.setdefault(stage["name"], Spent(stage["name"], stage["unit"]))
            spent.made += stage["made"]
            spent.reused += stage["reused"]
            spent.seconds += stage["seconds"]
            spent.device_hours += stage["seconds"] * devices / 3600
    between = found.pop(BETWEEN, None)
    listed = [*found.values(), *([between] if between else [])]
    hours = sum(spent.device_hours for spent in listed)
    return Cost(listed, sum(spent.seconds for spent in listed), hours, price, _judging(manifests))


def _judging(manifests: Sequence[Manifest]) -> float | None:
    paid = {
        one["key"]: one["spent"]["price_of_answers"]
        for manifest in manifests
        for one in manifest["evaluations"]
        if one.get("spent")
    }
    return sum(paid.values()) if paid else None
