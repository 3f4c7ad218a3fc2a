"""python experiments/benchmarks/forecast.py [--launcher local] [--repeats 3] [--calibration FILE] [OVERRIDE ...]

The forecast of a sweep beside what its stages took: seconds of each stage, summed over the jobs, and taken / forecast.
Each repeat calibrates by `sweetspot.sweep calibrate` with the sweep's own models (unless a file is given) and then
sweeps from an empty store: n_samples=16,32 strategy=max_min,mu_minus_sigma on the embedded models, or the OVERRIDEs.
launcher=slurm needs a cluster (slurm/local_cluster.sh); jobs that share cores are to be measured as many --at-once. The
load of other processes is printed; where it changes between calibration and sweep, so does the ratio, and only the
median of several repeats tells anything. The bar: each stage within 25%.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from sweetspot.sweep import folder as folders
from sweetspot.sweep.collect import stage_seconds

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ["n_samples=16,32", "strategy=max_min,mu_minus_sigma"]


def main() -> None:
    """Calibrate, sweep, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launcher", default="local", help="local, submitit_local, slurm or a profile of your own")
    parser.add_argument("--calibration", type=Path, help="what was measured before; else each repeat measures")
    parser.add_argument("--at-once", type=int, default=1, help="runs of a calibration that are made at once")
    parser.add_argument("--folder", type=Path, help="where store and sweep go (default: a folder that is deleted)")
    parser.add_argument("--repeats", type=int, default=1, help="sweeps, each from an empty store")
    parser.add_argument("overrides", nargs="*", help="of the sweep")
    asked = parser.parse_args()
    found: list[dict[str, tuple[float, float]]] = []
    once = ["--at-once", str(asked.at_once)]
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(asked.repeats):
            place = (asked.folder or Path(scratch)).resolve() / str(turn)
            place.mkdir(parents=True)
            file = asked.calibration or place / "calibration.json"
            if asked.calibration is None:
                _python(place, "-m", "sweetspot.sweep", "calibrate", "--file", str(file), *once, *asked.overrides)
            before = os.getloadavg()[0]
            own = [f"launcher={asked.launcher}", f"launcher.calibration={file.resolve()}", f"store={place}/store"]
            _python(place, "run.py", "-m", *own, f"hydra.sweep.dir={place}/sweep", *(asked.overrides or EMBEDDED))
            print(f"repeat {turn}: load {before:.1f} before the sweep, {os.getloadavg()[0]:.1f} at its end")
            found.append(_told(place / "sweep"))
            _print(found[-1])
    if len(found) > 1:
        print("taken / forecast: median (lowest to highest)")
        for name in found[0]:
            ratios = [taken / expected for one in found for expected, taken in [one[name]] if expected]
            if ratios:
                print(f"{name:14}{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def _python(place: Path, *words: str) -> None:
    """Run it with its words in log.txt."""
    with (place / "log.txt").open("a") as log:
        ended = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=log, stderr=log, check=False)
    if ended.returncode:
        raise SystemExit((place / "log.txt").read_text()[-3000:])


def _told(place: Path) -> dict[str, tuple[float, float]]:
    """Seconds of each stage: forecast, taken."""
    forecast = folders.read_forecast(place)
    taken = stage_seconds(folders.read(place), forecast[0]) if forecast else None
    if forecast is None or taken is None:
        raise SystemExit(f"{place}: no forecast, or jobs that are not done")
    found = {name: (seconds, taken[name]) for name, seconds in forecast[1].items()}
    return {**found, "in all": (sum(forecast[1].values()), sum(taken.values()))}


def _print(found: dict[str, tuple[float, float]]) -> None:
    _row(["stage", "forecast s", "taken s", "ratio"])
    for name, (expected, taken) in found.items():
        _row([name, f"{expected:.1f}", f"{taken:.1f}", f"{taken / expected:.2f}" if expected else "-"])


def _row(cells: Sequence[str]) -> None:
    print(f"{cells[0]:14}" + "".join(cell.rjust(12) for cell in cells[1:]), flush=True)


if __name__ == "__main__":
    main()
