"""Answers that were paid for: an append-only file, so that each is paid once whatever happens to the run."""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweetspot.component import canonical_json


def request_key(body: Mapping[str, Any]) -> str:
    """The identity of a request: the first 32 hex digits of SHA-256 over all that is sent."""
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()[:32]


class Answers:
    """The usable answers by request, in JSON lines; open in one process at a time, a second one waits.

    An answer is in the file, flushed to the disk, before its request counts as answered. A line that a kill cut short
    has no end and is taken away when the file is opened again.

    Args:
        path: the file; made when absent. Answers without a verdict, which were paid in vain, are kept beside it in
            `unusable.jsonl` for whoever wonders, and are never read.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._unusable = path.with_name("unusable.jsonl")
        self._file.seek(0)
        whole = self._file.read()
        end = whole.rfind(b"\n") + 1
        self._file.truncate(end)
        rows = [json.loads(line) for line in whole[:end].split(b"\n") if line]
        self.by_key: dict[str, dict[str, Any]] = {row["key"]: row for row in rows}

    def add(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep a usable answer."""
        row = {"key": key, **answer}
        self._file.write(
            (canonical_json(row) + "\n").encode(errors="backslashreplace")
        )  # half a pair as JSON escapes it
        self._file.flush()
        os.fsync(self._file.fileno())
        self.by_key[key] = row

    def set_aside(self, key: str, answer: Mapping[str, Any]) -> None:
        """Write down an answer that holds no verdict."""
        with self._unusable.open("ab") as file:
            file.write((canonical_json({"key": key, **answer}) + "\n").encode(errors="backslashreplace"))

    def close(self) -> None:
        """Let the next process in."""
        self._file.close()
