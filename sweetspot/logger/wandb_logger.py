"""Metrics in Weights & Biases.

W&B runs in a process of its own (`wandb_worker`), which is told what to log by lines on its standard input. So nothing
that happens to W&B, its service or its server holds a run up, its files are whole even when the run is killed, and it
knows no more of this machine than it is told: an environment without keys of others, and a neutral command.
"""

import json
import os
import queue
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import Annotated, Any, Literal

import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field
from rich.console import Console

from sweetspot.component import component, json_values
from sweetspot.logger import binned
from sweetspot.logger.private import Private, flat, private
from sweetspot.logger.wandb_mode import Mode, resolved
from sweetspot.visible import visible

TEXTS = ("messages", "chosen", "rejected")  # columns of pairs
PAGE, WITHOUT_TEXTS = "report.html", "report-without-texts.html"
LEAVING_SECONDS = 10.0  # of waiting for W&B, where a cluster may take the node away
LONGEST, HASH = 128, 9  # characters of a name, and of a hash at its end
SWEEP = "jobs.json"  # lies in the folder of a sweep
PASSED_ON = (  # of the environment; WANDB_API_KEY only where it is online
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "NETRC", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_INSECURE_DISABLE_SSL"),
)
OWN = {  # W&B's further files, relative to the run's folder, which can so be moved; no reports about W&B itself
    **{f"WANDB_{kind}_DIR": f"wandb/{kind.lower()}" for kind in ("DATA", "CACHE", "CONFIG")},
    "WANDB_ERROR_REPORTING": "false",
}


class WandbError(RuntimeError):
    """Weights & Biases failed; the text is why, in one line."""


@component
class WandbLogger:
    """Metrics go to Weights & Biases; its files lie in the run's folder.

    mode "auto": as WANDB_MODE says where that is set, else online where a key is known (WANDB_API_KEY or ~/.netrc) and
    offline where none is. Nothing ever waits for a key to be typed.
    """

    project: str = Field(pattern=r"^[^/\\#?%:]{1,128}$")
    entity: str | None
    mode: Literal["auto", "online", "offline"]
    group: str | None
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]]
    text: bool
    table_rows: int = Field(ge=1, le=200_000)
    timeout_seconds: float = Field(gt=0)

    def check(self) -> list[str]:
        """What of this machine keeps the metrics from going where it says; they are kept offline then.

        Raises:
            ValueError: `mode` is online and no key is known.
        """
        return resolved(self.mode)[1]

    def open(self, folder: Path, config: Mapping[str, Any], name: str) -> "WandbRun":
        """The W&B run of this folder: a new one, or the one whose id lies in wandb-id.txt.

        Raises:
            ValueError: as `check`.
            WandbError: when wandb is not installed.
            OSError: when nothing can be written there.
        """
        if find_spec("wandb") is None:
            raise WandbError("wandb must be installed, got none; pip install 'sweetspot[wandb]'")
        composed = flat(config)
        hidden = private(composed, self.text)
        mode, group = self.resolved_mode(), self.group or _sweep(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "project": self.project,
            "entity": self.entity,
            "group": _fitting(hidden.name(group, composed)) if group else None,
            "job_type": "sweep" if (folder / SWEEP).exists() else "run",
            "tags": self.tags,
            "name": _fitting(hidden.name(name, composed)),
            "id": _kept_id(folder / "wandb-id.txt"),
            "resume": "allow" if mode == "online" else None,
            "mode": mode,
            "config": hidden.scrubbed(composed),
        }
        return WandbRun(self, folder, mode, settings, hidden)

    def resolved_mode(self) -> Mode:
        """Where the metrics will go.

        Raises:
            ValueError: as `check`.
        """
        return resolved(self.mode)[0]


class WandbRun:
    """An open W&B run: train/* is plotted over the training step, the rest over the number of the stage's entry."""

    def __init__(
        self, logger: WandbLogger, folder: Path, mode: str, settings: Mapping[str, Any], hidden: Private
    ) -> None:
        self.logger, self.folder, self.mode, self.hidden = logger, folder.resolve(), mode, hidden
        self.fault: str | None = None
        self.ended = False
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("wandb_worker.py"))],
            cwd=folder,
            env=_environment(mode),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # it ends when its input does, and not at a signal that is meant for the run
        )
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self._send({"timeout": logger.timeout_seconds, **settings})

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Log the metrics; those with a "step" get the prefix train/."""
        clean = self.hidden.scrubbed(metrics)
        if "step" in metrics:
            clean = {f"train/{name.removeprefix('train/')}": value for name, value in clean.items()}
        self._send({"log": clean})

    def histogram(self, name: str, values: NDArray[Any]) -> None:
        """Log the counts and edges of the bins; nothing without a finite value."""
        counts, edges = binned(values)
        if counts:
            self._send({"histogram": name, "counts": counts, "edges": edges})

    def table(self, name: str, rows: pa.Table) -> None:
        """Log the first rows as a table, those columns that are text only where `text` is set."""
        columns = [column for column in rows.column_names if self.logger.text or column not in TEXTS]
        kept = rows.select(columns).slice(0, self.logger.table_rows).to_pylist()
        cells = [[_cell(column, row[column], self.hidden) for column in columns] for row in kept]
        self._send({"table": name, "columns": columns, "rows": cells})

    def close(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Log summary and files, end the run, marked as failed where an error is on its way, and wait for W&B.

        A run that ends at an error or a signal does not wait long, and leaves W&B to end by itself.
        Files are attached without what is private; of the two reports the one with texts where `text` is set, else the
        one without, as report.html.

        Raises:
            WandbError: when W&B has failed, or is not done in `timeout_seconds`.
        """
        own, other = (PAGE, WITHOUT_TEXTS) if self.logger.text else (WITHOUT_TEXTS, PAGE)
        clean = {PAGE if path.name == own else path.name: self._clean(path) for path in files if path.name != other}
        code = 1 if sys.exc_info()[0] else 0
        self._send({"close": code, "summary": summary, "files": clean})
        self.lines.put(None)
        seconds = min(self.logger.timeout_seconds, LEAVING_SECONDS) if code else self.logger.timeout_seconds
        self.reader.join(seconds)
        if self.reader.is_alive():
            if not code:
                self.process.kill()
            self.fault = f"no answer within {seconds:g} s"
        if self.fault:
            raise WandbError(f"{self.fault}; what was kept can be sent later: {self._sync()}")

    def _clean(self, path: Path) -> str:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return self.hidden.known(text)
        return json.dumps(self.hidden.manifest(json.loads(text)), indent=2, ensure_ascii=False) + "\n"

    def _send(self, message: Mapping[str, Any]) -> None:
        if self.fault:
            raise WandbError(self.fault)
        self.lines.put(json.dumps(_storable(json_values(message)), allow_nan=False) + "\n")

    def _write(self) -> None:
        """In a thread of its own: what is sent, to the worker, until None or until it does not listen any more."""
        assert self.process.stdin
        try:
            while (line := self.lines.get()) is not None:
                self.process.stdin.write(line.encode())
                self.process.stdin.flush()
            self.process.stdin.close()
        except OSError:
            return  # the reader tells why

    def _read(self) -> None:
        """In a thread of its own: what the worker tells, until it ends."""
        assert self.process.stdout
        for line in self.process.stdout:
            told = json.loads(line)
            self.fault = self.fault or told.get("fault")
            self.ended = self.ended or "ended" in told
            if "place" in told:
                self._tell(told["place"])
        code = self.process.wait()
        if not self.ended:
            self.fault = self.fault or f"its process ended with code {code}"

    def _tell(self, url: str | None) -> None:
        place = url or (f"offline, send it later with: {self._sync()}" if self.mode == "offline" else self.mode)
        Console(stderr=True).print(f"W&B: {place}", highlight=False, markup=False, soft_wrap=True)

    def _sync(self) -> str:
        parts = "offline-run-*" if self.mode == "offline" else "run-*"
        return f"cd {shlex.quote(str(self.folder))} && wandb sync wandb/{parts}"


def _fitting(name: str) -> str:
    """The name, or where W&B takes none so long, its beginning and its end, which is a hash of it."""
    return name if len(name) <= LONGEST else name[: LONGEST - HASH] + name[-HASH:]


def _sweep(folder: Path) -> str | None:
    """The name of the sweep whose folder, or whose job's folder, this is."""
    return next((place.name for place in (folder.resolve(), folder.resolve().parent) if (place / SWEEP).exists()), None)


def _environment(mode: str) -> dict[str, str]:
    """What W&B needs to know, and no more."""
    names = (*PASSED_ON, *(["WANDB_API_KEY"] if mode == "online" else []))
    given = {name: os.environ[name] for name in names if name in os.environ}
    path = os.pathsep.join(str(Path(place).resolve()) for place in sys.path if place)
    return {**given, **OWN, "PYTHONPATH": path}


def _cell(column: str, value: Any, hidden: Private) -> Any:
    """A cell of a table; a conversation as its turns, in one text."""
    if isinstance(value, list):
        value = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in value)
    clean = hidden.said if column in TEXTS else hidden.text
    return clean(value) if isinstance(value, str) else value


def _storable(value: Any) -> Any:
    """The value with what cannot be stored as text, or would steer a terminal, as visible escapes."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(name)): _storable(part) for name, part in value.items()}
    return [_storable(part) for part in value] if isinstance(value, list) else value


def _kept_id(path: Path) -> str:
    """The id of the run in this folder, made at its first start."""
    if not path.exists():
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(token_hex(4) + "\n")
        beside.replace(path)
    return path.read_text().strip()
