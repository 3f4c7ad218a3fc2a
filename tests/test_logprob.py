"""Log-probabilities: layouts, attention by groups, the head in tiles, oneDNN's products, and the choice among them."""

# ruff: noqa: E402 - the imports wait for importorskip

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from sweetspot import logprob
from sweetspot.logprob import attention, gated, head, products
from sweetspot.logprob.forward import PLAIN, Forward, choose, response_logprobs
from sweetspot.logprob.layout import LAYOUTS, Group, packed, padded, shared_prefix
from sweetspot.losses import sequence_logprobs
from sweetspot.model import Model
from tests import tiny

SETTINGS = tiny.dpo()

GROUPS: list[Group] = [
    ([5, 6, 7, 8], [[9, 10, 11], [12, 13, 14, 15, 16]]),
    ([20, 21], [[22], [23, 24], [25, 26, 27]]),
    ([30] * 9, [[31] * 5]),
]
SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_one_row_holds_each_prompt_once_and_positions_go_on_from_it() -> None:
    """Prompt 1 2 3 with responses 4 5 6 and 7 8: 6 and 8 predict nothing; 3 predicts both 4 and 7."""
    layout = shared_prefix([([1, 2, 3], [[4, 5, 6], [7, 8]])])
    assert layout.token_ids.tolist() == [[1, 2, 3, 4, 5, 7]]
    assert layout.position_ids is not None
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert layout.spans == ((3, (2, 1)),)
    assert layout.predicting.tolist() == [2, 3, 4, 2, 5]
    assert layout.targets.tolist() == [4, 5, 6, 7, 8]
    assert layout.owner.tolist() == [0, 0, 0, 1, 1]
    assert layout.lengths.tolist() == [3, 2]


def test_packed_repeats_the_prompt_and_padded_gives_each_sequence_a_row() -> None:
    groups: list[Group] = [([1, 2, 3], [[4, 5, 6], [7, 8]])]
    assert packed(groups).token_ids.tolist() == [[1, 2, 3, 4, 5, 1, 2, 3, 7]]
    assert packed(groups).predicting.tolist() == [2, 3, 4, 7, 8]
    assert padded(groups).token_ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 7, 0]]
    assert padded(groups).predicting.tolist() == [2, 3, 4, 7, 8]


def test_what_a_token_sees_is_its_prompt_and_what_stands_before_it_in_its_response() -> None:
    """The mask that FlexAttention is given, on the row 1 2 4 5 7 of a prompt of 2 and responses of 3 and 2."""
    piece, prompt = attention.visible(shared_prefix([([1, 2], [[4, 5, 6], [7, 8]]), ([9], [[1, 2]])]))
    order = torch.arange(len(piece))
    seen = (order <= order[:, None]) & ((piece == piece[:, None]) | (piece == prompt[:, None]))
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


def test_attention_by_groups_is_attention_under_that_mask() -> None:
    layout = shared_prefix(GROUPS)
    piece, prompt = attention.visible(layout)
    order = torch.arange(len(piece))
    seen = (order <= order[:, None]) & ((piece == piece[:, None]) | (piece == prompt[:, None]))
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, len(piece), 8, dtype=torch.float64) for heads in (4, 2, 2))
    found, _ = attention.group_attention(None, query, key, value, None, spans=layout.spans, scaling=0.3)
    scores = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * 0.3
    weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    expected = (weights @ value.repeat_interleave(2, dim=1)).transpose(1, 2)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


# --- every way gives the same ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("batching", LAYOUTS)
def test_log_probabilities_and_gradients_are_those_of_the_whole_logits_row_by_row(
    batching: str, tiled: bool, tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float64, tiles of 30 vocabulary entries (the last is smaller), every sequence with a weight of its own."""
    monkeypatch.setattr(head.tiled_logprobs, "__defaults__", (30 * 19, False))
    found, gradient = _run(_load(tiny_model, batching), Forward(batching, tiled, None))
    expected, gradients = [], []
    for prompt, responses in GROUPS:
        for response in responses:
            network = logprob.load_network(tiny_model, SETTINGS)
            ids = torch.tensor([prompt + response])
            mask = torch.arange(ids.shape[1])[None] >= len(prompt)
            value = sequence_logprobs(network(ids).logits, ids, mask)
            (value.sum() * (len(expected) + 1)).backward()
            expected.append(value.item())
            gradients.append(torch.cat([weight.grad.flatten() for weight in network.parameters()]))
    assert found.tolist() == pytest.approx(expected, rel=0, abs=1e-10)
    assert torch.allclose(gradient, torch.stack(gradients).sum(dim=0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("batching", LAYOUTS)
def test_in_float32_with_onednn_they_agree_to_1e_5(batching: str, tiny_model: Model) -> None:
    exact, exact_gradient = _run(_load(tiny_model, "padded"), PLAIN)
    network = _load(tiny_model, batching, "float32")
    products.install(network)
    found, gradient = _run(network, Forward(batching, True, None))
    assert found.tolist() == pytest.approx(exact.tolist(), rel=1e-5)
    assert torch.allclose(gradient.double(), exact_gradient, rtol=0, atol=1e-5 * exact_gradient.abs().max().item())


@pytest.mark.parametrize("batching", LAYOUTS)
def test_gradient_checkpointing_recomputes_under_the_same_attention(batching: str, tiny_model: Model) -> None:
    plain, gradient = _run(_load(tiny_model, batching), Forward(batching, True, None))
    network = _load(tiny_model, batching).train()
    network.gradient_checkpointing_enable({"use_reentrant": False})
    found, again = _run(network, Forward(batching, True, None))
    assert torch.equal(found, plain)
    assert torch.allclose(gradient, again, rtol=0, atol=1e-12)


def test_autocast_gives_nearly_the_same(tiny_model: Model) -> None:
    exact, _ = _run(_load(tiny_model, "padded"), PLAIN)
    for batching in LAYOUTS:
        rounded, _ = _run(_load(tiny_model, batching, "float32"), Forward(batching, True, "bfloat16"))
        assert rounded.tolist() == pytest.approx(exact.tolist(), rel=0.02)
        assert rounded.tolist() != pytest.approx(exact.tolist(), rel=1e-6)


def test_log_probabilities_do_not_depend_on_what_they_are_batched_with(tiny_model: Model) -> None:
    sequences = [(prompt, response) for prompt, responses in GROUPS for response in responses]
    for batching in LAYOUTS:
        network, forward = _load(tiny_model, batching), Forward(batching, True, None)
        alone = [logprob.logprobs([sequence], network, SETTINGS, forward)[0] for sequence in sequences]
        for tokens in (1, 12, 25, 10_000):
            settings = dataclasses.replace(SETTINGS, reference_batch_tokens=tokens)
            assert logprob.logprobs(sequences, network, settings, forward) == pytest.approx(alone, abs=1e-10)


def test_sequences_of_one_prompt_are_put_together_and_batches_keep_to_their_tokens() -> None:
    sequences = [([1, 2, 3], [4]), ([5], [6]), ([1, 2, 3], [7, 8])]
    ordered = [sequences[index] for index in logprob.by_prompt(sequences)]
    assert ordered == [([5], [6]), ([1, 2, 3], [4]), ([1, 2, 3], [7, 8])]
    assert logprob.grouped(ordered) == [([5], [[6]]), ([1, 2, 3], [[4], [7, 8]])]
    assert [logprob.count_tokens(ordered, batching) for batching in LAYOUTS] == [15, 11, 8]
    assert [len(batch) for batch in logprob.batches(ordered, 8, "shared_prefix")] == [3]
    assert [len(batch) for batch in logprob.batches(ordered, 8, "packed")] == [2, 1]
    assert [len(batch) for batch in logprob.batches(ordered, 1, "padded")] == [1, 1, 1]


# --- the head and the products ---------------------------------------------------------------------------------------


def test_no_more_logits_than_a_tile_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """7 tokens and a vocabulary of 50 in tiles of 70 logits: 5 tiles of 10 entries, the last of them kept."""
    sizes: list[int] = []
    whole = head._exponentials

    def watched(states: torch.Tensor, part: torch.Tensor, onednn: bool) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(states) * len(part))
        return whole(states, part, onednn)

    monkeypatch.setattr(head, "_exponentials", watched)
    states, weight = torch.randn(7, 4, requires_grad=True), torch.randn(50, 4, requires_grad=True)
    found = head.tiled_logprobs(states, weight, torch.arange(7), 70)
    found.sum().backward()
    assert sizes == [70] * 5 + [70] * 4
    assert found.tolist() == pytest.approx((states @ weight.T).log_softmax(1).diag().tolist(), abs=1e-5)


def test_tiles_pass_gradcheck_and_frozen_inputs_get_none() -> None:
    states, weight = (torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((5, 3), (11, 3)))
    targets = torch.tensor([0, 10, 3, 3, 7])
    for tile in (1, 20, 55):
        assert torch.autograd.gradcheck(lambda a, b: head.tiled_logprobs(a, b, targets, tile), (states, weight))  # noqa: B023
    head.tiled_logprobs(states, weight.detach(), targets, 20).sum().backward()
    assert states.grad is not None
    assert weight.grad is None


def test_logits_of_any_size_stay_finite_in_tiles() -> None:
    """Logits 10000, -10000 and 10000, one a tile: log softmax at the second is -20000 - log 2."""
    states, weight = torch.tensor([[1e4]], dtype=torch.float64), torch.tensor([[1.0], [-1.0], [1.0]]).double()
    found = head.tiled_logprobs(states, weight, torch.tensor([1]), 1)
    assert found.item() == pytest.approx(-2e4 - math.log(2), rel=1e-12)


def test_onednn_computes_what_a_linear_layer_does() -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(6, 5), torch.nn.Linear(6, 5, bias=False)]
    for layer in layers:
        states = torch.randn(2, 3, 6, requires_grad=True)
        outside = torch.randn(2, 3, 5)
        expected = torch.autograd.grad((layer(states) * outside).sum(), [states, *layer.parameters()])
        products.install(layer)
        assert products.installed(layer)
        found = torch.autograd.grad((layer(states) * outside).sum(), [states, *layer.parameters()])
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_gated_layer_keeps_gate_and_up_alone_and_computes_the_same(tiny_model: Model) -> None:
    """Of 64 inputs and a width of 128: the input for gate and for up (one tensor), gate and up; without it silu(gate)
    and the product too."""
    layer = logprob.load_network(tiny_model, SETTINGS).model.layers[0].mlp
    states, outside = torch.randn(2, 3, 64, dtype=torch.float64, requires_grad=True), torch.randn(2, 3, 64).double()

    def run() -> tuple[list[torch.Tensor], int]:
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found = (layer(states) * outside).sum()
        return list(torch.autograd.grad(found, [states, *layer.parameters()])), sum(kept.values())

    expected, before = run()
    assert gated.install(layer) == 1
    found, after = run()
    assert before - after == 6 * (128 + 128) * 8
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_gated_products_in_bfloat16_autocast_are_those_of_the_layer(tiny_model: Model) -> None:
    layer = logprob.load_network(tiny_model, dataclasses.replace(SETTINGS, dtype="float32")).model.layers[0].mlp
    states = torch.randn(2, 3, 64, requires_grad=True)

    def run() -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = layer(states)
        return found, *torch.autograd.grad(found.float().sum(), [states, *layer.parameters()])

    expected = run()
    gated.install(layer)
    for ours, theirs in zip(run(), expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.allclose(ours, theirs, rtol=0.02, atol=0.02 * theirs.abs().max().item())


# --- the choice ------------------------------------------------------------------------------------------------------


def test_the_choice_is_shared_prefix_for_a_plain_model_and_is_told(tiny_model: Model) -> None:
    forward, told = _choose(logprob.load_network(tiny_model, dataclasses.replace(SETTINGS, dtype="float32")), "float32")
    assert forward == Forward("shared_prefix", True, None)
    assert told == {
        "forward/batching": "shared_prefix",
        "forward/head": "tiles of the vocabulary",
        "forward/matmul": "onednn",
        "forward/activations": "without gated products",
    }


@pytest.mark.parametrize(
    ("network", "batching", "tiled", "reason"),
    [
        (GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)), "shared_prefix", True, None),
        (GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=16, num_key_value_heads=1)), "shared_prefix", True, None),
        (
            MistralForCausalLM(MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=16)),
            "padded",
            True,
            "attention slides over 16 tokens",
        ),
        (
            MistralForCausalLM(MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=128)),
            "shared_prefix",
            True,
            None,
        ),
        (
            Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=16, num_key_value_heads=1, final_logit_softcapping=0.01)),
            "padded",
            False,
            "",
        ),
    ],
    ids=["gpt_neox", "gemma", "mistral with a short window", "mistral with a long window", "gemma2 with capped logits"],
)
def test_a_model_whose_attention_or_head_does_more_falls_back_and_says_why(
    network: Any, batching: str, tiled: bool, reason: str | None
) -> None:
    """A window of the longest sequence's tokens or more hides nothing."""
    plain = response_logprobs(network, padded(GROUPS), PLAIN).tolist()
    forward, told = _choose(network.eval(), "float32")
    assert (forward.batching, forward.tiled) == (batching, tiled)
    assert told["forward/batching"].startswith(batching + (f" ({reason}" if reason is not None else ""))
    found = response_logprobs(network, forward.layout(GROUPS), forward)
    assert found.tolist() == pytest.approx(plain, rel=1e-5)


def test_a_batching_asked_for_by_name_is_refused_where_it_is_not_exact() -> None:
    network = MistralForCausalLM(MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=16))
    with pytest.raises(
        ValueError, match=r"dpo.batching must be padded or auto .* got packed: attention slides over 16"
    ):
        _choose(network, "float32", batching="packed")


def test_onednn_asked_for_by_name_is_refused_in_another_dtype(tiny_model: Model) -> None:
    with pytest.raises(ValueError, match=r"dpo.matmul must be auto or torch .* got onednn"):
        _choose(logprob.load_network(tiny_model, SETTINGS), "float64", matmul="onednn")


def test_a_saved_policy_does_not_remember_how_it_attended(tiny_model: Model, tmp_path: Path) -> None:
    network = _load(tiny_model, "shared_prefix")
    network.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


# --- inputs ----------------------------------------------------------------------------------------------------------


def _load(model: Model, batching: str, dtype: str = "float64") -> Any:
    network = logprob.load_network(model, dataclasses.replace(SETTINGS, dtype=dtype))
    if batching != "padded":
        attention.install(network)
    return network


def _run(network: Any, forward: Forward) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of GROUPS, and the gradient of their sum weighted by 1, 2, .. over all weights."""
    found = response_logprobs(network, forward.layout(GROUPS), forward)
    (found * torch.arange(1, 7)).sum().backward()
    return found.detach(), torch.cat([weight.grad.flatten() for weight in network.parameters()])


def _choose(network: Any, dtype: str, **changes: Any) -> tuple[Forward, dict[str, Any]]:
    """The choice for 128 tokens at most, and the facts that were emitted."""
    told: dict[str, Any] = {}
    settings = dataclasses.replace(SETTINGS, dtype=dtype, **changes)
    forward = choose(network, settings, GROUPS, lambda event: told.update(event.get("metrics", {})))
    return forward, told
