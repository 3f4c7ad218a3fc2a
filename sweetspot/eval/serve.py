"""A judge of one's own, served by vLLM while a run asks it.

The server is a child of the judging worker and in its process group, so it ends with the worker however that ends.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

from sweetspot.eval.judge import OpenAIJudge, VllmJudge
from sweetspot.launch import Emit

SERVER = "vllm.entrypoints.openai.api_server"
POLL_SECONDS, STOP_SECONDS = 0.5, 20.0


@contextlib.contextmanager
def serving(judge: OpenAIJudge | VllmJudge, log: Path, emit: Emit) -> Generator[OpenAIJudge]:
    """The judge as it can be asked: one that is served elsewhere as it is, our own once its server answers.

    Args:
        log: the server's output, kept.

    Raises:
        ValueError: when the server ends or does not answer within `start_timeout` seconds.
    """
    if isinstance(judge, OpenAIJudge):
        yield judge
        return
    port = free_port()
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", SERVER, *arguments(judge, port)],
            env={**os.environ, **environment(judge)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait(server, port, judge.start_timeout, log, emit)
            yield judge.at(f"http://127.0.0.1:{port}/v1")
        finally:
            stop(server)


def arguments(judge: VllmJudge, port: int) -> list[str]:
    """The server's command line."""
    settings: dict[str, Any] = {
        "model": judge.model.path,
        "served-model-name": judge.name,
        "host": "127.0.0.1",
        "port": port,
        "dtype": judge.dtype,
        "max-model-len": judge.max_model_len,
        "tensor-parallel-size": judge.tensor_parallel,
        "gpu-memory-utilization": judge.gpu_memory_utilization,
        "logprobs-mode": "processed_logprobs",  # after the choice of verdicts was made the only possible answer
        **({"revision": judge.model.revision} if judge.model.revision else {}),
    }
    flags = ["--enforce-eager"] if judge.enforce_eager else []
    flags += ["--trust-remote-code"] if judge.model.trust_remote_code else []
    return [*(text for name, value in settings.items() for text in (f"--{name}", str(value))), *flags]


def environment(judge: VllmJudge) -> dict[str, str]:
    """What the server needs in its environment."""
    return {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(judge.kv_cache_gb),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
    }


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(server: "subprocess.Popen[bytes]", port: int, timeout: float, log: Path, emit: Emit) -> None:
    """Return once the server says that it is healthy."""
    started = time.monotonic()
    while time.monotonic() - started < timeout:
        if server.poll() is not None:
            raise ValueError(f"eval.judge: the vLLM server ended with code {server.returncode} (log: {log})")
        if healthy(port):
            return
        note = f"starting the judge, {time.monotonic() - started:.0f} s"
        emit({"progress": {"done": 0, "total": 1, "unit": "server", "note": note}})
        time.sleep(POLL_SECONDS)
    raise ValueError(f"eval.judge.start_timeout: the vLLM server did not answer within {timeout:g} s (log: {log})")


def healthy(port: int) -> bool:
    """Whether the server answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def stop(server: "subprocess.Popen[bytes]") -> None:
    """End the server and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        server.send_signal(signal.SIGTERM)
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
