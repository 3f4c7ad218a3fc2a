"""A small judge on the loopback address: real HTTP, OpenAI's chat completions, faults on order, and a count.

How good a response is follows from its text alone, so a pair judged in the other order gives 1 - preference, and any
two runs over the same pairs agree to the last digit.
"""

import hashlib
import json
import math
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

OUTPUT = re.compile(r'"model_identifier": "(m|M)",\s+"output": """(.*?)"""\n    }', re.DOTALL)
ANSWER = re.compile(r"<\|The Start of Assistant (A|B)'s Answer\|>\n(.*?)\n<\|The End of", re.DOTALL)


def quality(text: str) -> float:
    """A number from -2 to 2 that belongs to the text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF * 4 - 2


def first_is_better(prompt: str) -> float:
    """The probability that the response shown first is the better one."""
    first, second = (text for _, text in OUTPUT.findall(prompt) or ANSWER.findall(prompt))
    return 1 / (1 + math.exp(quality(second) - quality(first)))


class JudgeServer:
    """The judge, served by threads while the block runs.

    Args:
        faults: {"500", "429", "quota", "html", "drop", "no_logprobs", "text"} -> share of requests that go so.
        delay: seconds that an answer takes.
        always: answer that is given whatever the pair, such as "m".
        key: the one API key that is let in, or None for any.
    """

    def __init__(
        self,
        faults: dict[str, float] | None = None,
        delay: float = 0.0,
        always: str | None = None,
        key: str | None = None,
        model: str = "judge",
    ) -> None:
        self.faults, self.delay, self.always, self.key, self.model = faults or {}, delay, always, key, model
        self.counts: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self._draw, self._lock = random.Random(0), threading.Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                known = self.path == "/v1/models"
                self.say(200 if known else 404, json.dumps({"data": [{"id": judge.model}]} if known else {}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                judge.answer(self, body)

            def say(self, status: int, text: str, kind: str = "application/json", **headers: str) -> None:
                content = text.encode()
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None:
                """A client that was killed is no error here."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "JudgeServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def requests(self) -> int:
        """All requests so far, answered or not."""
        return sum(self.counts.values())

    @property
    def failures(self) -> int:
        """The requests that were made to go wrong."""
        return self.requests - self.counts["answered"]

    def answer(self, handler: Any, body: dict[str, Any]) -> None:
        """Count the request, and answer it as its fault says."""
        with self._lock:
            kind = self._kind()
            if self.key is not None and handler.headers["Authorization"] != f"Bearer {self.key}":
                kind = "401"
            elif body["model"] != self.model:
                kind = "404"
            self.counts[kind] += 1
            self.bodies.append(body)
        time.sleep(self.delay)
        match kind:
            case "500":
                handler.say(500, json.dumps({"error": {"message": "The server had an error"}}))
            case "429":
                handler.say(429, json.dumps({"error": {"message": "Rate limit reached"}}), Retry_After="0")
            case "quota":
                handler.say(429, json.dumps({"error": {"message": "You exceeded your current quota"}}))
            case "401" | "404":
                handler.say(int(kind), json.dumps({"error": {"message": f"refused with {kind}"}}))
            case "html":
                handler.say(200, "<html><body>Bad gateway</body></html>", kind="text/html")
            case "drop":
                linger = struct.pack("ii", 1, 0)
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                handler.close_connection = True
                handler.connection.close()
            case _:
                handler.say(200, json.dumps(self.completion(body, kind)))

    def _kind(self) -> str:
        draw = self._draw.random()
        for kind, share in self.faults.items():
            if draw < share:
                return kind
            draw -= share
        return "answered"

    def completion(self, body: dict[str, Any], kind: str) -> dict[str, Any]:
        """A chat completion: log-probabilities of m and M where they were asked for, else a verdict in words."""
        prompt = body["messages"][-1]["content"]
        text, logprobs = "I like both.", None
        if kind != "text" and body.get("logprobs"):
            share = first_is_better(prompt) if self.always is None else float(self.always == "m")
            rows = [
                {"token": name, "bytes": None, "logprob": math.log(value) if value else -9999.0}
                for name, value in (("m", share), ("M", 1 - share), ("The", 1e-6))
            ]
            text, logprobs = "m" if share > 0.5 else "M", {"content": [{**rows[0], "top_logprobs": rows}]}
        elif kind != "text":
            share = first_is_better(prompt) if self.always is None else float(self.always == "A")
            text = f"Assistant A and B differ. [[{'A>>B' if share > 0.8 else 'A>B' if share > 0.5 else 'B>A'}]]"
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": f"{self.model}-2026",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "length",
                    "message": {"role": "assistant", "content": text},
                    "logprobs": None if kind == "no_logprobs" else logprobs,
                }
            ],
            "usage": {"prompt_tokens": len(prompt) // 4, "completion_tokens": 1, "total_tokens": len(prompt) // 4 + 1},
        }
