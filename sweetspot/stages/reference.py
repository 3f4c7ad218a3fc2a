"""Reference log-probabilities: rows of the store, computed once, or the sampler's own with their error measured."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sweetspot.component import key, to_config
from sweetspot.data import Imported
from sweetspot.dpo import DPO
from sweetspot.model import Model
from sweetspot.sampler import Sampler
from sweetspot.schema import LOGPROBS
from sweetspot.stages.pool import Samples, rows_at
from sweetspot.stages.prepare import make_alone
from sweetspot.stages.run import Run
from sweetspot.store import read_tile, write_tile

CHECKED = 64  # responses whose log-probabilities are computed to measure the sampler's

Place = tuple[str, int]  # prompt_id, sample_index


def reference_logprobs(
    samples: Samples, wanted: set[Place], model: Model, dpo: DPO, run: Run
) -> tuple[dict[Place, float], dict[str, float] | None]:
    """log p(response | prompt) under the reference of the responses at the wanted places, nats.

    Args:
        samples: the pool that the responses are from.
        wanted: (prompt_id, sample_index) of the responses.
        model: the reference; with `dpo.reference` = sampler it is the model that drew them.
        dpo: a reference-free loss gets none; a response that does not fit into `dpo.max_tokens` has none.

    Returns:
        The log-probabilities, and with `dpo.reference` = sampler how far they are from computed ones (`sampler_error`).

    Raises:
        ValueError: when the sampler's are asked for and a response has none.
    """
    if dpo.reference_free:
        return {}, None
    if dpo.reference == "recompute":
        return log_probabilities(samples, wanted, model, dpo, run, "reference"), None
    drawn = sampler_logprobs(samples, wanted)
    checked = set(sorted(wanted)[:: max(1, len(wanted) // CHECKED)][:CHECKED])
    computed = log_probabilities(samples, checked, model, dpo, run, "reference check")
    return drawn, sampler_error((drawn[place], value) for place, value in computed.items())


def check_sampled_reference(dpo: DPO, data: Any, sampler: Sampler) -> None:
    """Refuse the sampler's log-probabilities where they are of another model or another prompt than training's.

    Raises:
        ValueError: naming the setting that does not go with dpo.reference=sampler.
    """
    longest, cut = dpo.max_prompt_tokens, sampler.max_prompt_tokens
    for fault, wrong in (
        (f"data must have its samples drawn here, got {type(data).__name__}", isinstance(data, Imported)),
        ("sampler.adapter must be null", getattr(sampler, "adapter", None) is not None),
        (f"sampler.max_prompt_tokens must be <= dpo.max_prompt_tokens ({longest}), got {cut}", cut > longest),
    ):
        if wrong:
            raise ValueError(f"with dpo.reference=sampler {fault}")


def sampler_logprobs(samples: Samples, wanted: set[Place]) -> dict[Place, float]:
    """The log-probabilities that the sampler gave the responses at (prompt_id, sample_index), nats.

    Raises:
        ValueError: when a response has none.
    """
    found = {place: row["logprob"] for place, row in rows_at(samples, wanted, ["logprob"]).items()}
    if unknown := sorted(place for place, value in found.items() if value is None):
        raise ValueError(
            "dpo.reference must be recompute where the pool has no log-probabilities, got sampler: "
            f"{len(unknown)} responses have none, the first {unknown[0]}"
        )
    return found


def sampler_error(pairs: Iterable[tuple[float, float]]) -> dict[str, float]:
    """How far the sampler's log-probabilities are from the computed ones, nats a response.

    Args:
        pairs: (the sampler's, computed) of each response that is compared.

    Returns:
        {"responses": how many, "mean": of the difference, "mean_absolute", "largest"}: NaN where none is compared.
    """
    differences = np.array([drawn - computed for drawn, computed in pairs], dtype=np.float64)
    if not len(differences):
        return {"responses": 0, "mean": float("nan"), "mean_absolute": float("nan"), "largest": float("nan")}
    absolute = np.abs(differences)
    return {
        "responses": len(differences),
        "mean": float(differences.mean()),
        "mean_absolute": float(absolute.mean()),
        "largest": float(absolute.max()),
    }


def log_probabilities(
    samples: Samples, wanted: set[Place], model: Model, dpo: DPO, run: Run, title: str
) -> dict[Place, float]:
    """The log-probability under `model` of the responses at (prompt_id, sample_index), computed once and kept as rows.

    The rows are shared by every strategy, n and beta: their key is the model's content, the numerics, the truncation
    and the pool. Of runs that want some at once, one computes what it lacks while the others wait for it. Parts
    are appended; a row that stands in two parts is harmless.
    """
    started = time.monotonic()
    name = logprob_key(model, dpo, samples.key)
    provenance = {"model": to_config(model), "dpo": to_config(dpo), "samples": samples.key}
    folder = run.store.artefact("logprobs", name, provenance)
    run.missing(folder.glob("*.parquet"), LOGPROBS)
    parts: list[Path] | None = None
    todo: list[Place] = []
    computed = 0

    def lacking() -> bool:
        nonlocal parts, todo
        if (now := sorted(folder.glob("*.parquet"))) != parts:
            known, too_long = _read_logprobs(folder)
            parts, todo = now, sorted(wanted - known.keys() - too_long)
        return bool(todo)

    def compute() -> None:
        nonlocal computed
        computed = len(todo)
        _compute(samples, todo, model, dpo, folder, title, run)

    make_alone(folder, lacking, compute, run)
    known, _ = _read_logprobs(folder)
    run.did(title, "rows", computed, len(wanted) - computed, started)
    return {place: known[place] for place in wanted if place in known}


def _compute(
    samples: Samples, places: Sequence[Place], model: Model, dpo: DPO, folder: Path, title: str, run: Run
) -> None:
    """Have the worker write the log-probabilities of the responses at these places into the folder, in parts."""
    messages = dict(zip(samples.prompt_ids, samples.prompts["messages"].to_pylist(), strict=True))
    rows = rows_at(samples, set(places), ["token_ids"])
    table = pa.Table.from_pylist([{**rows[place], "messages": messages[place[0]]} for place in places])
    path = run.folder / "jobs" / f"{title.replace(' ', '-')}-rows.parquet"
    path.unlink(missing_ok=True)  # of an earlier round, or of a run that was stopped
    write_tile(path, table, {})
    job = {
        "model": to_config(model),
        "dpo": to_config(dpo),
        "probe": samples.probe,
        "rows": str(path),
        "parts": str(folder),
    }
    run.work(title, "sweetspot.logprob", job, dpo.environment())


def logprob_key(model: Model, dpo: DPO, samples_key: str) -> str:
    """The key of log-probabilities: content and template of the model, numerics, truncation, and the pool.

    Strategy, n, beta and everything else of training leave it alone.
    """
    numerics = {name: getattr(dpo, name) for name in ("dtype", "autocast", "max_tokens", "max_prompt_tokens")}
    return key(model, numerics, samples_key)


def _read_logprobs(folder: Path) -> tuple[dict[Place, float], set[Place]]:
    """The rows of all parts by (prompt_id, sample_index), and the places of responses that are too long to have one."""
    known: dict[Place, float] = {}
    too_long: set[Place] = set()
    for path in sorted(folder.glob("*.parquet")):
        table, facts = read_tile(path, LOGPROBS)
        columns = table.select(["prompt_id", "sample_index", "logprob"]).to_pydict()
        places = zip(columns["prompt_id"], columns["sample_index"], strict=True)
        known |= dict(zip(places, columns["logprob"], strict=True))
        too_long |= {(prompt, index) for prompt, index in facts["too_long"]}
    return known, too_long
