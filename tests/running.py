"""Runs of run.py in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def start(overrides: list[str], store: Path, folder: Path) -> "subprocess.Popen[str]":
    arguments = [*overrides, f"store={store}", f"hydra.run.dir={folder}"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        [sys.executable, "run.py", *arguments], cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, **pipes
    )


def finish(overrides: list[str], store: Path, folder: Path) -> dict[str, Any]:
    """The manifest of a run that is expected to succeed."""
    process = start(overrides, store, folder)
    output, _ = process.communicate(timeout=600)
    logs = "".join(path.read_text()[-3000:] for path in folder.glob("jobs/*/log.txt"))
    assert process.returncode == 0, output + logs
    return json.loads((folder / "manifest.json").read_text())
