"""Which ranks a training has, how they find each other, and what cannot be trained on."""

import dataclasses
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import zlib
from importlib import metadata
from pathlib import Path

from sweetspot.devices import processors, visible_gpus
from sweetspot.launch import Launch


def of_node(launch: Launch) -> int:
    """How many ranks a node has: its devices; without GPUs one unless `devices` says otherwise."""
    return launch.devices or max(1, len(visible_gpus()))


def total(launch: Launch) -> int:
    """How many ranks all nodes have."""
    return of_node(launch) * launch.nodes


def fitted(launch: Launch, batch_size: int) -> Launch:
    """The launch with as many devices as share a step's rows evenly, where it does not say how many; else itself."""
    counts = range(1, of_node(launch) + 1) if launch.devices is None else ()
    fitting = [count for count in counts if batch_size % (count * launch.nodes) == 0]
    return dataclasses.replace(launch, devices=max(fitting)) if fitting else launch


def divide(batch_size: int, device_batch_size: int, ranks: int) -> tuple[int, int]:
    """Rows per forward pass and rank, `device_batch_size` at most, and forward passes per optimizer step.

    Raises:
        ValueError: when a step's rows cannot be shared out evenly.
    """
    if batch_size % ranks:
        fitting = max(count for count in range(1, ranks) if batch_size % count == 0)
        raise ValueError(
            "batch_size must be a multiple of the ranks of training (launch.devices, or all GPUs, x launch.nodes), "
            f"got {batch_size} and {ranks} ranks; {fitting} would do"
        )
    share = batch_size // ranks
    device = max(size for size in range(1, min(share, device_batch_size) + 1) if share % size == 0)
    return device, share // device


def node(launch: Launch) -> int:
    """Which of the nodes this is, from 0 on.

    Raises:
        ValueError: when there are several and neither the configuration nor SLURM tells.
    """
    if launch.nodes == 1:
        return 0
    told = os.environ.get("SLURM_NODEID", os.environ.get("SLURM_PROCID"))
    found = launch.node_rank if launch.node_rank is not None else None if told is None else int(told)
    if found is None or found >= launch.nodes:
        raise ValueError(f"launch.node_rank must be 0 to {launch.nodes - 1}, one on each node, got {found}")
    return found


def check(launch: Launch, stage: int) -> None:
    """Refuse, before anything is made, what cannot be trained on.

    Args:
        launch: the processes.
        stage: of ZeRO, 0 without DeepSpeed.

    Raises:
        ValueError: in one line.
    """
    node(launch)
    if not visible_gpus() and of_node(launch) > processors():
        raise ValueError(
            f"launch.devices must be <= {processors()}, the processors this process may use, got {launch.devices}"
        )
    if launch.nodes > 1:
        place(launch)
    if stage:
        deepspeed_environment()


def place(launch: Launch) -> tuple[str, int]:
    """Where rank 0 waits for the others: the address of the first node, and a port.

    Raises:
        ValueError: when there are several nodes and neither the configuration nor SLURM tells.
    """
    if launch.nodes == 1:
        return "127.0.0.1", launch.port or _free_port()
    job = os.environ.get("SLURM_JOB_ID")
    head, port = launch.head or _slurm_head(), launch.port or (20000 + int(job) % 10000 if job else None)
    if head is None or port is None:
        raise ValueError(
            "launch.head and launch.port must be given for several nodes outside SLURM: the address of node 0 and a "
            f"free port there, got {head} and {port}"
        )
    return head, port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _slurm_head() -> str | None:
    """The address of the first node of a SLURM step or job, as SLURM itself reaches it."""
    nodes = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_JOB_NODELIST"))
    names = _scontrol("show", "hostnames", nodes).split() if nodes else []
    if not names:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR")
    found = re.search(r"NodeAddr=(\S+)", _scontrol("show", "node", "--oneliner", names[0]))
    return found[1] if found else names[0]


def _scontrol(*words: str) -> str:
    """What SLURM's scontrol says; nothing where there is none, in a container say."""
    lister = shutil.which("scontrol")
    told = subprocess.run([lister, *words], capture_output=True, text=True, check=False) if lister else None
    return told.stdout if told and told.returncode == 0 else ""


def environments(launch: Launch) -> list[dict[str, str]]:
    """The environment of each rank of this node."""
    count, (head, port) = of_node(launch), place(launch)
    shared = {
        **launch.environment(count),
        "WORLD_SIZE": str(count * launch.nodes),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": head,
        "MASTER_PORT": str(port),
    }
    if gpus := visible_gpus():
        shared["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[:count])  # all of the node's: LOCAL_RANK picks one
    first = node(launch) * count
    return [{**shared, "RANK": str(first + local), "LOCAL_RANK": str(local)} for local in range(count)]


def deepspeed_environment() -> dict[str, str]:
    """What a rank needs in its environment for DeepSpeed; without GPUs that is a place to build its C++ part in.

    The place belongs to the user, the host, the versions and the environment of Python, so that no build of another
    is ever loaded, and none is replaced while it is in use.

    Raises:
        ValueError: when DeepSpeed is not installed, or a processor's part cannot be built.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError("deepspeed needs the package of that name (pip install '.[train]'); or choose deepspeed=none")
    if visible_gpus():
        return {}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    compiler = os.environ.get("CXX", "c++")
    missing = [name for name in (compiler, "ninja") if shutil.which(name, path=path) is None]
    missing += ["Python.h"] if not Path(sysconfig.get_path("include"), "Python.h").exists() else []
    if missing:
        raise ValueError(
            f"deepspeed on a processor builds a C++ part and needs {' and '.join(missing)} "
            "(Debian: apt-get install g++ ninja-build python3-dev); or choose deepspeed=none"
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sweetspot" / "torch_extensions"
    versions = "-".join(metadata.version(name) for name in ("torch", "deepspeed"))
    own = f"{versions}-{socket.gethostname()}-{zlib.crc32(sys.prefix.encode()):08x}"
    built = os.environ.get("TORCH_EXTENSIONS_DIR", str(cache / own))
    return {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": built, "PATH": path}
