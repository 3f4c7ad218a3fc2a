"""The house: imports point down, and the light part stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    ["visible"],
    ["component", "strategy", "losses", "progress", "duplicates", "statistics", "provenance", "devices", "stopping"],
    ["schema", "store", "launch", "logger", "model", "distribution", "budget"],
    ["lease", "ranks"],
    ["tile", "fill"],
    ["data", "dpo", "sft", "sampler", "reward_model", "embedded"],
    ["eval", "logprob", "trainer"],
    ["stages"],
    ["manifest", "report", "exchange", "sweep"],
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
HEAVY = ["torch", "vllm", "transformers", "deepspeed", "wandb", "accelerate", "datasets", "trl"]


def modules() -> list[Path]:
    return sorted((ROOT / "sweetspot").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The sweetspot rooms that a file imports, at its top or inside a function.

    What it does when it is run as a command (below `if __name__ == "__main__"`) stands on top of the house.
    """
    rooms: set[str] = set()
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "__main__" in ast.unparse(node.test))]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sweetspot":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("sweetspot.")}
    return rooms


def room(path: Path) -> str:
    return path.relative_to(ROOT / "sweetspot").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_or_stay_in_their_room(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        assert not imported(path)
        return
    assert all(FLOOR[other] < FLOOR[here] or other == here or (here, other) in SIDEWAYS for other in imported(path))


SIDEWAYS = {
    # on one floor, one direction each
    ("schema", "component"),
    ("model", "schema"),
    ("distribution", "strategy"),
    ("budget", "distribution"),
    ("report", "manifest"),
    ("sft", "data"),
    ("sft", "dpo"),
    ("sweep", "manifest"),
    ("sweep", "report"),
    ("trainer", "logprob"),
    ("reward_model", "sampler"),  # what every vLLM engine needs
}


def test_sideways_imports_make_no_circle() -> None:
    edges = {(room(path), other) for path in modules() for other in imported(path) if other != room(path)}
    assert not {(a, b) for a, b in edges if (b, a) in edges}


@pytest.mark.parametrize(
    "module", ["sweetspot.stages", "sweetspot.strategy", "sweetspot.report", "sweetspot.exchange.command", "run"]
)
def test_the_light_part_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == ""


def test_no_file_passes_300_lines() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in [*modules(), ROOT / "run.py"]}
    assert {name: lines for name, lines in long.items() if lines > 300} == {}


@pytest.mark.xdist_group("grouped")
def test_one_process_runs_the_tests_of_a_group(request: pytest.FixtureRequest) -> None:
    """What several tests share is made once; a pytest that pytest-xdist does not know makes it in each process."""
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@grouped")
