"""ArmoRM: 19 objectives, weighed by a gate that reads the prompt. Our own network for the checkpoint's weights.

Source: Wang et al., Interpretable Preferences via Multi-Objective Reward Modeling and Mixture-of-Experts, 2024
(arXiv 2406.12845), and the names and shapes of the published weights (RLHFlow/ArmoRM-Llama3-8B-v0.1).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoConfig, LlamaConfig, LlamaModel, PreTrainedModel

from sweetspot.reward_model import ArmoRM, Conversation, Scorer, Scores
from sweetspot.reward_model.decoder import Decoder, Row, last
from sweetspot.reward_model.rendering import names, render, tokenizer_of
from sweetspot.reward_model.selftest import checked


class Gate(torch.nn.Module):
    """softmax(MLP(prompt) / temperature) * logit_scale: one weight an objective."""

    def __init__(self, width: int, hidden: int, depth: int, objectives: int, temperature: float) -> None:
        super().__init__()
        sizes = [width, *[hidden] * depth, objectives]
        self.layers = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.logit_scale = torch.nn.Parameter(torch.ones(1))
        self.temperature = temperature

    def forward(self, prompt: torch.Tensor) -> torch.Tensor:
        """The weights of the objectives.  # [rows, objectives] of [rows, width]"""
        *hidden, out = self.layers
        for layer in hidden:
            prompt = torch.relu(layer(prompt))
        return torch.softmax(out(prompt) / self.temperature, dim=-1) * self.logit_scale


class ArmoNetwork(PreTrainedModel):
    """The Llama body and the two heads, by the names of the published weights.

    The heads are computed in float32 whatever the body's dtype: they are a thousandth of the work.
    """

    config_class = LlamaConfig
    base_model_prefix = "model"
    _keep_in_fp32_modules_strict = ["gating", "regression_layer", "reward_transform_matrix"]  # noqa: RUF012 - theirs
    _no_split_modules = ["LlamaDecoderLayer"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        objectives = config.num_objectives
        self.model = LlamaModel(config)
        self.regression_layer = torch.nn.Linear(config.hidden_size, objectives, bias=False)
        self.reward_transform_matrix = torch.nn.Parameter(torch.eye(objectives), requires_grad=False)
        self.gating = Gate(
            config.hidden_size,
            config.gating_hidden_dim,
            config.gating_n_hidden,
            objectives,
            config.gating_temperature,
        )
        self.post_init()

    def heads(self, prompt: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        """The reward and then the objectives.  # [rows, 1 + objectives], float32

        reward = sum over objectives of gate(prompt) * (regression(answer) @ transform).

        Args:
            prompt: [rows, width], the state at the end of the user's turn.
            answer: [rows, width], the state of the last token.
        """
        objectives = self.regression_layer(answer.float())
        reward = (self.gating(prompt.float()) * (objectives @ self.reward_transform_matrix)).sum(-1, keepdim=True)
        return torch.cat([reward, objectives], dim=-1)


def load(reward_model: ArmoRM) -> Scorer:
    """The scorer with the model in memory.

    Raises:
        ValueError: when the weights are not ArmoRM's, or there is no chat template.
        RuntimeError: when a reward depends on its batch.
    """
    place: dict[str, Any] = {"revision": reward_model.revision, "trust_remote_code": False}
    tokenizer = tokenizer_of(reward_model.path, **place)
    loaded: Any = ArmoNetwork.from_pretrained(
        reward_model.path,
        config=settings(reward_model.path, reward_model.revision),
        dtype=getattr(torch, reward_model.dtype),
        use_safetensors=True,
        output_loading_info=True,
        **place,
    )
    network, report = loaded
    strange = sorted([*report["missing_keys"], *report["unexpected_keys"]])
    if strange:
        raise ValueError(
            f"reward_model.path must hold the weights of an ArmoRM, {reward_model.path} differs in {', '.join(strange)}"
        )
    network = network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return checked(ArmoScorer(network, tokenizer, reward_model), reward_model.dtype)


def settings(path: str, revision: str | None) -> Any:
    """The checkpoint's configuration; what it leaves out of the heads has the published values."""
    config: Any = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    published = {"num_objectives": 19, "gating_temperature": 10, "gating_hidden_dim": 1024, "gating_n_hidden": 3}
    for name, value in published.items():
        if getattr(config, name, None) is None:
            setattr(config, name, value)
    return config


class ArmoScorer:
    """Conversations rendered by the model's own template; the reward is the gated sum, the heads are the objectives."""

    tokenizer = None  # it reads text

    def __init__(self, network: Any, renderer: Any, settings: ArmoRM) -> None:
        self.network, self.renderer, self.max_tokens = network, renderer, settings.max_tokens
        self.opening_text = settings.answer_opening
        self.opening = [
            int(token) for token in renderer(settings.answer_opening, add_special_tokens=False)["input_ids"]
        ]
        self.decoder = Decoder(network.model, settings.batch_tokens, every_layer=False)

    def __call__(self, conversations: Sequence[Conversation], progress: Callable[[int], None]) -> Scores:
        """The rewards; see `Scorer`.

        Raises:
            ValueError: when a conversation, as rendered, does not hold the opening of an answer.
        """
        whole = [render(self.renderer, conversation) for conversation in conversations]
        called = names(conversations)
        cuts = [self._gate_at(ids, name) for ids, name in zip(whole, called, strict=True)]
        rows = [fit(ids[:cut], ids[cut:], self.max_tokens) for ids, cut in zip(whole, cuts, strict=True)]
        found = self.decoder(rows, called, self._read, progress)  # [rows, 1 + objectives]
        return Scores(found[:, 0], found[:, 1:], sum(len(ids) > self.max_tokens for ids in whole))

    def _gate_at(self, ids: list[int], name: str) -> int:
        """How many ids go up to the token at which the gate reads the prompt: the first of the last opening."""
        size = len(self.opening)
        for start in range(len(ids) - size, -1, -1):
            if ids[start : start + size] == self.opening:
                return start + 1
        raise ValueError(
            f"reward_model.answer_opening must be what the chat template puts between prompt and answer, got "
            f"{self.opening_text!r}: its token ids {self.opening} are not in {name}"
        )

    def _read(self, ends: torch.Tensor, outputs: Any, lengths: torch.Tensor) -> torch.Tensor:
        return self.network.heads(ends, last(outputs.last_hidden_state, lengths))


def fit(prompt: list[int], answer: list[int], max_tokens: int) -> Row:
    """Prompt and answer of together at most max_tokens, so that the gate keeps its prompt.

    The answer loses its end, as by the tokenizer's truncation in the paper's script; before that, a prompt longer than
    half of max_tokens loses what follows its first token, as far as needed and not below that half.
    """
    room = max(max_tokens // 2, max_tokens - len(answer))
    if len(prompt) > room:
        prompt = [prompt[0], *prompt[len(prompt) - room + 1 :]]
    return prompt, answer[: max_tokens - len(prompt)]
