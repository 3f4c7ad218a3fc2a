"""Judges: who says which of two responses is better.

A judge's fields are its identity: results of two judges have different keys and are never compared with each other.
"""

import http.client
import json
import math
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import Field

from sweetspot.component import component, runtime
from sweetspot.model import Model
from sweetspot.reward_model import RewardModel

CHARACTERS_PER_TOKEN = 4.6  # of judged English text; over five models' published judgements 4.6 to 4.9
REACH_SECONDS = 10.0


@runtime_checkable
class Judge(Protocol):
    """A component that prefers one of two responses; its name stands beside every figure that it gives."""

    @property
    def name(self) -> str:
        """How results name it."""
        ...


@component
class OpenAIJudge:
    """A chat model behind an OpenAI-compatible address, asked once for a pair.

    The key comes from the environment variable `key_variable` and is stored nowhere.
    """

    version: ClassVar[int] = 1
    name: str = runtime(min_length=1)
    model: str = Field(min_length=1)
    base_url: str = Field(min_length=1)
    extra: dict[str, Any]
    key_variable: str | None = runtime()
    lists_models: bool = runtime()
    concurrency: int = runtime(ge=1)
    attempts: int = runtime(ge=1)
    timeout: float = runtime(gt=0)
    backoff: float = runtime(ge=0)
    price_in: float = runtime(ge=0)
    price_out: float = runtime(ge=0)

    def __post_init__(self) -> None:
        if not _well_formed(self.base_url):
            raise ValueError(f"base_url must start with http:// or https:// and name a host, got {self.base_url}")

    def key(self) -> str:
        """The key to send.

        Raises:
            ValueError: when the environment has none.
        """
        if self.key_variable is None:
            return "none"
        if not (value := os.environ.get(self.key_variable, "").strip()):
            raise ValueError(f"eval.judge.key_variable: the environment variable {self.key_variable} is not set")
        return value

    def check(self) -> None:
        """Refuse a judge that cannot be asked: no key, no such address, a key or model that the address refuses.

        Nothing is paid: the address is asked for its models. Of one that does not list them any answer will do.

        Raises:
            ValueError: one line.
        """
        asked = urllib.request.Request(
            f"{self.base_url.rstrip('/')}/models", headers={"Authorization": f"Bearer {self.key()}"}
        )
        try:
            with urllib.request.urlopen(asked, timeout=REACH_SECONDS) as answer:
                content = answer.read()
            if not self.lists_models:
                return
            found = json.loads(content)
            models = [row["id"] for row in found["data"]]
        except urllib.error.HTTPError as error:
            error.close()
            if not self.lists_models:
                return
            raise ValueError(f"eval.judge.base_url: {asked.full_url} answered {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"eval.judge.base_url must be the address of an OpenAI-compatible judge, got {self.base_url} ({error})"
            ) from None
        if self.model not in models:
            shown = ", ".join(models[:5]) + (", ..." if len(models) > 5 else "")
            raise ValueError(f"eval.judge.model must be one that {self.base_url} serves ({shown}), got {self.model}")

    def price(self, tokens_in: float, tokens_out: float) -> float:
        """US dollars for so many tokens."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


@component
class VllmJudge:
    """A judge of one's own: a local model that the run serves with vLLM while it asks, and stops afterwards.

    Both verdicts are made the only possible answers, so that a model that would chat still judges.
    """

    version: ClassVar[int] = 1
    name: str = runtime(min_length=1)
    model: Model
    dtype: str = Field(min_length=1)
    max_model_len: int = Field(ge=16)
    extra: dict[str, Any] | None
    concurrency: int = runtime(ge=1)
    attempts: int = runtime(ge=1)
    timeout: float = runtime(gt=0)
    start_timeout: float = runtime(gt=0)
    tensor_parallel: int = runtime(ge=1)
    gpu_memory_utilization: float = runtime(gt=0, le=1)
    kv_cache_gb: int = runtime(ge=1)
    enforce_eager: bool = runtime()

    def at(self, base_url: str) -> OpenAIJudge:
        """The judge as it is asked once it is served at the address."""
        return OpenAIJudge(
            name=self.name,
            model=self.name,
            base_url=base_url,
            extra=self.extra or {},
            key_variable=None,
            lists_models=True,
            concurrency=self.concurrency,
            attempts=self.attempts,
            timeout=self.timeout,
            backoff=0.5,
            price_in=0.0,
            price_out=0.0,
        )


@component
class RewardJudge:
    """A reward model as a judge: preference = sigmoid(scale x (reward of the policy's - reward of the baseline's)).

    `scale` calibrates it: the value that makes its preferences as sure as people are, which `eval=reward_bench_local`
    fits with an interval. Free, and only as good as the reward model.
    """

    version: ClassVar[int] = 1
    name: str = runtime(min_length=1)
    reward_model: Any
    scale: float = Field(gt=0)

    def __post_init__(self) -> None:
        if not isinstance(self.reward_model, RewardModel):
            raise ValueError(f"reward_model must be a reward model, got {type(self.reward_model).__name__}")


@component
class PairJudge:
    """A judge of somebody's own, in Python: extend it, add fields for its settings, and give it `prefer`.

    It runs in the judging worker, pair by pair in both orders, so that its order bias shows. What it answers is kept
    with the finished evaluation and not before: a judge that is paid belongs behind an address (`OpenAIJudge`).
    """

    version: ClassVar[int] = 1
    name: str = runtime(min_length=1)

    def prefer(self, instruction: str, first: str, second: str) -> float:
        """The preference for the first response to the instruction over the second, from 0 to 1; 0.5 is a tie."""
        raise NotImplementedError


def _well_formed(address: str) -> bool:
    """Whether it is an address that can be asked."""
    try:
        parts = urllib.parse.urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number
        return False


def forecast(judge: OpenAIJudge, characters: Iterator[int] | list[int], tokens_out: int) -> dict[str, float]:
    """Requests, tokens and US dollars of requests with so many characters each and at most `tokens_out` back."""
    counted = list(characters)
    tokens = sum(math.ceil(count / CHARACTERS_PER_TOKEN) for count in counted)
    price = judge.price(tokens, tokens_out * len(counted))
    return {"requests": len(counted), "tokens": tokens, "price": price}
