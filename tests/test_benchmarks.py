"""The benchmarks run, at a size that says nothing about speed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import binom

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def told(name: str, *arguments: str) -> str:
    """What a benchmark prints."""
    command = [sys.executable, f"experiments/benchmarks/{name}.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_store_writes_a_pool_at_every_size_and_finds_it_whole() -> None:
    rows = told("store", "--prompts", "2100", "--n", "32", "--shares", "2", "1").splitlines()[1:]
    assert [row.split()[:4] for row in rows] == [["1050", "x", "32", "4"], ["2100", "x", "32", "6"]]


def test_sampling_compares_every_way_with_the_bare_script(tiny_policy: Path) -> None:
    pytest.importorskip("vllm")
    sizes = ["--prompts", "4", "--n", "4", "--tokens", "4", "--repeats", "1", "--tile-prompts", "4"]
    shown = told("sampling", *sizes, "--tile-samples", "2", "--transformers-prompts", "2", "--model", str(tiny_policy))
    ways = {line.split("  ")[0] for line in shown.splitlines() if "time per token / bare" in line}
    assert ways == {"bare vLLM", "sweetspot", "sweetspot, seeding=tile", "transformers.generate"}
    drawn = dict(line.split(": ") for line in shown.splitlines() if line.startswith("round 0"))
    assert drawn["round 0 sweetspot"].split(", ")[1] == drawn["round 0 bare vLLM"].split(", ")[1]  # the same tokens


def test_sharing_makes_each_tile_once_and_the_same_bytes(tiny_policy: Path) -> None:
    shown = told(
        "sharing", "--workers", "2", "--prompts", "8", "--n", "8", "--tokens", "4", "--model", str(tiny_policy)
    )
    assert shown.count("2 tiles, each made {1} times") == 2
    assert "the same bytes: True" in shown


def test_reuse_forecasts_400_samples_a_prompt_instead_of_785() -> None:
    shown = told("reuse")
    assert "126 preference data sets" in shown
    assert "one pool for all        400 samples a prompt" in shown
    assert "785 without" in shown  # 5 + 20 + 60 + 100 + 200 + 400
    assert "1.96 without blocks" in shown
    assert "7.00 a prompt, 7 at most, for all pairs at n = 400; 42 unshared" in shown  # the paper's seven points


def test_intervals_of_length_controlled_differences_cover_the_truth_and_their_test_keeps_5_percent() -> None:
    """1,000 trials are the benchmark's own default; 100 have bounds that one in a thousand right methods would miss."""
    trials = 100
    shown = told("length_control", "--trials", str(trials), "--prompts", "150", "--resamples", "200")
    cases = re.findall(r"sd ([\d.]+), width ([\d.]+)\n  covered (\d+) of .*? in (\d+) of", shown)
    assert len(cases) == 3
    for number, (spread, width, covered, found) in enumerate(cases):
        assert int(covered) >= binom.ppf(0.001, trials, 0.94)  # 200 draws cost about one point
        assert float(width) / (2 * 1.96) == pytest.approx(float(spread), rel=3.1 / (2 * trials) ** 0.5)
        if number > 0:  # no true difference
            assert int(found) <= binom.ppf(0.999, trials, 0.05)
