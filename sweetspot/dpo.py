"""The settings of training: DPO and its optimizer, and how it is spread over devices. `sweetspot.trainer` runs them."""

from typing import ClassVar, Literal

from pydantic import Field

from sweetspot.component import component, runtime


@component
class DPO:
    """Direct preference optimisation (Rafailov et al. 2023) with AdamW.

    A prompt longer than `max_prompt_tokens` loses its beginning, as in the paper. A response is never cut: a pair with
    a response that does not fit into `max_tokens` behind its prompt is dropped and counted as `too_long`.
    """

    version: ClassVar[int] = 1
    beta: float = Field(gt=0)
    learning_rate: float = Field(gt=0)
    schedule: Literal["linear", "cosine"]
    warmup_ratio: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    max_tokens: int = Field(ge=2)
    max_prompt_tokens: int = Field(ge=1)
    dtype: Literal["float64", "float32", "bfloat16"]
    autocast: Literal["bfloat16"] | None
    seed: int = Field(ge=0)
    reference: Literal["previous", "first"] = runtime()  # the reference model itself is part of a policy's key
    device_batch_size: int = runtime(ge=1)
    reference_batch_tokens: int = runtime(ge=1)
    gradient_checkpointing: bool = runtime()
    save_every: int = runtime(ge=1)
    save_total_limit: int = runtime(ge=1)

    def __post_init__(self) -> None:
        if self.batch_size % self.device_batch_size:
            raise ValueError(
                "batch_size must be a multiple of device_batch_size, "
                f"got {self.batch_size} and {self.device_batch_size}"
            )
        if self.max_prompt_tokens >= self.max_tokens:
            raise ValueError(
                "max_prompt_tokens must be smaller than max_tokens, which holds the response too, "
                f"got {self.max_prompt_tokens} and {self.max_tokens}"
            )
        if self.autocast is not None and self.dtype != "float32":
            raise ValueError(f"autocast must be null unless dtype is float32, got {self.autocast} with {self.dtype}")

    def cut(self, prompt: list[int]) -> list[int]:
        """The last `max_prompt_tokens` ids of a prompt."""
        return prompt[-self.max_prompt_tokens :]

    def fits(self, prompt: list[int], response: list[int]) -> bool:
        """Whether a cut prompt and a whole response stay within `max_tokens`."""
        return len(prompt) + len(response) <= self.max_tokens

    def environment(self) -> dict[str, str]:
        """What a training worker needs in its environment: a C library that keeps freed memory for the next step.

        Asking the system for it again cost 12 to 20% of a step on a processor.
        """
        keep = {"MMAP_THRESHOLD": 1 << 32, "TRIM_THRESHOLD": 1 << 33, "TOP_PAD": 1 << 28}
        return {f"MALLOC_{name}_": str(size) for name, size in keep.items()}


@component
class DeepSpeed:
    """How training is spread over devices: stage 0 is one process a device, each with the whole model (plain DDP)."""

    version: ClassVar[int] = 1
    stage: Literal[0] = runtime()
