"""Academic benchmarks through lm-eval (pip install 'sweetspot[academic]'): what preference training cost elsewhere.

lm-eval runs the policy itself, in transformers; its tasks come with it and their data from the hub or its cache, or
from `include_path`.
"""

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from sweetspot.component import build, component, runtime
from sweetspot.launch import Emit
from sweetspot.model import Model
from sweetspot.schema import ACADEMIC
from sweetspot.store import write_tile


@component
class LmEval:
    """The policy on lm-eval's tasks, each with its number of solved documents before the question."""

    version: ClassVar[int] = 1
    tasks: dict[str, int] = Field(min_length=1)
    include_path: str | None
    chat_template: bool
    dtype: Literal["bfloat16", "float16", "float32"]
    limit: int | None = Field(ge=1)
    seed: int = Field(ge=0)
    device: str = runtime(min_length=1)
    batch_size: int = runtime(ge=1)


def main(job: Mapping[str, Any], emit: Emit) -> None:
    """The worker: run the tasks one after the other with one loaded model.

    Args:
        job: {"evaluation": config, "model": the policy's config, "figures": the ACADEMIC table to write}.
        emit: takes progress.

    Raises:
        ValueError: for a task that lm-eval does not know.
    """
    from lm_eval.models import huggingface
    from lm_eval.tasks import TaskManager

    load: Any = huggingface.HFLM  # its parameters are hidden from the type checker by a decorator
    evaluation: LmEval = build(job["evaluation"])
    policy: Model = build(job["model"])
    manager = TaskManager(include_path=evaluation.include_path)
    if unknown := [task for task in evaluation.tasks if task not in manager.all_tasks]:
        raise ValueError(f"eval.tasks must be tasks of lm-eval, got {', '.join(unknown)}")
    network = load(
        pretrained=policy.path,
        revision=policy.revision or "main",
        dtype=evaluation.dtype,
        batch_size=evaluation.batch_size,
        device=evaluation.device,
        trust_remote_code=policy.trust_remote_code,
    )
    rows: list[dict[str, Any]] = []
    for number, task in enumerate(evaluation.tasks):
        emit({"progress": {"done": number, "total": len(evaluation.tasks), "unit": "tasks", "note": task}})
        rows.append(measure(network, manager, task, evaluation, policy.system_prompt))
    facts = {"lm_eval": metadata.version("lm_eval"), "partial": evaluation.limit is not None}
    write_tile(Path(job["figures"]), pa.Table.from_pylist(rows, schema=ACADEMIC), facts)


def measure(network: Any, manager: Any, task: str, evaluation: LmEval, system: str | None) -> dict[str, Any]:
    """The ACADEMIC row of a task."""
    import lm_eval

    simple_evaluate: Any = lm_eval.simple_evaluate  # decorated as well
    fewshot = evaluation.tasks[task]
    found: Any = simple_evaluate(
        model=network,
        tasks=[task],
        num_fewshot=fewshot,
        task_manager=manager,
        limit=evaluation.limit,
        apply_chat_template=evaluation.chat_template,
        fewshot_as_multiturn=evaluation.chat_template and fewshot > 0,
        system_instruction=system,
        random_seed=evaluation.seed,
        numpy_random_seed=evaluation.seed,
        torch_random_seed=evaluation.seed,
        fewshot_random_seed=evaluation.seed,
        log_samples=False,
    )
    figures = found["results"][task]
    metric = next(name for name, value in figures.items() if isinstance(value, float) and "_stderr" not in name)
    error = figures.get(metric.replace(",", "_stderr,", 1))
    return {
        "task": task,
        "metric": metric.removesuffix(",none"),
        "value": figures[metric],
        "standard_error": error if isinstance(error, float) else None,
        "fewshot": fewshot,
        "n": found["n-samples"][task]["effective"],
    }
