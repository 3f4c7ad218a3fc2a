"""Our settings as TRL's: its fastest exact ones, for the parity test and the benchmark."""

import warnings
from pathlib import Path
from typing import Any

from sweetspot.dpo import DPO

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of trl's optional parts
    from trl import DPOConfig


def trl_arguments(settings: DPO, folder: Path, **changes: Any) -> DPOConfig:
    """The same run as `settings`, references computed before and nothing written."""
    return DPOConfig(
        output_dir=str(folder),
        beta=settings.beta,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.device_batch_size,
        gradient_accumulation_steps=settings.batch_size // settings.device_batch_size,
        optim="adamw_torch_fused",
        seed=settings.seed,
        bf16=False,
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
        max_length=None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **changes,
    )
