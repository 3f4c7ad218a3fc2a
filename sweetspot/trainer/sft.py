"""The worker of supervised fine-tuning: it makes a chat model of a base model.

A killed run goes on from its last whole checkpoint. The finished model is an ordinary Hugging Face folder with the chat
template in its tokenizer, and the end-of-turn token in its generation config, where sampling looks for it.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from sweetspot.component import build
from sweetspot.launch import Emit
from sweetspot.logprob.forward import choose, response_logprobs
from sweetspot.model import Model, end_ids, load_causal, record_digest
from sweetspot.sft import SFT
from sweetspot.trainer.conversations import Conversation, chat_tokenizer, lay_out, training_conversations
from sweetspot.trainer.history import CONVERSATIONS, model_card
from sweetspot.trainer.pair_trainer import StepTrainer, without_dropout
from sweetspot.trainer.parallel import Session, first, together


class SftTrainer(StepTrainer):
    """A Trainer of the answers' negative log-likelihood, averaged over the step's answer tokens (nats per token)."""

    unit = "conversations"
    measures = ("loss",)

    def collate(self, rows: Sequence[Conversation]) -> dict[str, Any]:
        """The conversations laid out for a forward pass."""
        return {"layout": lay_out(rows, self._forward.batching)}

    def measure(self, network: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The negative log-likelihood of each conversation's answers, and the sums of tokens and of these."""
        layout = inputs["layout"]
        losses = -response_logprobs(network, layout, self._forward)
        return losses, torch.stack([layout.lengths.sum().double(), losses.detach().double().sum()]).cpu()

    def weight(self, rows: Sequence[Conversation]) -> int:
        """The number of answer tokens."""
        return sum(row.targets() for row in rows)


def main(job: dict[str, Any], emit: Emit) -> None:
    """Fine-tune a base model into the folder `output`, from its last whole checkpoint where there is one.

    Args:
        job: {"model": config of the base model, "sft": config, "deepspeed": config, "conversations": a Parquet file of
            messages, "output": folder, "card": facts for the model card}.
        emit: takes progress and the metrics of each step; where several ranks train, those of the first.

    Raises:
        ValueError: when no conversation can be learned, the template cannot, or a checkpoint is not this job's.
        RuntimeError: when the loss is no longer finite.
        SystemExit: with REQUEUE, when it was told to stop and has left a checkpoint.
    """
    together(job, emit, _train)


def _train(job: dict[str, Any], session: Session, emit: Emit) -> None:
    base: Model = build(job["model"])
    sft: SFT = build(job["sft"])
    tokenizer = chat_tokenizer(base, sft)
    rows = pq.read_table(job["conversations"])["messages"].to_pylist()

    def show(done: int) -> None:
        emit({"progress": {"done": done, "total": len(rows), "unit": "conversations", "note": "to token ids"}})

    conversations, changed = training_conversations(rows, base, tokenizer, sft, show)
    counts = {
        "conversations": len(conversations),
        **changed,
        "answer_tokens": sum(row.targets() for row in conversations),
    }
    emit({"metrics": counts})
    network = load_causal(base, sft.dtype)
    without_dropout(network)
    forward = choose(network, sft, [row.group() for row in conversations[:2]], emit)
    history, output = session.history(), session.output
    weights = session.train(SftTrainer(network, conversations, [], sft, forward, session, history, emit))
    if not first():
        return
    network.config.eos_token_id = tokenizer.eos_token_id
    network.generation_config.eos_token_id = end_ids(base, tokenizer)
    network.save_pretrained(output, state_dict=weights)
    tokenizer.save_pretrained(output)
    (output / CONVERSATIONS).write_text(json.dumps(counts) + "\n")
    (output / "README.md").write_text(model_card(job["card"], sft, counts, history.rows()), encoding="utf-8")
    record_digest(output)
