"""The Trainer of preference losses over pairs."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from sweetspot.dpo import DPO
from sweetspot.launch import Emit
from sweetspot.logprob.forward import Forward, response_logprobs
from sweetspot.losses import LOSSES, PairLogprobs, nll, rewards
from sweetspot.trainer.checkpoints import make_whole
from sweetspot.trainer.history import History
from sweetspot.trainer.pairs import TrainingPair, regroup
from sweetspot.trainer.speed import Speed

REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy")
MEASURES = ("loss", *REWARDS, "logps/chosen", "logps/rejected")  # means over pairs


def measure(network: Any, inputs: dict[str, Any], forward: Forward, dpo: DPO) -> tuple[Tensor, Tensor]:
    """The loss of each pair [pairs], and the sums over the pairs of 1 and of each of MEASURES, without gradients."""
    layout = inputs["layout"]
    chosen, rejected = response_logprobs(network, layout, forward).view(-1, 2).unbind(1)
    lengths = layout.lengths.to(chosen.dtype).view(-1, 2).unbind(1)
    pairs = PairLogprobs(chosen, rejected, *inputs["references"].to(chosen.dtype).unbind(1), *lengths)
    losses = LOSSES[dpo.loss](pairs, **dpo.options())
    if dpo.sft_weight:
        losses = losses + dpo.sft_weight * nll(pairs)
    of_chosen, of_rejected = rewards(pairs, dpo.beta, dpo.reference_free)
    margin = of_chosen - of_rejected
    values = (torch.ones_like(losses), losses, of_chosen, of_rejected, margin, margin > 0, chosen, rejected)
    return losses, torch.stack([value.detach().double().sum() for value in values]).cpu()


def collate_pairs(pairs: list[TrainingPair], forward: Forward) -> dict[str, Any]:
    """The inputs of a forward pass: `layout` (chosen, rejected, chosen, ..) and `references` [pairs, 2] in nats."""
    references = [(pair.reference_chosen, pair.reference_rejected) for pair in pairs]
    layout = forward.layout([pair.group() for pair in pairs])
    return {"layout": layout, "references": torch.tensor(references, dtype=torch.float64)}


class PairTrainer(Trainer):
    """A Trainer of a preference loss, averaged over an optimizer step's pairs however they are cut into forward passes.

    Args:
        network: the policy, set up for `forward`.
        pairs: what is trained on.
        held_out: what the loss is measured on after each epoch, empty for no such measurement.
        dpo: the settings.
        forward: how log-probabilities are computed.
        checkpoints: the folder of the checkpoints.
        history: takes a row a step.
        emit: takes progress and the metrics of each step.
    """

    def __init__(
        self,
        network: Any,
        pairs: list[TrainingPair],
        held_out: list[TrainingPair],
        dpo: DPO,
        forward: Forward,
        checkpoints: Path,
        history: History,
        emit: Emit,
    ) -> None:
        super().__init__(
            model=network,
            args=training_arguments(dpo, checkpoints),
            train_dataset=cast("Any", pairs),
            data_collator=cast("Any", list),  # `get_batch_samples` lays them out
        )
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the step's pairs itself
        for callback in (PrinterCallback, ProgressCallback):  # `log` reports instead
            self.remove_callback(callback)
        self._dpo, self._forward, self._history, self._emit = dpo, forward, history, emit
        self._held_out = held_out
        self._sums = torch.zeros(1 + len(MEASURES), dtype=torch.float64)  # over a step: 1, then the measures
        self._speed = Speed(network, forward)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The inputs of the coming optimizer step's forward passes, and its pairs: a device's share of them, as
        gradients are averaged over devices."""
        cuts: list[list[TrainingPair]] = list(itertools.islice(epoch_iterator, num_batches))
        pairs = [pair for cut in cuts for pair in cut]
        self._speed.take(pairs)
        parts = regroup(pairs, list(map(len, cuts)), self._forward.batching)
        total = self._over_devices(torch.tensor(len(pairs), device=device)) / self.args.world_size
        return [collate_pairs(part, self._forward) for part in parts], total

    def _over_devices(self, tensor: Tensor) -> Tensor:
        return tensor if self.args.world_size == 1 else cast("Tensor", self.accelerator.reduce(tensor, "sum"))

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: value.to(self.args.device) for name, value in inputs.items()}

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum of the pairs' losses over the number of pairs in the optimizer step."""
        losses, sums = measure(model, inputs, self._forward, self._dpo)
        self._sums += sums
        loss = losses.sum() / cast("Any", num_items_in_batch)
        return (loss, None) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002 - the Trainer's signature
        """Take the metrics of a step, which the Trainer logs after each; its summary at the end is left out."""
        if "grad_norm" not in logs:
            return
        step, steps = self.state.global_step, self.state.max_steps
        row = {
            "step": step,
            "epoch": step * self._dpo.epochs / steps,
            **self._means(self._over_devices(self._sums.to(self.args.device))),
            "grad_norm": float(logs["grad_norm"]),
            "learning_rate": float(logs["learning_rate"]),
        }
        self._sums.zero_()
        speed = self._speed.of_step()
        if self._held_out and step % (steps // self._dpo.epochs) == 0:
            row |= {f"held_out/{name}": value for name, value in self._measure_held_out().items()}
        if self.is_world_process_zero():
            self._report(row, speed)

    @staticmethod
    def _means(sums: Tensor) -> dict[str, float]:
        count, *totals = sums.tolist()
        return {name: total / count for name, total in zip(MEASURES, totals, strict=True)}

    @torch.no_grad()
    def _measure_held_out(self) -> dict[str, float]:
        """The means of MEASURES over the held-out pairs; every device measures them all."""
        sums = torch.zeros_like(self._sums)
        for start in range(0, len(self._held_out), self._dpo.device_batch_size):
            part = self._held_out[start : start + self._dpo.device_batch_size]
            inputs = self._prepare_inputs(collate_pairs(part, self._forward))
            sums += measure(self.model_wrapped, inputs, self._forward, self._dpo)[1]
        return self._means(sums)

    def _report(self, row: dict[str, Any], speed: dict[str, float]) -> None:
        if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
            raise RuntimeError(f"training: loss {row['loss']}, gradient norm {row['grad_norm']} at step {row['step']}")
        self._history.append(row)
        note = f"{speed['speed/pairs_per_second']:.2f} pairs/s, loss {row['loss']:.3f}"
        self._emit({"progress": {"done": row["step"], "total": self.state.max_steps, "unit": "steps", "note": note}})
        self._emit({"metrics": {**row, **speed}})

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint and mark it whole; older ones go afterwards. None at the last step: the policy follows."""
        if self.state.global_step >= self.state.max_steps:
            return
        super()._save_checkpoint(model, trial)
        if self.is_world_process_zero():
            folder = Path(cast("str", self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            make_whole(folder, self._dpo.save_total_limit)


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
