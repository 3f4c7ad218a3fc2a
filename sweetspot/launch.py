"""Run workers in fresh processes, show their progress, and bring an error back as one line.

vLLM, the reward model and the trainer never share a process: memory comes back only when a process ends. A worker is a
module with `main(job, emit)`, started as `python -m sweetspot.launch MODULE JOB.json`; the job is plain JSON, so a
failed one can be started again by hand. It tells of itself through `events.jsonl` beside the job: {"progress": ...},
{"metrics": ...}, {"tile": the one it has begun}, {"made": the one it has placed} or {"error": ...}, each with the time
"at" which it was told (seconds since 1970).

Several workers of one job divide its tiles among themselves (`sweetspot.fill`). One that dies, or whose engine fails,
is started again, and its tile is remade; a tile that fails three times ends the job. An error of the user ends it at
once.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from sweetspot.component import component, runtime
from sweetspot.devices import processors, visible_gpus
from sweetspot.progress import bar
from sweetspot.stopping import REQUEUE, STOPS, Stopped, listen

Emit = Callable[[dict[str, Any]], None]
POLL_SECONDS = 0.1
FAILURES = 3  # of one tile, after which it is named and the job ends
STOP_SECONDS = 300.0  # that workers have to save what they can


class WorkerError(RuntimeError):
    """A worker that ended without finishing its job; the text is its own error line or how it died."""


class TileError(RuntimeError):
    """A tile whose making failed for a reason that may pass (an engine that died), so that it is tried again."""

    def __init__(self, tile: str, text: str) -> None:
        super().__init__(text)
        self.tile = tile


@component
class Launch:
    """The processes of one run: how many workers, and how they are started on this machine."""

    threads: int | None = runtime(ge=1)
    devices: int | None = runtime(ge=1)
    lease_seconds: float = runtime(gt=0)
    nodes: int = runtime(ge=1)
    node_rank: int | None = runtime(ge=0)
    head: str | None = runtime()
    port: int | None = runtime(ge=1, lt=65536)
    timeout_seconds: float = runtime(gt=0)

    def environment(self, workers: int = 1) -> dict[str, str]:
        """What each of so many workers needs in its environment before torch or vLLM is imported."""
        threads = self.threads or max(1, processors() // workers)
        return {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}

    def workers(self, group: int) -> list[dict[str, str]]:
        """The environment of each worker of a job.

        Args:
            group: GPUs that share one copy of the model (tensor parallel); a worker sees so many and no others. On a
                machine without GPUs a device is a worker with its part of the processor's threads, one by default.

        Raises:
            ValueError: when `devices` are more than there are, or no multiple of the group.
        """
        visible = visible_gpus()
        if not visible:
            count = self.devices or 1
            return [self.environment(count)] * count
        if (self.devices or 1) > len(visible):
            raise ValueError(f"launch.devices must be <= {len(visible)}, the GPUs that are visible, got {self.devices}")
        used = visible[: self.devices]
        if len(used) % group:
            raise ValueError(f"launch.devices must be a multiple of tensor_parallel ({group}), got {len(used)}")
        slices = [used[start : start + group] for start in range(0, len(used), group)]
        return [{**self.environment(len(slices)), "CUDA_VISIBLE_DEVICES": ",".join(part)} for part in slices]


class Worker:
    """One worker of a job: its folder, its process, and what it told so far. It can be started again."""

    def __init__(self, module: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.module, self.folder, self.environment = module, folder, environment
        self.made: set[str] = set()
        (folder / "events.jsonl").write_text("")
        (folder / "log.txt").write_text("")
        self.events: TextIO = (folder / "events.jsonl").open()
        self.start()

    def start(self) -> None:
        """A fresh process; it adds to the events and the log of the one before."""
        os.truncate(self.folder / "events.jsonl", self.events.tell())  # a line that was cut by a kill
        self.error: str | None = None
        self.tile: str | None = None  # which it was making when it failed; None when the fault is not a tile's
        with (self.folder / "log.txt").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sweetspot.launch", self.module, str(self.folder / "job.json")],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def read(self) -> Iterator[dict[str, Any]]:
        """The events that are new."""
        for line in _lines(self.events):
            event: dict[str, Any] = json.loads(line)
            self.tile = event.get("tile", self.tile)
            if "error" in event:
                self.error, self.tile = event["error"], event["failed"]
            if "made" in event:
                self.made.add(event["made"])
            yield event

    def end(self) -> None:
        """Make sure that nothing of the process is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def fault(self) -> str | None:
        """Why it failed, where it did."""
        return (self.error or _death(self.process.returncode)) if self.process.returncode else None


def run(
    module: str,
    job: Mapping[str, Any],
    folder: Path,
    environment: Mapping[str, str],
    on_metrics: Callable[[dict[str, Any]], None],
) -> None:
    """Run `module.main(job, emit)` in a fresh process and wait for it: `run_workers` with one."""
    run_workers(module, job, folder, [environment], on_metrics)


def run_workers(
    module: str,
    job: Mapping[str, Any],
    folder: Path,
    environments: Sequence[Mapping[str, str]],
    on_metrics: Callable[[dict[str, Any]], None],
) -> int:
    """Run `module.main(job, emit)` in fresh processes and wait for them.

    Args:
        module: dotted path of the worker ("sweetspot.sampler.worker").
        job: plain JSON values, the same for every worker.
        folder: where job.json, events.jsonl and log.txt go; of several workers each has its own, "-0", "-1", .. added.
        environments: for each worker, the variables added to this process's own.
        on_metrics: called with each {"metrics": ...} event as it comes.

    Returns:
        How many tiles the workers placed.

    Raises:
        WorkerError: when a worker fails; all process groups are gone by then.
    """
    several = len(environments) > 1
    workers: list[Worker] = []
    try:
        for number, environment in enumerate(environments):
            own = folder.with_name(f"{folder.name}-{number}") if several else folder
            own.mkdir(parents=True, exist_ok=True)
            (own / "job.json").write_text(json.dumps(job, indent=1))
            workers.append(Worker(module, own, environment))
        _follow(workers, folder.name, on_metrics)
    except Stopped:
        stop(workers)
        raise
    finally:
        for worker in workers:
            worker.end()
            worker.events.close()
    return sum(len(worker.made) for worker in workers)


def _follow(workers: Sequence[Worker], title: str, on_metrics: Callable[[dict[str, Any]], None]) -> None:
    """Show and pass on the events until every worker has ended well; those that may be are started again."""
    states: dict[int, Mapping[str, Any]] = {}
    failures: dict[str, int] = {}
    going = set(range(len(workers)))
    with bar(title) as show:
        while going:
            for number in sorted(going):
                worker = workers[number]
                ended = worker.process.poll() is not None
                for event in worker.read():
                    if "progress" in event:
                        states[number] = event["progress"]
                        show(states)
                    if "metrics" in event:
                        on_metrics(event["metrics"])
                if ended and worker.process.returncode == REQUEUE:
                    raise Stopped(STOPS[0].name)
                if ended and (fault := worker.fault()):
                    _again_or_raise(worker, fault, failures)
                elif ended:
                    going.discard(number)
            time.sleep(POLL_SECONDS)


def stop(workers: Sequence[Worker]) -> None:
    """Tell the workers to stop, and wait until they have, STOP_SECONDS at most."""
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    while any(worker.process.poll() is None for worker in workers) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _again_or_raise(worker: Worker, text: str, failures: dict[str, int]) -> None:
    """Start the worker again where its tile may be tried once more.

    Raises:
        WorkerError: for an error of the user, and for a tile that has failed too often.
    """
    tile, log = worker.tile, f"(log: {worker.folder / 'log.txt'})"
    if tile is None:
        raise WorkerError(f"{worker.folder.name}: {text} {log}")
    failures[tile] = failures.get(tile, 0) + 1
    if failures[tile] >= FAILURES:
        raise WorkerError(f"{worker.folder.name}: tile {tile} failed {FAILURES} times, the last time: {text} {log}")
    worker.end()
    worker.start()


def _lines(file: Any) -> Iterator[str]:
    """The whole lines that were added to the file; a half-written one waits for the next call."""
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(start)
            return
        yield line


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
    listen()  # leases are released on the way out
    path = Path(job_path)
    with (path.parent / "events.jsonl").open("a", buffering=1) as events:

        def emit(event: dict[str, Any]) -> None:
            events.write(json.dumps({**event, "at": time.time()}) + "\n")

        try:
            importlib.import_module(module).main(json.loads(path.read_text()), emit)
        except Stopped:
            sys.exit(REQUEUE)
        except Exception as error:
            traceback.print_exc()
            text = " ".join(str(error).split()) or type(error).__name__
            known = isinstance(error, (ValueError, RuntimeError))
            failed = error.tile if isinstance(error, TileError) else None
            emit({"error": text if known else f"{type(error).__name__}: {text}", "failed": failed})
            sys.exit(1)


if __name__ == "__main__":
    # through the module's own name: as __main__ its TileError would be another class than the one `fill` raises
    importlib.import_module("sweetspot.launch").main(sys.argv[1], sys.argv[2])
