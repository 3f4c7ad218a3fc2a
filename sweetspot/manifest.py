"""The manifest of a run: config -> keys -> metrics -> commit, in one JSON file. Tables and figures read manifests
only."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sweetspot import provenance
from sweetspot.component import json_values, key
from sweetspot.devices import visible_gpus
from sweetspot.distribution import moments, normality
from sweetspot.duplicates import duplicates
from sweetspot.model import Model
from sweetspot.stages import Evaluation, Pairs, Policy, Rewards, Run, Samples, text_codes, token_counts
from sweetspot.store import library_versions
from sweetspot.visible import encodable

VERSION = 2


def of_run(run: Run, config: Mapping[str, Any], command: str, started: datetime) -> dict[str, Any]:
    """What is known of a run whatever it got to: command, commit, configuration, libraries and stages."""
    return {
        "version": VERSION,
        "commit": provenance.commit(),
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
        "until": config["until"],
        "made": sum(stage.made for stage in run.stages),
        "devices": (len(visible_gpus()[: run.launch.devices]) or 1) * run.launch.nodes,
        "libraries": library_versions(),
        "config": config,
        "store": str(run.store.root.resolve()),
        "stages": [asdict(stage) for stage in run.stages],
    }


def of_samples(samples: Samples) -> dict[str, Any]:
    """Counts, lengths and duplicates of a pool's first n samples."""
    tokens = drawn = cut = 0
    for table, _ in samples.each(["n_tokens", "finish_reason"]):
        drawn += table.num_rows
        tokens += int(table["n_tokens"].to_numpy().sum())
        cut += table["finish_reason"].to_pylist().count("length")
    copies = duplicates(*text_codes(samples))
    return {
        "key": samples.key,
        "folder": f"samples/{samples.key}",
        "prompts": f"prompts/{key(samples.prompt_ids)}.parquet",
        "tiles": [tile.name for tile in samples.tiles],
        "n_samples": samples.n_samples,
        "n_prompts": samples.prompts.num_rows,
        "drawn": drawn,
        "tokens": tokens,
        "mean_tokens": tokens / drawn if drawn else math.nan,
        "cut_share": cut / drawn if drawn else math.nan,
        "duplicate_rate": copies.exact_rate,
        "near_duplicate_rate": copies.near_rate,
        "effective_samples": _mean(copies.effective),
        "set_aside": samples.set_aside(),
    }


def of_rewards(rewards: Rewards, name: str) -> dict[str, Any]:
    """Moments of the prompts' reward distributions, averaged over prompts, and the share that looks normal.

    normal_share_*_single: by each prompt's test alone. normal_share_*: the same adjusted over the prompts
    (Benjamini-Hochberg).
    """
    matrix = rewards.matrix()
    of = moments(matrix)
    looks = normality(matrix)
    return {
        "key": rewards.key,
        "folder": f"rewards/{rewards.key}",
        "tiles": [tile.name for tile in rewards.tiles],
        "reward_model": name,
        "mean": _mean(of.mean),
        "mean_sd": _mean(of.sd),
        "skew": _mean(of.skew),
        "kurtosis": _mean(of.kurtosis),
        "normal_share_shapiro_single": looks.shapiro_share,
        "normal_share_lilliefors_single": looks.lilliefors_share,
        "normal_share_shapiro": looks.shapiro_share_adjusted,
        "normal_share_lilliefors": looks.lilliefors_share_adjusted,
    }


def of_pairs(pairs: Pairs, strategy: Any) -> dict[str, Any]:
    """Pairs kept and dropped with reasons, and where chosen and rejected really lie."""
    table, tokens = pairs.table, _pair_tokens(pairs)
    mean = {
        name: _mean(table[name].to_numpy()) for name in ("chosen_z", "rejected_z", "chosen_reward", "rejected_reward")
    }
    return {
        "key": pairs.key,
        "path": f"pairs/{pairs.key}/{pairs.path.name}",
        "strategy": str(strategy),
        "kept": table.num_rows,
        "dropped": {reason: len(names) for reason, names in pairs.dropped.items()},
        "ignored_duplicates": pairs.ignored,
        "chosen_z": mean["chosen_z"],
        "rejected_z": mean["rejected_z"],
        "margin": mean["chosen_reward"] - mean["rejected_reward"],
        "chosen_tokens": tokens["chosen"],
        "rejected_tokens": tokens["rejected"],
    }


def of_policy(policy: Policy) -> dict[str, Any]:
    """Where the policy lies, how its training loss went, and how far off a sampled reference is (nats a response)."""
    training = _training(policy.folder, policy.history, policy.counts)
    return {"key": policy.key, **training, "reference_error": policy.reference_error}


def of_sft(start: Model) -> dict[str, Any]:
    """Where the start model that SFT made lies and how its training loss went, nats per token."""
    folder = Path(start.path)
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return {"key": folder.name, **_training(folder, history, json.loads((folder / "conversations.json").read_text()))}


def _training(folder: Path, history: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> dict[str, Any]:
    losses = [row["loss"] for row in history if "loss" in row]
    place = f"{folder.parent.name}/{folder.name}"
    ends = {"steps": len(losses), "loss_first": losses[0], "loss_last": losses[-1]}
    return {"folder": place, "history": f"{place}/history.jsonl", **counts, **ends}


def of_evaluation(found: Evaluation) -> dict[str, Any]:
    """What an evaluation found, and where its rows lie."""
    return {"name": found.name, "kind": found.kind, "key": found.key, "path": found.path, **found.metrics}


def write(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest whole, NaN as null, halves of surrogate pairs as escapes; an earlier one of the same run is
    replaced."""
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(json_values(manifest), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(path)


def read(path: Path) -> dict[str, Any]:
    """The manifest of a run, by whatever wrote it: halves of surrogate pairs are escapes, as `write` leaves them."""
    return encodable(json.loads(path.read_text(encoding="utf-8")))


def flat_metrics(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of the rounds and the evaluations as one flat dict, for a logger's summary."""
    return _flatten({"rounds": manifest["rounds"], "evaluations": manifest["evaluations"], "made": manifest["made"]})


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        entries: list[tuple[str, Any]] = [(str(name), part) for name, part in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        entries = [(str(part.get("name", number)), part) for number, part in enumerate(value)]
    else:
        return {path: value} if isinstance(value, int | float) else {}
    return {at: found for name, part in entries for at, found in _flatten(part, f"{path}/{name}".strip("/")).items()}


def _pair_tokens(pairs: Pairs) -> dict[str, float]:
    """The mean length of the chosen and of the rejected responses, tokens."""
    counts = token_counts(pairs.samples)
    row_of = {name: row for row, name in enumerate(pairs.samples.prompt_ids)}
    rows = np.array([row_of[name] for name in pairs.table["prompt_id"].to_pylist()], dtype=np.int64)
    sides = {side: pairs.table[f"{side}_index"].to_numpy() for side in ("chosen", "rejected")}
    return {side: _mean(counts[rows, index].astype(np.float64)) for side, index in sides.items()}


def _mean(values: np.ndarray) -> float:
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if len(kept) else math.nan
