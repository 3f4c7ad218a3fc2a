"""The process that W&B runs in: logs what lines on its standard input say, and tells on its standard output.

It imports nothing of sweetspot, lies in the run's folder, and is told nothing that must not leave this machine. Lines
in: first the settings of the run and `timeout` (seconds); then {"log"}, {"histogram", "counts", "edges"}, {"table",
"columns", "rows"}; at last {"close", "summary", "files"}. Lines out: {"place": address or null}, {"ended"}, {"fault"}.
Where the input ends without a {"close"}, the run was killed.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

BLOCK, HEAD = 32 * 1024, 7  # bytes of a .wandb file's blocks, and of its own and each chunk's head
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)  # meant for the run
STEPS = {"train/step": ["train"], "stage/number": ["stage", "rewards", "pairs"]}  # what is plotted over what
KEPT = Path("wandb/kept")  # what artifacts are made of
NEUTRAL: dict[str, Any] = {  # settings that keep W&B from looking around
    "console": "off",
    "silent": True,
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "host": "",
    "program": "sweetspot",
    "program_abspath": "sweetspot",
    "program_relpath": "sweetspot",
    "root_dir": ".",
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


def main(tell: Callable[..., None]) -> None:
    """Log what the standard input says, to its end."""
    import wandb

    settings = json.loads(sys.stdin.readline())
    timeout = settings.pop("timeout")
    run = _open(settings, timeout)
    tell(place=run.url if settings["mode"] == "online" else None)
    stages, code = int(run.summary.get("stage/number") or 0), 1  # a run that is resumed online counts on
    for line in sys.stdin:
        message = json.loads(line)
        if "close" in message:
            code = message["close"]
            run.summary.update(message["summary"])
            for name, text in message["files"].items():
                _attach(run, name, text)
            continue
        values = _values(message)
        if not any(name.startswith("train/") for name in values):
            stages += 1
            values = {"stage/number": stages, **values}
        run.log(values)
    signal.setitimer(signal.ITIMER_REAL, timeout)  # an end that W&B does not come to by itself
    run.finish(exit_code=code)
    wandb.teardown(code)  # only then all is on the disk
    if settings["mode"] == "offline" and "exit" not in list(_kinds(Path(run.settings.sync_file)))[-3:]:
        raise OSError(f"{run.settings.sync_file} is not whole; is the disk full?")
    tell(ended=True)


def _open(settings: Mapping[str, Any], timeout: float) -> Any:
    """The run, with what its metrics are plotted over."""
    import wandb
    from wandb.sdk.interface.interface import InterfaceBase

    made = InterfaceBase._make_artifact_manifest  # pyright: ignore

    def relative(self: Any, manifest: Any, obj: Any = None) -> Any:
        """The manifest of an artifact with paths from here, so that the folder can be moved before it is sent."""
        for entry in manifest.entries.values():
            entry.local_path = os.path.relpath(entry.local_path) if entry.local_path else entry.local_path
        return made(self, manifest, obj)

    InterfaceBase._make_artifact_manifest = relative  # pyright: ignore
    run = wandb.init(dir=".", settings=wandb.Settings(init_timeout=timeout, **NEUTRAL), **settings)
    for steps, kinds in STEPS.items():
        run.define_metric(steps, hidden=True)
        for kind in kinds:
            run.define_metric(f"{kind}/*", step_metric=steps)
    return run


def _values(message: Mapping[str, Any]) -> dict[str, Any]:
    """What a line says, as W&B takes it."""
    import wandb

    if "log" in message:
        return message["log"]
    if "histogram" in message:
        shape = (message["counts"], message["edges"])
        return {message["histogram"]: wandb.Histogram(np_histogram=shape)}  # pyright: ignore
    return {message["table"]: wandb.Table(columns=message["columns"], data=message["rows"], allow_mixed_types=True)}


def _attach(run: Any, name: str, text: str) -> None:
    """Attach a file as an artifact of the run, by a copy that stays as it is until it is sent."""
    import wandb

    path = KEPT / f"{run.start_time:.0f}-{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    stem = Path(name).stem
    artifact = wandb.Artifact(f"{stem}-{run.id}", type=stem)
    artifact.add_file(str(path), name, policy="immutable", skip_cache=True)
    run.log_artifact(artifact)


def _kinds(path: Path) -> Iterator[str]:
    """What the whole records of a .wandb file are: blocks of chunks (crc u32, length u16, type u8, data)."""
    from wandb.proto import wandb_internal_pb2

    data, at, record = path.read_bytes(), HEAD, b""
    while at + HEAD <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEAD:  # too short for a chunk's head
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + HEAD : at + HEAD + length]
        at += HEAD + length
        if kind in (1, 4) and at <= len(data):  # full, last
            yield wandb_internal_pb2.Record.FromString(record).WhichOneof("record_type")  # pyright: ignore
            record = b""
        elif kind not in (2, 3):  # first, middle
            return


if __name__ == "__main__":
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "w") as out:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)  # W&B prints
        sys.argv = ["sweetspot"]

        def write(**told: Any) -> None:
            """Tell the run."""
            out.write(json.dumps(told) + "\n")
            out.flush()

        try:
            main(write)
        except Exception as error:
            write(fault=f"{type(error).__name__}: {' '.join(str(error).split())}")
            os._exit(1)  # not by way of W&B's own ends, which wait
