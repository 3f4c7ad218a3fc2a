"""The training worker: DPO on pairs of sampled token ids, by a `transformers.Trainer`.

The reference log-probabilities come with the pairs, so that no reference model is in memory. A policy in the making is
a folder with checkpoints; a checkpoint counts once its file `whole` is there, which is written last, and a killed run
goes on from the last that counts, in the same order and so to the same policy. The finished policy is an ordinary
Hugging Face folder.
"""

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from sweetspot.component import build, identity
from sweetspot.dpo import DPO
from sweetspot.launch import Emit
from sweetspot.logprob import collate, examine, load_network, response_logprobs
from sweetspot.losses import dpo_loss
from sweetspot.model import FINGERPRINT, Model, load_tokenizer, prompt_ids, record_digest

CHECKPOINTS = "checkpoints"
WHOLE = "whole"  # the file that makes a checkpoint count
HISTORY = "history.jsonl"
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy")
MEASURES = ("loss", *REWARDS, "logps/chosen", "logps/rejected")  # means over a step's pairs


@dataclass(frozen=True)
class TrainingPair:
    """One pair as it is trained on: ids as sampled, reference log-probabilities in nats."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    reference_chosen: float
    reference_rejected: float


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
    pairs, dropped = training_pairs(pq.read_table(job["pairs"]).to_pylist(), model, tokenizer, dpo)
    emit({"metrics": {"pairs": len(pairs), **dropped}})
    network = load_network(model, dpo)
    without_dropout(network)
    checkpoint = last_whole(output / CHECKPOINTS)
    history = History(output / HISTORY, after=_step(checkpoint) if checkpoint else 0)
    trainer = PairTrainer(network, pairs, dpo, output / CHECKPOINTS, history, emit)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    network.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "README.md").write_text(model_card(job["card"], dpo, len(pairs), dropped, history.rows()))
    record_digest(output)


def training_pairs(
    rows: Sequence[Mapping[str, Any]], model: Model, tokenizer: Any, dpo: DPO
) -> tuple[list[TrainingPair], dict[str, int]]:
    """The pairs that fit, in the order of (prompt_id, pair_index), and how many were dropped as `too_long`.

    Raises:
        ValueError: when none fits, or a pair that fits has no finite reference log-probabilities.
    """
    kept: list[TrainingPair] = []
    for row in sorted(rows, key=lambda row: (row["prompt_id"], row["pair_index"])):
        prompt = dpo.cut(prompt_ids(model, tokenizer, row["messages"]))
        if not (dpo.fits(prompt, row["chosen_ids"]) and dpo.fits(prompt, row["rejected_ids"])):
            continue
        references = (row["reference_chosen"], row["reference_rejected"])
        if not all(map(math.isfinite, references)):
            name = f"({row['prompt_id']}, {row['pair_index']})"
            raise ValueError(f"pairs: reference log-probabilities must be finite, got {references} for pair {name}")
        kept.append(TrainingPair(prompt, list(row["chosen_ids"]), list(row["rejected_ids"]), *references))
    if not kept:
        raise ValueError(f"pairs: none of the {len(rows)} pairs fits into dpo.max_tokens = {dpo.max_tokens}")
    return kept, {"too_long": len(rows) - len(kept)}


def collate_pairs(pairs: Sequence[TrainingPair]) -> dict[str, Tensor]:
    """A batch: rows of all chosen, then all rejected responses [2 * pairs, length], and their references."""
    rows = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    references = [pair.reference_chosen for pair in pairs] + [pair.reference_rejected for pair in pairs]
    return {**collate(rows), "references": torch.tensor(references, dtype=torch.float64)}


class PairTrainer(Trainer):
    """A Trainer of the DPO loss, averaged over an optimizer step's pairs however they are cut into forward passes."""

    def __init__(
        self, network: Any, pairs: list[TrainingPair], dpo: DPO, checkpoints: Path, history: "History", emit: Emit
    ) -> None:
        super().__init__(
            model=network,
            args=training_arguments(dpo, checkpoints),
            train_dataset=cast("Any", pairs),
            data_collator=cast("Any", collate_pairs),
        )
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the step's pairs itself
        for callback in (PrinterCallback, ProgressCallback):  # `log` reports instead
            self.remove_callback(callback)
        self._dpo, self._history, self._emit = dpo, history, emit
        self._sums = torch.zeros(1 + len(MEASURES), dtype=torch.float64)  # over a step: 1, then the measures
        self._started, self._trained = time.monotonic(), 0

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """Pairs of the coming optimizer step: a device's share, as gradients are averaged over devices."""
        pairs = torch.tensor(sum(len(batch["references"]) // 2 for batch in batch_samples), device=device)
        return self._over_devices(pairs) / self.args.world_size

    def _over_devices(self, tensor: Tensor) -> Tensor:
        return tensor if self.args.world_size == 1 else cast("Tensor", self.accelerator.reduce(tensor, "sum"))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum of the pairs' losses over the number of pairs in the optimizer step."""
        logps = response_logprobs(model, inputs["token_ids"], inputs["response_mask"], self._dpo.autocast)
        references = inputs["references"].to(logps.dtype)
        losses, chosen, rejected = dpo_loss(*logps.chunk(2), *references.chunk(2), beta=self._dpo.beta)
        margin = chosen - rejected
        measures = (torch.ones_like(losses), losses, chosen, rejected, margin, margin > 0, *logps.chunk(2))
        self._sums += torch.stack([measure.detach().double().sum() for measure in measures]).cpu()
        loss = losses.sum() / cast("Any", num_items_in_batch)
        return (loss, None) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002 - the Trainer's signature
        """Take the metrics of a step, which the Trainer logs after each; its summary at the end is left out."""
        if "grad_norm" not in logs:
            return
        sums = self._over_devices(self._sums.to(self.args.device)).tolist()
        self._sums.zero_()
        row = {
            "step": self.state.global_step,
            "epoch": self.state.global_step * self._dpo.epochs / self.state.max_steps,
            **{name: total / sums[0] for name, total in zip(MEASURES, sums[1:], strict=True)},
            "grad_norm": float(logs["grad_norm"]),
            "learning_rate": float(logs["learning_rate"]),
        }
        self._report(row, int(sums[0]))

    def _report(self, row: dict[str, Any], pairs: int) -> None:
        if not self.is_world_process_zero():
            return
        if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
            raise RuntimeError(f"training: loss {row['loss']}, gradient norm {row['grad_norm']} at step {row['step']}")
        self._history.append(row)
        self._trained += pairs
        rate = self._trained / (time.monotonic() - self._started)
        note = f"{rate:.2f} pairs/s, loss {row['loss']:.3f}"
        self._emit({"progress": {"done": row["step"], "total": self.state.max_steps, "unit": "steps", "note": note}})
        self._emit({"metrics": row})

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint and mark it whole; older ones go afterwards. None at the last step: the policy follows."""
        if self.state.global_step >= self.state.max_steps:
            return
        super()._save_checkpoint(model, trial)
        if self.is_world_process_zero():
            folder = Path(cast("str", self.args.output_dir))
            (folder / f"checkpoint-{self.state.global_step}" / WHOLE).touch()
            for old in _by_step(folder)[: -self._dpo.save_total_limit]:
                shutil.rmtree(old)


def training_arguments(dpo: DPO, checkpoints: Path) -> TrainingArguments:
    """The Trainer's arguments for one device, with everything off that writes, logs or saves beside us."""
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=dpo.device_batch_size,
        gradient_accumulation_steps=dpo.batch_size // dpo.device_batch_size,
        num_train_epochs=dpo.epochs,
        learning_rate=dpo.learning_rate,
        lr_scheduler_type=dpo.schedule,
        warmup_steps=dpo.warmup_ratio,  # below 1 it is a share of the steps
        weight_decay=dpo.weight_decay,
        max_grad_norm=dpo.max_grad_norm,
        optim="adamw_torch_fused",
        seed=dpo.seed,
        gradient_checkpointing=dpo.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=dpo.save_every,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # pyright: ignore[reportPrivateUsage] - else one process is spread by DataParallel
    return arguments


def without_dropout(network: torch.nn.Module) -> None:
    """Set every dropout of the network to 0, as modules and as the rates that attention reads."""
    for module in network.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):  # pyright: ignore[reportPrivateUsage]
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def last_whole(checkpoints: Path) -> Path | None:
    """The last checkpoint that counts, or None; those that do not are deleted."""
    for folder in _by_step(checkpoints):
        if not (folder / WHOLE).exists():
            shutil.rmtree(folder)
    return max(_by_step(checkpoints), key=_step, default=None)


def _by_step(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob("checkpoint-*"), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


class History:
    """The training curve, one JSON row a step, without the rows that a resumed run makes again.

    Args:
        path: the file; rows of steps up to `after` are kept.
        after: the step that training goes on from.
    """

    def __init__(self, path: Path, after: int) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = path.read_text().split("\n")[:after] if path.exists() else []  # a step is a line, from step 1
        path.write_text("".join(f"{line}\n" for line in kept))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add the row of a step."""
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far."""
        return [json.loads(line) for line in self._path.read_text().splitlines()]


def model_card(
    card: Mapping[str, Any], dpo: DPO, pairs: int, dropped: Mapping[str, int], history: Sequence[Mapping[str, Any]]
) -> str:
    """The README of a policy: where it comes from, its hyper-parameters, and how its training went."""
    facts = {**card, "pairs": pairs, **{f"pairs dropped as {why}": count for why, count in dropped.items()}}
    ends = {
        f"{name}, {when} step": f"{row[name]:.4f}"
        for name in ("loss", "rewards/margin", "rewards/accuracy")
        for when, row in (("first", history[0]), ("last", history[-1]))
    }
    title = card.get("title", "A policy trained by sweetspot")
    sections = (("Data and start model", facts), ("DPO", identity(dpo)), (f"Training, {len(history)} steps", ends))
    tables = [f"## {name}\n\n| | |\n|---|---|\n" + _rows(table) for name, table in sections]
    return f"---\nlibrary_name: transformers\ntags: [dpo, sweetspot]\n---\n# {title}\n\n" + "\n".join(tables)


def _rows(table: Mapping[str, Any]) -> str:
    return "".join(f"| {name} | {value} |\n" for name, value in table.items())
