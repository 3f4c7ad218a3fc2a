"""The Trainer of losses over rows, and that of preference losses over pairs."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from sweetspot.dpo import DPO
from sweetspot.launch import Emit
from sweetspot.logprob.forward import Forward, response_logprobs
from sweetspot.losses import LOSSES, PairLogprobs, nll, rewards
from sweetspot.ranks import SAVING, TRAINING, divide
from sweetspot.sft import SFT
from sweetspot.trainer.checkpoints import make_whole
from sweetspot.trainer.history import History
from sweetspot.trainer.pairs import Row, TrainingPair, regroup, shares
from sweetspot.trainer.parallel import Session, barrier, size, zero_config
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


def collate_pairs(pairs: Sequence[TrainingPair], forward: Forward) -> dict[str, Any]:
    """The inputs of a forward pass: `layout` (chosen, rejected, chosen, ..) and `references` [pairs, 2] in nats."""
    references = [(pair.reference_chosen, pair.reference_rejected) for pair in pairs]
    layout = forward.layout([pair.group() for pair in pairs])
    return {"layout": layout, "references": torch.tensor(references, dtype=torch.float64)}


class StepTrainer(Trainer):
    """A Trainer of a loss that is a mean over an optimizer step, however its rows are cut into forward passes.

    What a row is, and what the mean is taken over, is told by `unit`, `measures` and the methods that the two Trainers
    define: `collate`, `measure` and `weight`.

    Args:
        network: the policy, set up for `forward`.
        rows: what is trained on.
        held_out: what the loss is measured on after each epoch, empty for no such measurement.
        settings: of the optimizer and of checkpoints.
        forward: how log-probabilities are computed.
        session: this training on its ranks.
        history: takes a row a step.
        emit: takes progress and the metrics of each step.
    """

    unit: ClassVar[str]
    measures: ClassVar[tuple[str, ...]]  # means over the step's weight

    def __init__(
        self,
        network: Any,
        rows: Sequence[Row],
        held_out: Sequence[Row],
        settings: DPO | SFT,
        forward: Forward,
        session: Session,
        history: History,
        emit: Emit,
    ) -> None:
        super().__init__(
            model=network,
            args=training_arguments(settings, session),
            train_dataset=cast("Any", rows),
            data_collator=cast("Any", list),  # `get_batch_samples` lays them out
        )
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the step's weight itself
        for callback in (PrinterCallback, ProgressCallback):  # `log` reports instead
            self.remove_callback(callback)
        self._settings, self._forward, self._history, self._emit = settings, forward, history, emit
        self._held_out, self._session = held_out, session
        self.stopped = False  # whether it was told to, and has left a checkpoint
        self._sums = torch.zeros(1 + len(self.measures), dtype=torch.float64)  # over a step: weight, then the measures
        self._speed = Speed(network, forward, self.unit, size())

    def collate(self, rows: Sequence[Any]) -> dict[str, Any]:
        """The inputs of a forward pass over the rows."""
        raise NotImplementedError

    def measure(self, network: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The losses whose sum is divided by the step's weight, and the sums of the weight and of each measure."""
        raise NotImplementedError

    def weight(self, rows: Sequence[Any]) -> int:
        """What the mean is taken over: the number of these rows, say."""
        raise NotImplementedError

    def get_train_dataloader(self) -> Any:
        """The rows in batches of all ranks together; `get_batch_samples` takes this rank's share of a step.

        Left to itself, accelerate gives rows a second turn where the last batches are short of some.
        """
        ranks = self.args.world_size
        loader: Any = self._get_dataloader(  # pyright: ignore[reportUnknownMemberType]
            dataset=cast("Any", self.train_dataset),
            description="Training",
            batch_size=self.args.per_device_train_batch_size * ranks,
            sampler_fn=cast("Any", self._get_train_sampler),
            is_training=True,
        )
        if ranks > 1:
            shard = loader.batch_sampler
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The inputs of this rank's forward passes in the coming optimizer step, and the step's weight per rank, as
        gradients are averaged over ranks.

        All ranks make as many passes; one that no row is left for goes over the first row and does not count.
        """
        cuts: list[list[Any]] = list(itertools.islice(epoch_iterator, num_batches))
        rows = [row for cut in cuts for row in cut]
        self._speed.take(rows)
        ranks = self.args.world_size
        parts = regroup(rows, shares(list(map(len, cuts)), ranks), self._forward.batching)
        mine = parts[self.args.process_index :: ranks]
        inputs = [{**self.collate(part or rows[:1]), "counts": torch.tensor(bool(part))} for part in mine]
        return inputs, torch.tensor(self.weight(rows) / ranks, device=device, dtype=torch.float64)

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
        """The sum of the rows' losses over the weight of the optimizer step."""
        losses, sums = self.measure(model, inputs)
        counts = inputs["counts"]
        self._session.beat.move()
        self._sums += sums * counts.cpu()
        loss = losses.sum() * counts / cast("Any", num_items_in_batch)
        return (loss, None) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002 - the Trainer's signature
        """Take the metrics of a step, which the Trainer logs after each; its summary at the end is left out."""
        if "grad_norm" not in logs:
            return
        self._session.beat.doing = TRAINING
        step, steps = self.state.global_step, self.state.max_steps
        asked = torch.tensor([self._session.asked.is_set()], dtype=self._sums.dtype)
        *sums, stop = self._over_devices(torch.cat([self._sums, asked]).to(self.args.device)).tolist()
        if stop and step < steps:
            self.stopped = self.control.should_save = self.control.should_training_stop = True
        row = {
            "step": step,
            "epoch": step * self._settings.epochs / steps,
            **self._means(sums),
            "grad_norm": float(logs["grad_norm"]),
            "learning_rate": float(logs["learning_rate"]),
        }
        self._sums.zero_()
        speed = self._speed.of_step()
        if self._held_out and step % (steps // self._settings.epochs) == 0:
            row |= {f"held_out/{name}": value for name, value in self._measure_held_out().items()}
        if self.is_world_process_zero():
            self._report(row, speed)

    def _means(self, sums: Sequence[float]) -> dict[str, float]:
        weight, *totals = sums
        return {name: total / weight for name, total in zip(self.measures, totals, strict=True)}

    @torch.no_grad()
    def _measure_held_out(self) -> dict[str, float]:
        """The means of the measures over the held-out rows; every device measures them all."""
        sums = torch.zeros_like(self._sums)
        for start in range(0, len(self._held_out), self._settings.device_batch_size):
            part = self._held_out[start : start + self._settings.device_batch_size]
            sums += self.measure(self.model_wrapped, self._prepare_inputs(self.collate(part)))[1]
            self._session.beat.move()
        return self._means(sums.tolist())

    def _report(self, row: dict[str, Any], speed: dict[str, float]) -> None:
        if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
            raise RuntimeError(f"training: loss {row['loss']}, gradient norm {row['grad_norm']} at step {row['step']}")
        self._history.append(row)
        rate = speed[f"speed/{self.unit}_per_second"]
        note = f"{rate:.2f} {self.unit}/s, loss {row['loss']:.3f}"
        self._emit({"progress": {"done": row["step"], "total": self.state.max_steps, "unit": "steps", "note": note}})
        self._emit({"metrics": {**row, **speed}})

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint and mark it whole; older ones go afterwards. None at the last step: the policy follows."""
        if self.state.global_step >= self.state.max_steps:
            return
        self._session.beat.doing = SAVING
        super()._save_checkpoint(model, trial)
        barrier()  # all ranks have written their files
        if self.is_world_process_zero():
            folder = self._session.checkpoints / f"checkpoint-{self.state.global_step}"
            make_whole(folder, self._settings.save_total_limit, self._session.facts())
        self._session.beat.doing = TRAINING

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights into a checkpoint; DeepSpeed writes them itself, as each rank has them."""
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)


class PairTrainer(StepTrainer):
    """A Trainer of a preference loss, averaged over the step's pairs."""

    unit = "pairs"
    measures = MEASURES

    def collate(self, rows: Sequence[TrainingPair]) -> dict[str, Any]:
        """The pairs laid out for a forward pass, with their references."""
        return collate_pairs(rows, self._forward)

    def measure(self, network: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The loss of each pair, and the sums over the pairs of 1 and of each of MEASURES."""
        return measure(network, inputs, self._forward, cast("DPO", self._settings))

    def weight(self, rows: Sequence[TrainingPair]) -> int:
        """The number of the pairs."""
        return len(rows)


def training_arguments(dpo: DPO | SFT, session: Session) -> TrainingArguments:
    """The Trainer's arguments for one rank, with everything off that writes, logs or saves beside us."""
    device_batch_size, accumulation = divide(dpo.batch_size, dpo.device_batch_size, size())
    zero = zero_config(session.deepspeed, dpo)
    arguments = TrainingArguments(
        output_dir=str(session.checkpoints),
        per_device_train_batch_size=device_batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=dpo.epochs,
        learning_rate=dpo.learning_rate,
        lr_scheduler_type=dpo.schedule,
        warmup_steps=dpo.warmup_ratio,  # below 1 it is a share of the steps
        weight_decay=dpo.weight_decay,
        max_grad_norm=dpo.max_grad_norm,
        optim="adamw_torch" if zero else "adamw_torch_fused",
        deepspeed=zero,
        ddp_find_unused_parameters=False,
        seed=dpo.seed,
        gradient_checkpointing=dpo.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": session.deepspeed.stage == 3},
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
