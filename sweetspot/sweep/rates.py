"""How fast each stage's work goes: as calibration measured it, or as is assumed where nothing was measured.

A worker takes `start` seconds to begin and end, and `per_token` seconds for each token of work. Tokens are always those
of responses, as many as a response has in the mean: sampling and scoring take each response once, training takes
both responses of a pair once an epoch.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sweetspot.component import canonical_json

VERSION = 1
Kind = Literal["prepare", "sample", "score", "reference", "train", "evaluate", "job"]
# fields of the components that change nothing about the time that a token takes
SAMPLER = frozenset(
    {
        *("seed", "temperature", "top_p", "tile_prompts", "tile_samples"),
        *("budget", "pilot_samples", "mean_samples", "gain_threshold", "tail"),
    }
)
NUMERICS = ("dtype", "autocast", "max_tokens", "max_prompt_tokens", "batching", "matmul")
TRAINING = (*NUMERICS, "adapter", "lora_rank", "lora_targets", "batch_size", "device_batch_size", "save_every")


@dataclass(frozen=True)
class Rate:
    """What work of one kind takes on one device.

    Attributes:
        kind: of work; "job" is what a run takes beside its stages, "prepare" the making of the embedded model,
            "evaluate" what an evaluation computes beside its workers.
        of: what was measured, as `label` says it; "" is assumed of anything.
        start: seconds of a worker before its first token and after its last.
        per_token: seconds.
        bytes_per_token: of disk.
        bytes_each: of disk, for each artefact that is made.
        tokens: of a mean response (sampling alone).
    """

    kind: Kind
    of: str
    start: float
    per_token: float = 0.0
    bytes_per_token: float = 0.0
    bytes_each: float = 0.0
    tokens: float | None = None


ASSUMED = (
    Rate("prepare", "", 30),
    Rate("sample", "", 120, 1 / 8000, 8),
    Rate("score", "", 120, 1 / 40000, 0.1),
    Rate("reference", "", 60, 1 / 20000, 0.1),
    Rate("train", "", 180, 1 / 2500, bytes_each=16e9),
    Rate("evaluate", "", 2),
    Rate("job", "", 10),
)
ALONE = ("prepare", "evaluate", "job")  # the same whatever they are done for
ASSUMPTION = (
    "a device samples 8,000, scores 40,000 and trains on 2,500 tokens/s, a worker starts in 1 to 3 minutes, a response "
    "has half of sampler.max_tokens, and a policy takes 16 GB (an 8B model on an 80 GB GPU)"
)


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        rates: of each kind and thing, once.
        measured: where and when, for people.
    """

    rates: tuple[Rate, ...]
    measured: str

    def find(self, kind: Kind, of: str) -> Rate:
        """The rate of exactly this; else of the same kind of work by something else; else what is assumed."""
        same = [rate for rate in self.rates if rate.kind == kind]
        return next((rate for rate in same if rate.of == of), next(iter(same), _assumed(kind)))

    def caution(self, kind: Kind, of: str) -> str | None:
        """Why the rate of this is no measurement of it, in a line; None where it is."""
        if not self.rates or kind in ALONE or (found := self.find(kind, of)).of == of:
            return None
        return f"{kind} of {of}: as {'assumed' if not found.of else f'measured of {found.of}'}"

    def merged(self, newer: "Calibration") -> "Calibration":
        """Both, the newer rate of a thing in place of the older."""
        kept = [rate for rate in self.rates if (rate.kind, rate.of) not in {(one.kind, one.of) for one in newer.rates}]
        return Calibration((*newer.rates, *kept), newer.measured)


NOTHING = Calibration((), "")


def _assumed(kind: Kind) -> Rate:
    return next(rate for rate in ASSUMED if rate.kind == kind)


def read(path: Path) -> Calibration:
    """What a file holds; nothing when it is absent.

    Raises:
        ValueError: for a file of another kind or version.
    """
    if not path.exists():
        return NOTHING
    try:
        plain: dict[str, Any] = json.loads(path.read_text())
        if plain["version"] == VERSION:
            return Calibration(tuple(Rate(**rate) for rate in plain["rates"]), plain["measured"])
    except (ValueError, KeyError, TypeError, OSError):
        pass
    raise ValueError(
        f"launcher.calibration must be a file of `sweetspot.sweep calibrate`, version {VERSION}; got {path}"
    )


def write(path: Path, calibration: Calibration) -> None:
    """Replace the file."""
    plain = {"version": VERSION, **asdict(calibration)}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(json.dumps(plain, indent=1) + "\n")
    beside.replace(path)


def label(kind: Kind, config: Mapping[str, Any], part: Mapping[str, Any] | None = None) -> str:
    """What of a composed configuration decides the time that work of a kind takes: a name and a hash.

    Args:
        kind: of work.
        config: the plain configuration of a run.
        part: the reward model, where it is not the selecting one.
    """
    model, dpo = config["model"], config["dpo"]
    match kind:
        case "prepare" | "evaluate" | "job":
            return kind
        case "sample":
            return _named(model["name"], [model, _without(config["sampler"], SAMPLER)])
        case "score":
            reward_model = config["reward_model"] if part is None else part
            return _named(str(reward_model["_target_"]).rpartition(".")[2], [reward_model])
        case "reference":
            return _named(model["name"], [model, _only(dpo, (*NUMERICS, "reference_batch_tokens"))])
        case "train":
            return _named(model["name"], [model, _only(dpo, TRAINING), config["deepspeed"]])


def _named(name: str, parts: Sequence[Any]) -> str:
    return f"{name} ({hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:6]})"


def _only(part: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: part.get(name) for name in names}


def _without(part: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name not in names}
