"""python experiments/benchmarks/sweep.py [--launcher slurm] [--folder FOLDER] [OVERRIDE ...]

Nine points from an empty store to their ends by one command (POINTS below).
It prints how often each tile of samples and rewards was made, the rows that were collected, and the driver's overhead:
the time of the whole command beyond that in which a job of the sweep ran. The bars: once each, nine rows, below 60 s.
launcher=slurm needs a cluster (slurm/local_cluster.sh); OVERRIDEs choose other models and prompts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq

from sweetspot.sweep import folder as folders
from sweetspot.sweep.folder import Sweep

ROOT = Path(__file__).resolve().parents[2]
POINTS = ["n_samples=5,20,50", "strategy=max_min,mu_minus_2sigma,scalable"]


def main() -> None:
    """Run the sweep and print what was made how often, and the overhead."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launcher", default="slurm", help="slurm, a profile of your own, submitit_local or local")
    parser.add_argument("--folder", type=Path, help="where store and sweep go (default: a folder that is deleted)")
    parser.add_argument("overrides", nargs="*", help="of the sweep")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = (asked.folder or Path(scratch)).resolve()
        own = [f"launcher={asked.launcher}", f"store={place}/store", f"hydra.sweep.dir={place}/sweep"]
        began = time.monotonic()
        ended = subprocess.run([sys.executable, "run.py", "-m", *POINTS, *own, *asked.overrides], cwd=ROOT, check=False)
        wall = time.monotonic() - began
        print(f"run.py ended with {ended.returncode} after {wall:.1f} s")
        subprocess.run([sys.executable, "-m", "sweetspot.sweep", "collect", str(place / "sweep")], cwd=ROOT, check=True)
        _print(folders.read(place / "sweep"), wall)


def _print(sweep: Sweep, wall: float) -> None:
    found = [json.loads((sweep.path(job) / "manifest.json").read_text()) for job in sweep.jobs]
    made: Counter[str] = Counter()
    for manifest in found:
        made.update({stage["name"]: stage["made"] for stage in manifest["stages"]})
    last = found[-1]
    for stage, folder in (("sample", "samples"), ("score", "rewards")):
        there = len(list((Path(last["store"]) / last["rounds"][0][folder]["folder"]).glob("[!.]*.parquet")))
        print(f"{stage}: {there} tiles, made {made[stage]} times in all")
    rows = pq.read_table(sweep.folder / "sweep.parquet").to_pylist()
    print(f"collected: {len(rows)} rows, {sum(row['standing'] == 'done' for row in rows)} done")
    busy = _covered(sweep)
    print(f"wall {wall:.1f} s, a job ran in {busy:.1f} s of it, overhead of the driver {wall - busy:.1f} s")


def _covered(sweep: Sweep) -> float:
    """Seconds in which a job ran, those of several at once counted once."""
    turns = sorted(
        (datetime.fromisoformat(status.started).timestamp(), datetime.fromisoformat(status.ended).timestamp())
        for job in sweep.jobs
        if (status := folders.read_status(sweep.path(job))) and status.ended
    )
    covered, until = 0.0, 0.0
    for start, end in turns:
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered


if __name__ == "__main__":
    main()
