"""Making the models that a run names and that lie nowhere yet: the embedded one, and those that SFT makes."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from sweetspot import ranks
from sweetspot.component import key, to_config, within
from sweetspot.dpo import DPO, DeepSpeed
from sweetspot.launch import Launch
from sweetspot.lease import Lease, Watch, generations
from sweetspot.model import EMBEDDED, Model
from sweetspot.schema import MESSAGES
from sweetspot.sft import SFT, SftModel
from sweetspot.stages.run import Run
from sweetspot.store import write_tile

LOOKS = 60  # in a term of a lease, at a model that another run is making


def prepare(part: Any, deepspeed: DeepSpeed, run: Run) -> Any:
    """The component with the models named in it as folders of the store, made when absent: the embedded model, and
    those that SFT makes, spread over devices by `deepspeed`."""
    if isinstance(part, SftModel):
        return finetune(part, prepare(part.base(), deepspeed, run), deepspeed, run)
    if isinstance(part, Model):
        return part.at(embedded_folder(run)) if part.path == EMBEDDED else part
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return part
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if (ready := within(value, lambda inner: prepare(inner, deepspeed, run))) != value:
            changed[field.name] = ready
    return dataclasses.replace(part, **changed) if changed else part


def embedded_folder(run: Run) -> Path:
    """The converted SmolLM2 in the store."""
    from sweetspot.embedded import smollm2

    started = time.monotonic()
    folder = run.store.folder("models", f"smollm2_135m-{key(smollm2.RECIPE)}")

    def convert() -> None:
        with run.store.building(folder, {"recipe": smollm2.RECIPE}) as scratch:
            run.work("prepare", "sweetspot.embedded.smollm2", {"folder": str(scratch)})
        run.did("prepare", "models", 1, 0, started)

    make_once(folder, convert, run)
    return folder


def finetune(model: SftModel, base: Model, deepspeed: DeepSpeed, run: Run) -> Model:
    """What SFT makes of `base`, the base model of `model` as it lies here.

    Its key is the content of the base, the settings, and the content of the conversations.

    Raises:
        ValueError: for data that cannot be learned from, in one line.
    """
    started = time.monotonic()
    name = key(model.sft, deepspeed, base)
    folder = run.store.folder("models", name)
    check_spread("model.sft", model.sft, None, deepspeed, run.launch)
    if ranks.node(run.launch):
        run.lend("sft", "sweetspot.trainer.sft", folder, deepspeed, model.sft)
        return model.at(folder)

    def train() -> None:
        with run.store.building(folder, {"base": to_config(base), "sft": to_config(model.sft)}) as scratch:
            rows = scratch / "conversations.parquet"  # in the store, where the ranks of other nodes find it
            rows.unlink(missing_ok=True)
            write_tile(rows, pa.table({"messages": pa.array(model.sft.data.load(), type=MESSAGES)}), {})
            job = {
                "model": to_config(base),
                "sft": to_config(model.sft),
                "deepspeed": to_config(deepspeed),
                "conversations": str(rows.absolute()),
                "output": str(scratch.absolute()),
                "card": {"title": f"{model.name}, fine-tuned by sweetspot", "base": base.name},
            }
            run.train("sft", "sweetspot.trainer.sft", job, deepspeed, model.sft, name)
            rows.unlink()

    made = make_once(folder, train, run)
    run.did("sft", "models", int(made), int(not made), started)
    return model.at(folder)


def check_spread(name: str, settings: DPO | SFT, adapter: str | None, deepspeed: DeepSpeed, launch: Launch) -> None:
    """Refuse, before anything is made, a training that cannot be spread over the devices as is asked for.

    Raises:
        ValueError: in one line; `name` is where the settings stand.
    """
    deepspeed.check(settings.dtype, adapter)
    launch = ranks.fitted(launch, settings.batch_size)
    ranks.check(launch, deepspeed.stage)
    try:
        ranks.divide(settings.batch_size, settings.device_batch_size, ranks.total(launch))
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from None


def make_once(folder: Path, make: Callable[[], None], run: Run) -> bool:
    """Have a folder of weights made unless it is there, by one of the runs that want it; the others wait for it.

    Returns:
        Whether this run made it.
    """
    return make_alone(folder, lambda: not folder.exists(), make, run)


def make_alone(folder: Path, lacking: Callable[[], bool], make: Callable[[], None], run: Run) -> bool:
    """Have what is lacking made under a lease on the folder, so that no two runs make it at once.

    Args:
        lacking: whether something is; asked again and again while another run holds the lease.
        make: makes all that is lacking.

    Returns:
        Whether this run made it.
    """
    told = False
    with Watch(run.launch.lease_seconds) as watch:
        while lacking():
            held = watch.claim(folder, generations(folder.parent).get(folder.name))
            if not isinstance(held, Lease):
                if held is not None and not told:
                    told = True
                    line = f"waiting for {folder}, which {held} is making"
                    Console(stderr=True).print(line, markup=False, highlight=False)
                time.sleep(run.launch.lease_seconds / LOOKS)
                continue
            try:
                if lacking():
                    make()
                    return True
            finally:
                held.release()
    return False
