"""The training worker: preference optimisation on pairs of sampled token ids, by a `transformers.Trainer`.

The reference log-probabilities come with the pairs, so that no reference model is in memory. A policy in the making is
a folder with checkpoints; a checkpoint counts once its file `whole` is there, which is written last, and a killed run
goes on from the last that counts, in the same order and so to the same policy. The finished policy is an ordinary
Hugging Face folder, whatever was trained: all weights, or a LoRA adapter, which is merged and lies beside them too.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sweetspot.component import build
from sweetspot.dpo import DPO
from sweetspot.launch import Emit
from sweetspot.logprob import examine, load_network
from sweetspot.logprob.forward import choose
from sweetspot.model import Model, load_tokenizer, record_digest
from sweetspot.trainer.adapter import adapted, save_policy, stirred
from sweetspot.trainer.checkpoints import CHECKPOINTS, last_whole, step_of
from sweetspot.trainer.history import COUNTS, HISTORY, History, finish, model_card
from sweetspot.trainer.pair_trainer import PairTrainer, without_dropout
from sweetspot.trainer.pairs import split, training_pairs


def main(job: dict[str, Any], emit: Emit) -> None:
    """Train a policy into the folder `output`, from its last whole checkpoint where there is one.

    Args:
        job: {"model": config of the start model, "dpo": config, "deepspeed": config (stage 0: no set-up), "probe": the
            sampled Probe or None, "pairs": a Parquet file of (prompt_id, pair_index, messages, chosen_ids,
            rejected_ids, reference_chosen, reference_rejected), "output": folder, "card": facts for the model card}.
        emit: takes progress and the metrics of each step.

    Raises:
        ValueError: when no pair fits, or a pair has no reference log-probability.
        RuntimeError: when the loss is no longer finite.
    """
    output = Path(job["output"])
    finish(output, lambda: _train(job, output, emit))


def _train(job: dict[str, Any], output: Path, emit: Emit) -> None:
    model: Model = build(job["model"])
    dpo: DPO = build(job["dpo"])
    dpo.check_libraries()
    tokenizer = load_tokenizer(model)
    examine(model, tokenizer, job["probe"], "training")
    rows, held_out_rows = split(pq.read_table(job["pairs"]).to_pylist(), dpo)
    pairs, dropped = training_pairs(rows, model, tokenizer, dpo)
    held_out = training_pairs(held_out_rows, model, tokenizer, dpo)[0] if held_out_rows else []
    counts = {"pairs": len(pairs), **dropped, "held_out": len(held_out)}
    emit({"metrics": counts})
    network = adapted(load_network(model, dpo), dpo)
    without_dropout(network)
    groups = [pair.group() for pair in pairs]
    with stirred(network, dpo):
        forward = choose(network, dpo, groups, emit)
    checkpoint = last_whole(output / CHECKPOINTS)
    history = History(output / HISTORY, after=step_of(checkpoint) if checkpoint else 0)
    trainer = PairTrainer(network, pairs, held_out, dpo, forward, output / CHECKPOINTS, history, emit)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    save_policy(network, output, dpo, forward, groups, emit)
    tokenizer.save_pretrained(output)
    (output / COUNTS).write_text(json.dumps(counts) + "\n")
    told = {"pairs": len(pairs), **{f"pairs dropped as {why}": count for why, count in dropped.items()}}
    (output / "README.md").write_text(model_card(job["card"], dpo, told, history.rows()))
    record_digest(output)
