"""A reward that is a Python function of yours, such as a verifiable one: f(messages, response) -> float."""

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import Field

from sweetspot.component import component
from sweetspot.reward_model import Conversation, RewardModel, Scorer, Scores

Function = Callable[[list[dict[str, str]], str], float]


@component
class PythonFunction(RewardModel):
    """The function at a dotted path: messages (the turns that were answered) and response (text) -> reward.

    It must be pure. The text of its module is part of the key, so that an edited function is another reward model; what
    the module imports is not.
    """

    function: str = Field(pattern=r"^\w+(\.\w+)+$")

    def identity(self) -> dict[str, Any]:
        """The path and the content of the module's file, which is not run for it; the packages above it are.

        Raises:
            ValueError: when there is no such module.
        """
        return {
            "class": "sweetspot.reward_model.python_function.PythonFunction",
            "version": self.version,
            "function": self.function,
            "source": hashlib.sha256(source(self.function).read_bytes()).hexdigest(),
        }

    def scorer(self) -> Scorer:
        """The function.

        Raises:
            ValueError: when there is no such module, or no such function in it.
        """
        source(self.function)
        module, _, name = self.function.rpartition(".")
        function: Any = getattr(importlib.import_module(module), name, None)
        if not callable(function):
            raise ValueError(f"reward_model.function must be a function of {module}, got {name!r}")
        return FunctionScorer(cast("Function", function), self.function)


def source(function: str) -> Path:
    """The file of the function's module.

    Raises:
        ValueError: when the module is not on the Python path, or is not a file of Python text.
    """
    module = function.rpartition(".")[0]
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # a parent package is missing
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ValueError(f"reward_model.function must be in a module on the Python path, got {function}")
    return Path(spec.origin)


@dataclass(frozen=True)
class FunctionScorer:
    """The function, called once a conversation."""

    function: Function
    name: str
    tokenizer = None  # it reads text

    def __call__(self, conversations: Sequence[Conversation], progress: Callable[[int], None]) -> Scores:
        """The rewards; see `Scorer`.

        Raises:
            ValueError: when the function gives no number.
        """
        rewards = np.empty(len(conversations), dtype=np.float32)
        for place, each in enumerate(conversations):
            reward: Any = self.function([dict(turn) for turn in each.messages], each.response)
            if not isinstance(reward, int | float | np.floating):
                raise ValueError(f"reward_model.function: {self.name} must give a float, got {reward!r}")
            rewards[place] = float(reward)
            progress(1)
        return Scores(rewards, None, 0)
