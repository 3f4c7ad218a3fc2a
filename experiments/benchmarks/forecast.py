"""python experiments/benchmarks/forecast.py [--launcher local] [--calibration FILE] [--folder FOLDER] [OVERRIDE ...]

The forecast of a sweep beside what its stages took: seconds of each stage, summed over the jobs, forecast, actual, and
actual / forecast. Before it, a calibration by a run with the same overrides (a sweep of another size than the sweep),
unless a file is given. Without overrides the sweep is n_samples=16,32 strategy=max_min,mu_minus_2sigma on the embedded
models. launcher=slurm needs a cluster (slurm/local_cluster.sh). On a machine with other loads, believe nothing but
repeated ratios. The bar: each stage within 25%.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sweetspot.sweep import folder as folders
from sweetspot.sweep.collect import stage_seconds

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ["n_samples=16,32", "strategy=max_min,mu_minus_2sigma"]


def main() -> None:
    """Calibrate, sweep, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launcher", default="local", help="local, submitit_local, slurm or a profile of your own")
    parser.add_argument("--calibration", type=Path, help="what was measured before; else it is measured first")
    parser.add_argument("--folder", type=Path, help="where store and sweep go (default: a folder that is deleted)")
    parser.add_argument("--repeats", type=int, default=1, help="sweeps, each from an empty store")
    parser.add_argument("overrides", nargs="*", help="of the sweep")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = (asked.folder or Path(scratch)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        file = asked.calibration or place / "calibration.json"
        if asked.calibration is None:
            ours = [
                one for one in asked.overrides if not one.startswith(("n_samples=", "strategy", "eval", "launcher"))
            ]
            _python("-m", "sweetspot.sweep", "calibrate", "--file", str(file), *ours)
        for turn in range(asked.repeats):
            own = [
                f"launcher={asked.launcher}",
                f"launcher.calibration={file.resolve()}",
                f"store={place}/store-{turn}",
            ]
            _python("run.py", "-m", *(asked.overrides or EMBEDDED), *own, f"hydra.sweep.dir={place}/sweep-{turn}")
            _compare(place / f"sweep-{turn}")


def _python(*words: str) -> None:
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)


def _compare(place: Path) -> None:
    forecast = folders.read_forecast(place)
    actual = stage_seconds(folders.read(place), forecast[0]) if forecast else None
    if forecast is None or actual is None:
        raise SystemExit(f"{place}: no forecast, or jobs that are not done")
    total = (sum(forecast[1].values()), sum(actual.values()))
    pairs = {name: (seconds, actual[name]) for name, seconds in forecast[1].items()} | {"in all": total}
    _print(["stage", "forecast s", "actual s", "ratio"])
    for name, (expected, found) in pairs.items():
        ratio = f"{found / expected:.2f}" if expected else "-"
        _print([name, f"{expected:.1f}", f"{found:.1f}", ratio])


def _print(cells: Sequence[str]) -> None:
    print(f"{cells[0]:14}" + "".join(cell.rjust(12) for cell in cells[1:]), flush=True)


if __name__ == "__main__":
    main()
