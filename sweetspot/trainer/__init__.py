"""The training worker: preference optimisation on pairs of sampled token ids, by a `transformers.Trainer`.

The reference log-probabilities come with the pairs, so that no reference model is in memory. A policy in the making is
a folder with checkpoints; a checkpoint counts once its file `whole` is there, which is written last, and a killed run
goes on from the last that counts, in the same order and so to the same policy. The finished policy is an ordinary
Hugging Face folder.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sweetspot.component import build
from sweetspot.dpo import DPO
from sweetspot.launch import Emit
from sweetspot.logprob import examine, load_network
from sweetspot.logprob.forward import choose
from sweetspot.model import FINGERPRINT, Model, load_tokenizer, record_digest
from sweetspot.trainer.checkpoints import CHECKPOINTS, last_whole, step_of
from sweetspot.trainer.history import COUNTS, HISTORY, History, model_card
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
    recorded = output / FINGERPRINT
    if not recorded.exists() or not recorded.read_text().endswith("\n"):  # else only the tidying was left to do
        recorded.unlink(missing_ok=True)
        _train(job, output, emit)
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)


def _train(job: dict[str, Any], output: Path, emit: Emit) -> None:
    model: Model = build(job["model"])
    dpo: DPO = build(job["dpo"])
    tokenizer = load_tokenizer(model)
    examine(model, tokenizer, job["probe"], "training")
    rows, held_out_rows = split(pq.read_table(job["pairs"]).to_pylist(), dpo)
    pairs, dropped = training_pairs(rows, model, tokenizer, dpo)
    held_out = training_pairs(held_out_rows, model, tokenizer, dpo)[0] if held_out_rows else []
    counts = {"pairs": len(pairs), **dropped, "held_out": len(held_out)}
    emit({"metrics": counts})
    network = load_network(model, dpo)
    without_dropout(network)
    forward = choose(network, dpo, [pair.group() for pair in pairs], emit)
    checkpoint = last_whole(output / CHECKPOINTS)
    history = History(output / HISTORY, after=step_of(checkpoint) if checkpoint else 0)
    trainer = PairTrainer(network, pairs, held_out, dpo, forward, output / CHECKPOINTS, history, emit)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    network.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / COUNTS).write_text(json.dumps(counts) + "\n")
    (output / "README.md").write_text(model_card(job["card"], dpo, len(pairs), dropped, history.rows()))
    record_digest(output)
