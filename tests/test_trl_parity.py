"""Our training curve held against an independent implementation: TRL's DPOTrainer on the same pairs in float64."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("trl")

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of trl's optional parts
    from trl import DPOTrainer

from sweetspot import logprob, trainer
from sweetspot.dpo import DPO
from sweetspot.logprob.forward import PLAIN
from sweetspot.model import Model, load_tokenizer, prompt_ids
from tests import tiny
from tests.trl_arguments import trl_arguments

SETTINGS = tiny.dpo(
    schedule="cosine",
    warmup_ratio=0.2,
    weight_decay=0.01,
    max_tokens=256,
    max_prompt_tokens=128,
    seed=3,
    device_batch_size=2,
    save_every=1000,
)
TEXTS = [
    ("Why does it rain?", "Because water falls from the sky.", "Rain!"),
    ("Name a pet.", "A cat.", "Hard work is a pet, and so is the sun, and the water in the garden."),
    ("Write to a friend about patience.", "Dear friend, a little patience is good.", "Note the garden."),
    ("What does a garden need?", "Sun and water.", "A good garden needs sleep."),
    ("Say hello.", "Hello, friend!", "No"),
    ("How much do cats sleep?", "So much, because hunting is hard.", "Cats? Cats need sun, water and a short note."),
]
KEYS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "rewards/margin": "rewards/margins",
    "rewards/chosen": "rewards/chosen",
    "rewards/rejected": "rewards/rejected",
    "rewards/accuracy": "rewards/accuracies",
    "logps/chosen": "logps/chosen",
    "logps/rejected": "logps/rejected",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "trl"),
    [
        ({}, {"loss_type": ["sigmoid"]}),
        ({"batching": "padded"}, {"loss_type": ["sigmoid"]}),
        ({"loss": "robust", "label_smoothing": 0.2}, {"loss_type": ["robust"], "label_smoothing": 0.2}),
        ({"loss": "ipo"}, {"loss_type": ["ipo"]}),
        ({"loss": "hinge"}, {"loss_type": ["hinge"]}),
        ({"loss": "apo_zero"}, {"loss_type": ["apo_zero"]}),
        ({"loss": "sppo_hard"}, {"loss_type": ["sppo_hard"]}),
        # TRL's NLL is a mean over a forward pass's tokens, ours over a response's: the same where a pass has one pair
        (
            {"sft_weight": 0.3, "device_batch_size": 1},
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]},
        ),
    ],
    ids=lambda value: " ".join(map(str, value.get("loss_type", []))) if value else None,
)
def test_the_curve_is_that_of_trl_to_1e_5(
    changes: dict[str, Any], trl: dict[str, Any], tiny_model: Model, tmp_path: Path
) -> None:
    """12 pairs in steps of 4, 2 epochs, 6 steps: loss, rewards, log-probabilities, norm of the gradient.

    TRL keeps reference log-probabilities in float32. Its DPOTrainer has no other of our losses, and its `sigmoid`
    leaves label smoothing out.
    """
    tokenizer, settings = load_tokenizer(tiny_model), dataclasses.replace(SETTINGS, **changes)
    rows = [_row(index, tiny_model, tokenizer) for index in range(12)]
    ours = _ours(rows, tiny_model, settings, tmp_path)
    theirs = _theirs(rows, tiny_model, tokenizer, settings, trl, tmp_path)
    assert len(ours) == len(theirs) == 6
    assert ours[0]["loss"] != pytest.approx(ours[-1]["loss"], abs=1e-2), "a curve that does not move proves nothing"
    for row in (*ours[:2], *theirs[:2]):  # where policy and reference agree, which is above is a matter of rounding
        row.pop("rewards/accuracy", None), row.pop("rewards/accuracies", None)
    for mine, other in zip(ours, theirs, strict=True):
        found = {name: mine[name] for name in KEYS if name in mine}
        expected = {name: other[key] for name, key in KEYS.items() if key in other}
        assert found == pytest.approx(expected, rel=5e-6, abs=1e-5)


def _row(index: int, model: Model, tokenizer: Any) -> dict[str, Any]:
    """A pair as ids of ours, and as the text from which TRL makes the same ids."""
    asked, chosen, rejected = TEXTS[index % 6]
    messages = [{"role": "user", "content": asked + " Please!" * (index // 6)}]
    network, prompt = logprob.load_network(model, SETTINGS), prompt_ids(model, tokenizer, messages)
    texts = {"chosen": chosen, "rejected": rejected}
    ids = {side: [*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for side, text in texts.items()}
    return {
        "prompt_id": f"p{index:02d}",
        "pair_index": 0,
        "messages": messages,
        **{f"{side}_ids": ids[side] for side in texts},
        **{f"reference_{side}": logprob.logprobs([(prompt, ids[side])], network, SETTINGS, PLAIN)[0] for side in texts},
        "texts": {"prompt": tokenizer.decode(prompt), **texts},
    }


def _ours(rows: list[dict[str, Any]], model: Model, settings: DPO, folder: Path) -> list[dict[str, Any]]:
    path = folder / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist([{**row, "texts": None} for row in rows]), path)
    inputs = {"probe": None, "pairs": str(path)}
    return tiny.train(trainer.main, folder / "policy", {"model": model, "dpo": settings}, inputs)[0]


def _theirs(
    rows: list[dict[str, Any]], model: Model, tokenizer: Any, settings: DPO, changes: dict[str, Any], folder: Path
) -> list[dict[str, Any]]:
    arguments = trl_arguments(settings, folder / "trl", **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float64),
            args=arguments,
            train_dataset=Dataset.from_list([row["texts"] for row in rows]),
            processing_class=tokenizer,
        )
        for row, made in zip(rows, theirs.train_dataset, strict=True):
            assert made["prompt_ids"] == prompt_ids(model, tokenizer, row["messages"])
            assert (made["chosen_ids"], made["rejected_ids"]) == (row["chosen_ids"], row["rejected_ids"])
        theirs.train()
    return [row for row in theirs.state.log_history if "loss" in row]
