"""Training on several ranks agrees with training in one process, whatever is sharded."""

# ruff: noqa: E402 - the imports wait for importorskip

import dataclasses
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("deepspeed")

from sweetspot import trainer
from sweetspot.model import Model
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
@pytest.mark.parametrize("count", [10, 9])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_go_the_way_of_one_process(stage: int, count: int, tiny_model: Model, tmp_path: Path) -> None:
    """12 steps in steps of 4 pairs; an epoch's last step has 2 or 1, so that a rank goes without one."""
    one = alone(tmp_path / "one", tiny_model, DPO, count)
    two = ranked.train(tmp_path / "two", tiny_model, DPO, tiny.deepspeed(stage=stage), count)
    assert len(one) == 12
    assert max(row["grad_norm"] for row in one) > DPO.max_grad_norm, "gradients are cut"
    agree(two, one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"batching": "padded"},
        {"batching": "packed"},
        {"gradient_checkpointing": True},
        {"matmul": "torch"},
        {"autocast": "bfloat16"},
        {"held_out_share": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("stage", [0, 3])
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
