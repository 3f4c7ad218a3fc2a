"""Training on several ranks agrees with training in one process, whatever is sharded."""

# ruff: noqa: E402 - the imports wait for importorskip

import dataclasses
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("deepspeed")

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file

from sweetspot import trainer
from sweetspot.component import to_config
from sweetspot.dpo import DeepSpeed
from sweetspot.model import Model
from sweetspot.schema import MESSAGES
from sweetspot.trainer import sft
from tests import ranked, tiny

DPO = tiny.dpo(dtype="float32", device_batch_size=2, epochs=4, save_every=100)


def alone(folder: Path, model: Model, dpo: Any, count: int = 10) -> list[dict[str, Any]]:
    """The curve of one process."""
    trainer.main(ranked.job(folder, model, dpo, tiny.deepspeed(), count), lambda _: None)
    return ranked.history(folder)


def agree(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=1e-5)
    assert [row["grad_norm"] for row in ours] == pytest.approx([row["grad_norm"] for row in theirs], abs=1e-4)
    for name in ("rewards/margin", "logps/chosen", "rewards/accuracy", "learning_rate", "epoch"):
        assert [row[name] for row in ours] == pytest.approx([row[name] for row in theirs], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "count"), [(0, 9), (1, 9), (2, 10), (3, 10), (3, 9)])
def test_two_ranks_go_the_way_of_one_process(stage: int, count: int, tiny_model: Model, tmp_path: Path) -> None:
    """12 steps in steps of 4 pairs; an epoch's last step has 2 or 1, so that a rank goes without one."""
    one = alone(tmp_path / "one", tiny_model, DPO, count)
    two = ranked.train(tmp_path / "two", tiny_model, DPO, tiny.deepspeed(stage=stage), count)
    assert len(one) == 12
    assert max(row["grad_norm"] for row in one) > DPO.max_grad_norm, "gradients are cut"
    agree(two, one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        (3, {"batching": "padded"}),
        (3, {"batching": "packed"}),
        (0, {"gradient_checkpointing": True}),
        (3, {"gradient_checkpointing": True}),
        (3, {"matmul": "torch"}),
        (0, {"autocast": "bfloat16"}),
        (3, {"autocast": "bfloat16"}),
        (3, {"held_out_share": 0.2}),
        *((stage, {"device_batch_size": 1}) for stage in range(4)),  # two passes a rank: gradients are accumulated
    ],
    ids=str,
)
def test_every_way_to_compute_works_on_two_ranks(
    stage: int, changes: dict[str, Any], tiny_model: Model, tmp_path: Path
) -> None:
    dpo = dataclasses.replace(DPO, **changes)
    one = alone(tmp_path / "one", tiny_model, dpo)
    two = ranked.train(tmp_path / "two", tiny_model, dpo, tiny.deepspeed(stage=stage))
    if dpo.autocast:
        assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], abs=2e-2)
    else:
        agree(two, one)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_an_adapter_goes_the_same_way_on_two_ranks(stage: int, tiny_model: Model, tmp_path: Path) -> None:
    """A model that keeps its weights whole, so that the adapter is merged on the first rank."""
    pytest.importorskip("peft")
    lora = {"adapter": "lora", "lora_rank": 4, "lora_alpha": 8.0, "lora_targets": "all-linear"}
    dpo = dataclasses.replace(DPO, **lora)
    one = alone(tmp_path / "one", tiny_model, dpo)
    agree(ranked.train(tmp_path / "two", tiny_model, dpo, tiny.deepspeed(stage=stage)), one)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        same_weights(tmp_path / "one" / "policy" / name, tmp_path / "two" / "policy" / name)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_a_base_model_is_fine_tuned_the_same_way_on_two_ranks(stage: int, tiny_base: Model, tmp_path: Path) -> None:
    """Conversations of 1 to 3 answers, so that the ranks have unlike numbers of tokens that the loss is a mean over."""
    turns = [{"role": role, "content": text} for role, text in (("user", "a little rain"), ("assistant", "It fell."))]
    talks = [turns * (1 + place % 3) for place in range(10)]
    pq.write_table(pa.table({"messages": pa.array(talks, type=MESSAGES)}), tmp_path / "talk.parquet")
    settings = tiny.sft(tmp_path / "talk", dtype="float32", device_batch_size=2)

    def job(name: str, deepspeed: DeepSpeed) -> dict[str, Any]:
        parts = {"model": tiny_base, "sft": settings, "deepspeed": deepspeed}
        inputs = {"conversations": str(tmp_path / "talk.parquet"), "output": str(tmp_path / name / "policy")}
        return {**inputs, "card": {"base": "tiny"}, **{part: to_config(value) for part, value in parts.items()}}

    sft.main(job("one", tiny.deepspeed()), lambda _: None)
    ranked.run(tmp_path / "two", "sweetspot.trainer.sft", job("two", tiny.deepspeed(stage=stage)))
    one, two = ranked.history(tmp_path / "one"), ranked.history(tmp_path / "two")
    for name, error in (("loss", 1e-5), ("grad_norm", 1e-4)):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], abs=error)
    same_weights(*(tmp_path / name / "policy" / "model.safetensors" for name in ("one", "two")))


def same_weights(ours: Path, theirs: Path) -> None:
    """Adam's first steps are as long for a gradient of rounding size as for any other: hence no closer than that."""
    mine, other = load_file(ours), load_file(theirs)
    assert mine.keys() == other.keys()
    assert max((mine[name] - other[name]).abs().max().item() for name in mine) < 1e-3
