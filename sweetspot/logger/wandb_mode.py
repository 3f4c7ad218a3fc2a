"""Where the metrics of W&B go: online, offline, or nowhere, by the configuration and this machine."""

import netrc
import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from sweetspot.visible import one_line

HOST = "https://api.wandb.ai"
Mode = Literal["online", "offline", "disabled"]


def resolved(mode: str) -> tuple[Mode, list[str]]:
    """Where the metrics will go, and what of this machine kept them from going where it says, a line each.

    Args:
        mode: of the configuration; "auto" is what WANDB_MODE says, and without it online where a key is known.

    Raises:
        ValueError: `mode` itself is online and no key is known.
    """
    asked = (os.environ.get("WANDB_MODE") or "auto") if mode == "auto" else mode
    if asked in ("offline", "dryrun"):
        return "offline", []
    if asked == "disabled":
        return "disabled", []
    known, reasons = _key_is_known()
    if mode == "online" and not known:
        rule = "logger.wandb.mode must be auto or offline without a W&B key (WANDB_API_KEY)"
        raise ValueError("; ".join([f"{rule}, got online", *reasons]))
    if asked not in ("auto", "online", "run", "shared"):
        known, reasons = False, [f"WANDB_MODE must be online, offline or disabled, got {one_line(asked)}"]
    elif asked != "auto" and not known:
        reasons = [*reasons, f"WANDB_MODE is {asked}, but no W&B key is known (WANDB_API_KEY)"]
    return "online" if known else "offline", [f"W&B is offline: {'; '.join(reasons)}"] if reasons else []


def _key_is_known() -> tuple[bool, list[str]]:
    """Whether W&B would find a key without asking for it, and why it could not be looked for, without a word of the
    file that would hold it."""
    if os.environ.get("WANDB_API_KEY"):
        return True, []
    path = os.environ.get("NETRC") or "~/.netrc"
    try:
        host = urlparse(os.environ.get("WANDB_BASE_URL") or HOST).hostname
        place = Path(path).expanduser()
        return place.is_file() and host in netrc.netrc(place).hosts, []
    except netrc.NetrcParseError as error:
        return False, [f"{path} must be a netrc file, got another in line {error.lineno}"]
    except OSError as error:
        return False, [f"{path} cannot be read: {error.strerror}"]
    except (ValueError, RuntimeError) as error:  # an address, a coding or a home that is none
        return False, [f"no W&B key could be looked for in {path}: {type(error).__name__}"]
