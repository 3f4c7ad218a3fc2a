"""How fast training goes: rows (pairs) and tokens a second, memory, and the use of the machine's matrix products."""

import resource
import time
from collections.abc import Sequence
from typing import Any

import torch

from sweetspot.logprob.forward import Forward
from sweetspot.logprob.products import installed, product
from sweetspot.trainer.pairs import Row


class Speed:
    """A clock over optimizer steps, of this process.

    Args:
        network: the policy, as it is trained.
        forward: how it is run.
        unit: what its rows are ("pairs").
        devices: how many train together; the rows are those of all.
    """

    def __init__(self, network: Any, forward: Forward, unit: str, devices: int) -> None:
        config = network.config.get_text_config()
        tables = sum(_flops(table.weight) for table in _tables(network))
        self._head = _flops(network.get_output_embeddings().weight)
        self._body = sum(map(_flops, network.parameters())) - tables
        self._unit = unit
        self._width = config.num_hidden_layers * config.hidden_size
        self._rate = product_rate(network, forward) * devices
        self._rows, self._tokens, self._done = 0, 0, 0.0
        self._last = time.monotonic()

    def take(self, rows: Sequence[Row]) -> None:
        """Count the rows of the coming step."""
        self._rows += len(rows)
        self._tokens += sum(row.tokens() for row in rows)
        self._done += sum(map(self._flops_of, rows))

    def _flops_of(self, row: Row) -> float:
        """Floating-point operations that a row needs at least, forward and backward.

        `_flops` of each weight and token (a prompt once; the head at its targets), and 12 for each layer, hidden unit
        and pair of tokens of which one sees the other.
        """
        prompt, responses = row.lengths()
        seen = prompt**2 / 2 + sum(prompt * length + length**2 / 2 for length in responses)
        return self._body * (prompt + sum(responses)) + self._head * row.targets() + 12 * self._width * seen

    def of_step(self) -> dict[str, float]:
        """The metrics of the step that ends now.

        `speed/tokens_per_second` counts a prompt in each of its sequences, so that it compares ways of batching.
        `speed/flops_use` is the share of `product_rate`. `memory/peak_gb` is that of the process so far.
        """
        now = time.monotonic()
        seconds = now - self._last
        found = {
            f"speed/{self._unit}_per_second": self._rows / seconds,
            "speed/tokens_per_second": self._tokens / seconds,
            "speed/flops_use": self._done / seconds / self._rate,
            "memory/peak_gb": peak_bytes() / 1e9,
        }
        self._rows, self._tokens, self._done, self._last = 0, 0, 0.0, now
        return found


def _flops(weight: torch.Tensor) -> int:
    """Operations of a weight matrix for each token: 2 forward, 2 for its states, 2 for itself where it is trained."""
    return (6 if weight.requires_grad else 4) * weight.numel()


def _tables(network: Any) -> list[Any]:
    """The embedding and the head, once where they are tied."""
    table, head = network.get_input_embeddings(), network.get_output_embeddings()
    return [table] if table.weight is head.weight else [table, head]


@torch.inference_mode()
def product_rate(network: Any, forward: Forward) -> float:
    """FLOP/s of one large matrix product on this device in the dtype of training: the best of five."""
    first = next(network.parameters())
    size = 8192 if first.device.type == "cuda" else 1024
    dtype = getattr(torch, forward.autocast) if forward.autocast else first.dtype
    left, right = (torch.ones(size, size, dtype=dtype, device=first.device) for _ in range(2))
    onednn = installed(network.get_output_embeddings())
    best = min(_seconds(left, right, onednn) for _ in range(5))
    return 2 * size**3 / best


def _seconds(left: torch.Tensor, right: torch.Tensor, onednn: bool) -> float:
    started = time.perf_counter()
    product(left, right, onednn)
    if left.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_bytes() -> int:
    """The most memory that this process has held: allocated on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KB on Linux
