"""How fast training goes: pairs and tokens a second, memory, and the use of the machine's matrix products."""

import resource
import time
from collections.abc import Sequence
from typing import Any

import torch

from sweetspot.logprob.forward import Forward
from sweetspot.logprob.products import installed, product
from sweetspot.trainer.pairs import TrainingPair


class Speed:
    """A clock over optimizer steps, of this process.

    Args:
        network: the policy, as loaded.
        forward: how it is run.
    """

    def __init__(self, network: Any, forward: Forward) -> None:
        config = network.config.get_text_config()
        tables = {id(table): table.weight.numel() for table in _tables(network)}
        self._head = network.get_output_embeddings().weight.numel()
        self._body = sum(weight.numel() for weight in network.parameters()) - sum(tables.values())
        self._width = config.num_hidden_layers * config.hidden_size
        self._rate = product_rate(network, forward)
        self._pairs, self._tokens, self._flops = 0, 0, 0.0
        self._last = time.monotonic()

    def take(self, pairs: Sequence[TrainingPair]) -> None:
        """Count the pairs of the coming step."""
        self._pairs += len(pairs)
        self._tokens += sum(map(TrainingPair.tokens, pairs))
        self._flops += sum(map(self._flops_of, pairs))

    def _flops_of(self, pair: TrainingPair) -> float:
        """Floating-point operations that a pair needs at least, forward and backward.

        6 for each weight and token (the prompt once; the head at response tokens), and 12 for each layer, hidden unit
        and pair of tokens of which one sees the other.
        """
        prompt, responses = len(pair.prompt), (len(pair.chosen), len(pair.rejected))
        seen = prompt**2 / 2 + sum(prompt * length + length**2 / 2 for length in responses)
        return 6 * self._body * (prompt + sum(responses)) + 6 * self._head * sum(responses) + 12 * self._width * seen

    def of_step(self) -> dict[str, float]:
        """The metrics of the step that ends now.

        `speed/tokens_per_second` counts the prompt in both sequences of a pair, so that it compares ways of batching.
        `speed/flops_use` is the share of `product_rate`. `memory/peak_gb` is that of the process so far.
        """
        now = time.monotonic()
        seconds = now - self._last
        found = {
            "speed/pairs_per_second": self._pairs / seconds,
            "speed/tokens_per_second": self._tokens / seconds,
            "speed/flops_use": self._flops / seconds / self._rate,
            "memory/peak_gb": peak_bytes() / 1e9,
        }
        self._pairs, self._tokens, self._flops, self._last = 0, 0, 0.0, now
        return found


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
