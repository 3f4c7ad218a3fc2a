"""The settings of training, and how it is spread over devices. `sweetspot.trainer` runs them."""

import hashlib
import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

from pydantic import Field

from sweetspot.component import component, runtime

# The fields of DPO that each function of losses.LOSSES reads, in the order of the table there.
READS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "dpo": ("beta", "label_smoothing"),
        "robust": ("beta", "label_smoothing"),
        "ipo": ("beta",),
        "hinge": ("beta",),
        "rdpo": ("beta", "length_alpha"),
        "apo_zero": ("beta",),
        "sppo_hard": ("beta",),
        "simpo": ("beta", "gamma"),
        "orpo": ("beta",),
    }
)
REFERENCE_FREE = frozenset({"simpo", "orpo"})
OPTIONS = ("label_smoothing", "gamma", "length_alpha")  # read by some losses; 0 says nothing
LORA = ("lora_rank", "lora_alpha", "lora_targets")  # read by adapter=lora; null says nothing


@component
class DPO:
    """Preference optimisation (DPO, Rafailov et al. 2023, and its kin) with AdamW.

    A prompt longer than `max_prompt_tokens` loses its beginning, as in the paper. A response is never cut: a pair with
    a response that does not fit into `max_tokens` behind its prompt is dropped and counted as `too_long`.

    With `adapter` "lora" (Hu et al. 2021) the weights W of the targets stay as they are and W + (alpha / rank) B A is
    trained, with A [rank, in] and B [out, rank]. There is no dropout in it, as there is none elsewhere in training.
    """

    version: ClassVar[int] = 3
    loss: Literal["dpo", "robust", "ipo", "hinge", "rdpo", "apo_zero", "sppo_hard", "simpo", "orpo"]
    beta: float = Field(gt=0)
    label_smoothing: float = Field(ge=0, lt=0.5)
    gamma: float = Field(ge=0)
    length_alpha: float = Field(ge=0)
    sft_weight: float = Field(ge=0)
    learning_rate: float = Field(gt=0)
    schedule: Literal["linear", "cosine"]
    warmup_ratio: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    max_tokens: int = Field(ge=2)
    max_prompt_tokens: int = Field(ge=1)
    held_out_share: float = Field(ge=0, lt=1)
    dtype: Literal["float64", "float32", "bfloat16"]
    autocast: Literal["bfloat16"] | None
    seed: int = Field(ge=0)
    adapter: Literal["lora"] | None
    lora_rank: int | None = Field(ge=1)
    lora_alpha: float | None = Field(gt=0)
    lora_targets: list[str] | Literal["all-linear"] | None
    reference: Literal["recompute", "sampler"]
    reference_model: Literal["previous", "first"] = runtime()  # the model itself is part of a policy's key
    batching: Literal["auto", "padded", "packed", "shared_prefix"] = runtime()
    matmul: Literal["auto", "onednn", "torch"] = runtime()
    device_batch_size: int = runtime(ge=1)
    reference_batch_tokens: int = runtime(ge=1)
    gradient_checkpointing: bool = runtime()
    save_every: int = runtime(ge=1)
    save_total_limit: int = runtime(ge=1)

    def __post_init__(self) -> None:
        check_steps(self.batch_size, self.device_batch_size, self.dtype, self.autocast)
        if self.max_prompt_tokens >= self.max_tokens:
            raise ValueError(
                "max_prompt_tokens must be smaller than max_tokens, which holds the response too, "
                f"got {self.max_prompt_tokens} and {self.max_tokens}"
            )
        self._check_loss()
        self._check_adapter()

    def _check_adapter(self) -> None:
        for name in LORA:
            value = getattr(self, name)
            if self.adapter is None and value is not None:
                raise ValueError(f"{name} must be null without adapter=lora, which alone reads it, got {value}")
            if self.adapter is not None and value is None:
                raise ValueError(f"{name} must be given with adapter={self.adapter} (dpo=lora has values), got null")
        if self.lora_targets == []:
            raise ValueError("lora_targets must name a layer at least, or be all-linear, got []")

    def check_libraries(self) -> None:
        """Refuse an adapter where the library that trains it is not installed.

        Raises:
            ValueError: naming the package and how to install it.
        """
        if self.adapter is not None and importlib.util.find_spec("peft") is None:
            raise ValueError(
                f"dpo.adapter={self.adapter} needs the package peft, which is not installed: pip install '.[lora]'"
            )

    def _check_loss(self) -> None:
        for name in OPTIONS:
            if name not in READS[self.loss] and getattr(self, name):
                readers = ", ".join(loss for loss, fields in READS.items() if name in fields)
                raise ValueError(
                    f"{name} must be 0 with loss={self.loss}, which does not read it (it is for {readers}), "
                    f"got {getattr(self, name)}"
                )
        if self.loss == "orpo" and self.sft_weight:
            raise ValueError(f"sft_weight must be 0 with loss=orpo, which has an NLL term, got {self.sft_weight}")
        for name, only in (("reference", "recompute"), ("reference_model", "previous")):
            if self.reference_free and getattr(self, name) != only:
                raise ValueError(
                    f"{name} must be left at {only} with loss={self.loss}, which has no reference, "
                    f"got {getattr(self, name)}"
                )
        if self.reference == "sampler" and self.reference_model == "first":
            raise ValueError(
                "reference_model must be previous with reference=sampler, whose samples are the previous policy's, "
                "got first"
            )

    @property
    def reference_free(self) -> bool:
        """Whether the loss reads no reference log-probability."""
        return self.loss in REFERENCE_FREE

    def options(self) -> dict[str, float]:
        """The keyword arguments of the loss function."""
        return {name: getattr(self, name) for name in READS[self.loss]}

    def holds_out(self, prompt_id: str) -> bool:
        """Whether a prompt's pairs are held out of training: by the hash of its id, so the same for every strategy."""
        digest = hashlib.sha256(f"held out {prompt_id}".encode()).digest()
        return int.from_bytes(digest[:8]) < self.held_out_share * 2**64

    def cut(self, prompt: list[int]) -> list[int]:
        """The last `max_prompt_tokens` ids of a prompt."""
        return prompt[-self.max_prompt_tokens :]

    def fits(self, prompt: list[int], response: list[int]) -> bool:
        """Whether a cut prompt and a whole response stay within `max_tokens`."""
        return len(prompt) + len(response) <= self.max_tokens

    def environment(self) -> dict[str, str]:
        """What a training worker needs in its environment."""
        return keeping_memory()


def check_steps(batch_size: int, device_batch_size: int, dtype: str, autocast: str | None) -> None:
    """Refuse a step that forward passes of the given size do not fill, and an autocast that changes nothing.

    Raises:
        ValueError: one line: key, rule, value.
    """
    if batch_size % device_batch_size:
        raise ValueError(
            f"batch_size must be a multiple of device_batch_size, got {batch_size} and {device_batch_size}"
        )
    if autocast is not None and dtype != "float32":
        raise ValueError(f"autocast must be null unless dtype is float32, got {autocast} with {dtype}")


def keeping_memory() -> dict[str, str]:
    """The environment of a C library that keeps freed memory for the next step.

    Asking the system for it again cost 12 to 20% of a step on a processor.
    """
    keep = {"MMAP_THRESHOLD": 1 << 32, "TRIM_THRESHOLD": 1 << 33, "TOP_PAD": 1 << 28}
    return {f"MALLOC_{name}_": str(size) for name, size in keep.items()}


@component
class DeepSpeed:
    """How training is spread over devices (ZeRO, Rajbhandari et al. 2020).

    Stage 0 is one process a device, each with the whole model (plain DDP). Stage 1 shards the optimizer's state, 2 the
    gradients too, 3 the weights too; `offload` keeps the shards of stage 3 in the memory of the processor.
    """

    version: ClassVar[int] = 1
    stage: Literal[0, 1, 2, 3] = runtime()
    offload: bool = runtime()
    bucket_size: int = runtime(ge=1)
    persistence_threshold: int = runtime(ge=0)

    def __post_init__(self) -> None:
        if self.offload and self.stage != 3:
            raise ValueError(f"offload must be false unless stage is 3, got true with stage {self.stage}")

    def check(self, dtype: str, adapter: str | None) -> None:
        """Refuse what DeepSpeed would train otherwise than is asked for.

        Args:
            dtype: of the weights in training.
            adapter: what is trained in their place, if anything.

        Raises:
            ValueError: in one line.
        """
        if self.stage and dtype != "float32":
            raise ValueError(
                f"dtype of training must be float32 with deepspeed, which keeps float32 weights, got {dtype}; "
                "autocast=bfloat16 has its products in bfloat16"
            )
        if self.stage == 3 and adapter is not None:
            raise ValueError(f"deepspeed.stage must be 0, 1 or 2 with dpo.adapter={adapter}, got 3")
