"""The GPUs and processors that this process may use, found without torch."""

import functools
import os
import shutil
import subprocess


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them: those it names, else all of the machine."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(_count_gpus(shutil.which("nvidia-smi")))]


@functools.cache
def _count_gpus(lister: str | None) -> int:
    if lister is None:
        return 0
    told = subprocess.run([lister, "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in told.stdout.splitlines())


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))
