"""Run a worker in a fresh process, show its progress, and bring its error back as one line.

vLLM, the reward model and the trainer never share a process: memory comes back only when a process ends. A worker is a
module with `main(job, emit)`, started as `python -m sweetspot.launch MODULE JOB.json`; the job is plain JSON, so a
failed one can be started again by hand. It tells of itself through `events.jsonl` beside the job: {"progress": ...},
{"metrics": ...} or {"error": ...}.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sweetspot.component import component, runtime

Emit = Callable[[dict[str, Any]], None]
POLL_SECONDS = 0.1
PLAIN_SECONDS = 30.0  # how often a line of progress is printed where there is no terminal


class WorkerError(RuntimeError):
    """A worker that ended without finishing its job; the text is its own error line or how it died."""


@component
class Launch:
    """The processes of one run: how its workers are started on this machine."""

    threads: int | None = runtime(ge=1)

    def environment(self) -> dict[str, str]:
        """What a worker needs in its environment before torch or vLLM is imported."""
        threads = str(self.threads or len(os.sched_getaffinity(0)))
        return {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}


def run(
    module: str,
    job: Mapping[str, Any],
    folder: Path,
    environment: Mapping[str, str],
    on_metrics: Callable[[dict[str, Any]], None],
) -> None:
    """Run `module.main(job, emit)` in a fresh process and wait for it.

    Args:
        module: dotted path of the worker ("sweetspot.sampler.worker").
        job: plain JSON values.
        folder: where job.json, events.jsonl and log.txt of this worker go.
        environment: variables added to this process's own.
        on_metrics: called with each {"metrics": ...} event as it comes.

    Raises:
        WorkerError: when the worker fails or dies; its process group is gone by then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps(job, indent=1))
    events = folder / "events.jsonl"
    events.write_text("")
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sweetspot.launch", module, str(folder / "job.json")],
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            error = _follow(process, events, folder.name, on_metrics)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        raise WorkerError(f"{folder.name}: {error or _death(process.returncode)} (log: {folder / 'log.txt'})")


def _follow(
    process: "subprocess.Popen[bytes]", events: Path, title: str, on_metrics: Callable[[dict[str, Any]], None]
) -> str | None:
    """Show and pass on the events until the process ends; returns the error line, if one came."""
    error = None
    with _bar(title) as show, events.open() as file:
        while True:
            ended = process.poll() is not None
            for line in _lines(file):
                event = json.loads(line)
                if "progress" in event:
                    show(event["progress"])
                if "metrics" in event:
                    on_metrics(event["metrics"])
                error = event.get("error", error)
            if ended:
                return error
            time.sleep(POLL_SECONDS)


def _lines(file: Any) -> Iterator[str]:
    """The whole lines that were added to the file; a half-written one waits for the next call."""
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(start)
            return
        yield line


@contextlib.contextmanager
def _bar(title: str) -> Generator[Callable[[dict[str, Any]], None]]:
    """A function that shows {"done", "total", "unit", "note"}: a bar on a terminal, now and then a line elsewhere."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
    task = progress.add_task(title, total=None, note="starting")
    last = time.monotonic()

    def show(state: dict[str, Any]) -> None:
        nonlocal last
        note = f"{state['unit']} {state.get('note', '')}".rstrip()
        progress.update(task, completed=state["done"], total=state["total"], note=note)
        if not console.is_terminal and time.monotonic() - last > PLAIN_SECONDS:
            last = time.monotonic()
            left = progress.tasks[0].time_remaining
            console.print(
                f"{title}: {state['done']}/{state['total']} {note}" + (f", {left:.0f} s left" if left else "")
            )

    with progress if console.is_terminal else contextlib.nullcontext():
        yield show


def _death(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"the worker was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"the worker ended with code {code}"


def _exit_with_parent() -> None:
    """End this process when its parent is gone, so that a killed run leaves no worker behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main(module: str, job_path: str) -> None:
    """The worker's side: load the job, run it, and leave its error as one line in events.jsonl."""
    _exit_with_parent()
    path = Path(job_path)
    with (path.parent / "events.jsonl").open("a", buffering=1) as events:

        def emit(event: dict[str, Any]) -> None:
            events.write(json.dumps(event) + "\n")

        try:
            importlib.import_module(module).main(json.loads(path.read_text()), emit)
        except Exception as error:
            traceback.print_exc()
            text = " ".join(str(error).split()) or type(error).__name__
            emit(
                {"error": text if isinstance(error, (ValueError, RuntimeError)) else f"{type(error).__name__}: {text}"}
            )
            sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
