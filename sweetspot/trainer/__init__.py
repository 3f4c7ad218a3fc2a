"""The training worker: preference optimisation on pairs of sampled token ids, by a `transformers.Trainer`.

The reference log-probabilities come with the pairs, so that no reference model is in memory. A policy in the making is
a folder with checkpoints; a checkpoint counts once its file `whole` is there, which is written last, and a killed run
goes on from the last that counts, in the same order and so to the same policy. The finished policy is an ordinary
Hugging Face folder, whatever was trained: all weights, or a LoRA adapter, which is merged and lies beside them too.
"""

import json
from typing import Any

import pyarrow.parquet as pq

from sweetspot.component import build
from sweetspot.dpo import DPO
from sweetspot.launch import Emit
from sweetspot.logprob import examine, load_network
from sweetspot.logprob.forward import choose
from sweetspot.model import Model, load_tokenizer, record_digest
from sweetspot.trainer.adapter import adapted, save_policy, stirred
from sweetspot.trainer.history import COUNTS, model_card
from sweetspot.trainer.pair_trainer import PairTrainer, without_dropout
from sweetspot.trainer.pairs import split, training_pairs
from sweetspot.trainer.parallel import Session, first, together


def main(job: dict[str, Any], emit: Emit) -> None:
    """Train a policy into the folder `output`, from its last whole checkpoint where there is one.

    Args:
        job: {"model": config of the start model, "dpo": config, "deepspeed": config, "probe": the
            sampled Probe or None, "pairs": a Parquet file of (prompt_id, pair_index, messages, chosen_ids,
            rejected_ids, reference_chosen, reference_rejected), "output": folder, "card": facts for the model card}.
        emit: takes progress and the metrics of each step; where several ranks train, those of the first.

    Raises:
        ValueError: when no pair fits, a pair has no reference log-probability, or a checkpoint is not this job's.
        RuntimeError: when the loss is no longer finite.
        SystemExit: with REQUEUE, when it was told to stop and has left a checkpoint.
    """
    together(job, emit, _train)


def _train(job: dict[str, Any], session: Session, emit: Emit) -> None:
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
    history, output = session.history(), session.output
    weights = session.train(PairTrainer(network, pairs, held_out, dpo, forward, session, history, emit))
    if not first():
        return
    save_policy(network, weights, output, dpo, forward, groups, emit)
    tokenizer.save_pretrained(output)
    (output / COUNTS).write_text(json.dumps(counts) + "\n")
    told = {"pairs": len(pairs), **{f"pairs dropped as {why}": count for why, count in dropped.items()}}
    (output / "README.md").write_text(model_card(job["card"], dpo, told, history.rows()), encoding="utf-8")
    record_digest(output)
