"""LoRA: what is trained, what is saved, and that merging and switching off change nothing that they should not."""

# ruff: noqa: E402 - the imports wait for importorskip

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sweetspot import logprob, trainer
from sweetspot.component import key, to_config
from sweetspot.dpo import DPO
from sweetspot.logprob.forward import PLAIN, Forward, choose, response_logprobs
from sweetspot.model import Model, folder_digest, load_tokenizer, prompt_ids
from sweetspot.schema import LOGPROBS
from sweetspot.store import read_tile
from sweetspot.trainer.adapter import ADAPTER, adapted, save_policy, stirred
from tests import tiny
from tests.test_sampler import VLLM, draw

SETTINGS = tiny.dpo(adapter="lora", lora_rank=4, lora_alpha=8.0, lora_targets="all-linear", learning_rate=1e-2)
FLOAT32 = dataclasses.replace(SETTINGS, dtype="float32")


# --- the adapter -----------------------------------------------------------------------------------------------------


def test_a_new_adapter_changes_nothing_and_alone_is_trained(tiny_model: Model) -> None:
    """Rank 4, 2 layers: 64 x 64 q and o, 32 x 64 k and v, 128 x 64 gate and up, 64 x 128 down: 4 (in + out) each."""
    plain = logprob.load_network(tiny_model, SETTINGS)
    network = adapted(logprob.load_network(tiny_model, SETTINGS), SETTINGS)
    assert torch.equal(_logprobs(network), _logprobs(plain))
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    assert sum(weight.numel() for weight in trained) == 2 * 4 * (2 * 128 + 2 * 96 + 3 * 192)
    assert {weight.dtype for weight in trained} == {torch.float64}
    assert not network.get_output_embeddings().weight.requires_grad


def test_the_seed_draws_the_adapter_and_nothing_else_of_the_process_does(tiny_model: Model) -> None:
    def drawn(settings: DPO, before: int) -> list[Any]:
        torch.manual_seed(before)
        network = adapted(logprob.load_network(tiny_model, settings), settings)
        return [weight for name, weight in network.named_parameters() if "lora_A" in name]

    one, again, other = drawn(SETTINGS, 1), drawn(SETTINGS, 2), drawn(dataclasses.replace(SETTINGS, seed=1), 1)
    assert all(torch.equal(*pair) for pair in zip(one, again, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_an_adapter_over_bfloat16_weights_is_kept_in_float32(tiny_model: Model) -> None:
    settings = dataclasses.replace(SETTINGS, dtype="bfloat16")
    network = adapted(logprob.load_network(tiny_model, settings), settings)
    assert {weight.dtype for weight in network.parameters() if weight.requires_grad} == {torch.float32}
    assert network.get_output_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        (["q_proj", "query"], r"must name linear layers of the model \(down_proj, .*, v_proj\), got query"),
        (["embed_tokens"], r"must name linear layers .* got embed_tokens"),
        (["proj"], r"must name linear layers .* got proj"),
        (["q_proj", "lm_head"], r"must leave out lm_head, whose weights are the embedding's too"),
    ],
)
def test_a_target_that_cannot_be_adapted_is_refused(targets: list[str], text: str, tiny_model: Model) -> None:
    settings = dataclasses.replace(SETTINGS, lora_targets=targets)
    with pytest.raises(ValueError, match=f"dpo.lora_targets {text}"):
        adapted(logprob.load_network(tiny_model, settings), settings)


def test_with_the_adapter_off_log_probabilities_are_the_reference_rows_of_the_store(
    tiny_model: Model, tmp_path: Path
) -> None:
    """The rows of the reference's worker, which loads the start model, and a network with a moved adapter, off."""
    rows = [{"prompt_id": row["prompt_id"], "sample_index": 0, **_side(row, "chosen")} for row in _rows(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    job = {"model": to_config(tiny_model), "dpo": to_config(FLOAT32), "probe": None}
    logprob.main({**job, "rows": str(tmp_path / "rows.parquet"), "parts": str(tmp_path / "parts")}, lambda _: None)
    (part,) = (tmp_path / "parts").glob("*.parquet")
    kept = {row["prompt_id"]: row["logprob"] for row in read_tile(part, LOGPROBS)[0].to_pylist()}
    network, tokenizer = adapted(logprob.load_network(tiny_model, FLOAT32), FLOAT32), load_tokenizer(tiny_model)
    sequences = [(prompt_ids(tiny_model, tokenizer, row["messages"]), row["token_ids"]) for row in rows]
    with stirred(network, FLOAT32):
        on = logprob.logprobs(sequences, network, FLOAT32, PLAIN)
        with network.disable_adapter():
            off = logprob.logprobs(sequences, network, FLOAT32, PLAIN)
    expected = [kept[row["prompt_id"]] for row in rows]
    assert off == pytest.approx(expected, abs=1e-4)
    assert all(abs(a - b) > 0.01 for a, b in zip(on, expected, strict=True))


# --- ways of computing -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["down_proj"]])
@pytest.mark.parametrize("batching", ["padded", "packed", "shared_prefix"])
def test_every_way_of_computing_gives_the_gradients_of_the_plain_one(
    batching: str, targets: Any, tiny_model: Model
) -> None:
    found = []
    for settings in (
        dataclasses.replace(SETTINGS, lora_targets=targets, batching=batching),
        dataclasses.replace(SETTINGS, lora_targets=targets),
    ):
        network = adapted(logprob.load_network(tiny_model, settings), settings)
        with stirred(network, settings):
            forward = choose(network, settings, GROUPS, lambda _: None) if not found else PLAIN
            assert forward == (Forward(batching, True, None) if not found else PLAIN)
            values = response_logprobs(network, forward.layout(GROUPS), forward)
            (values * torch.arange(1, len(values) + 1)).sum().backward()
        trained = [weight for weight in network.parameters() if weight.requires_grad]
        found.append((values.detach(), torch.cat([weight.grad.flatten() for weight in trained])))
    (values, gradient), (plain_values, plain_gradient) = found
    assert torch.allclose(values, plain_values, rtol=0, atol=1e-10)
    assert torch.allclose(gradient, plain_gradient, rtol=0, atol=1e-10)
    assert gradient.abs().max() > 0.1


def test_an_adapted_head_of_its_own_is_computed_whole_and_merges(tmp_path: Path) -> None:
    """A head that is not the embedding may be adapted; tiles would pass its adapter by."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=False, **shape)).eval()
    settings = dataclasses.replace(FLOAT32, lora_targets=["q_proj", "lm_head"])
    network, told = adapted(network, settings), {}
    with stirred(network, settings):
        forward = choose(network, settings, GROUPS, lambda event: told.update(event.get("metrics", {})))
        assert told["forward/head"] == "whole vocabulary"
        assert (forward.batching, forward.tiled) == ("shared_prefix", False)
        before = response_logprobs(network, forward.layout(GROUPS), forward).tolist()
        save_policy(network, None, tmp_path, settings, forward, GROUPS, lambda _: None)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert response_logprobs(merged, PLAIN.layout(GROUPS), PLAIN).tolist() == pytest.approx(before, abs=1e-4)


def test_a_comparison_of_forward_passes_sees_the_adapter_and_leaves_none_of_it(tiny_model: Model) -> None:
    network = adapted(logprob.load_network(tiny_model, SETTINGS), SETTINGS)
    before = _logprobs(network)
    with stirred(network, SETTINGS):
        assert (_logprobs(network) - before).abs().min() > 0.01
    assert torch.equal(_logprobs(network), before)


# --- training --------------------------------------------------------------------------------------------------------


def test_the_policy_is_a_plain_model_with_the_adapter_merged_and_beside_it(tiny_model: Model, tmp_path: Path) -> None:
    settings = dataclasses.replace(FLOAT32, lora_targets=["q_proj", "down_proj"])
    history, events = _train(tmp_path, tiny_model, settings, count=10)
    assert history[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    folder = tmp_path / "policy"
    assert {path.name for path in (folder / ADAPTER).iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (folder / "adapter_config.json").exists()
    merged, start = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, tiny_model.path))
    assert type(merged) is type(start)
    old = start.state_dict()
    moved = {name for name, weight in merged.state_dict().items() if not torch.equal(weight, old[name])}
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "down_proj"}
    unmerged = peft.PeftModel.from_pretrained(start, str(folder / ADAPTER)).eval()
    assert _logprobs(unmerged).tolist() == pytest.approx(_logprobs(merged.eval()).tolist(), abs=1e-4)
    with unmerged.disable_adapter():
        assert (_logprobs(unmerged) - _logprobs(merged)).abs().max() > 0.1
    (error,) = [event["metrics"] for event in events if "adapter/merging_error" in event.get("metrics", {})]
    assert error["adapter/merging_error"] < 1e-5
    assert "| lora_rank | 4 |" in (folder / "README.md").read_text()
    assert key(tiny_model.at(folder)) != key(tiny_model)
    assert folder_digest(folder / ADAPTER, "sampler.adapter")


def test_the_adapter_over_bfloat16_weights_is_merged_within_their_rounding(tiny_model: Model, tmp_path: Path) -> None:
    _train(tmp_path, tiny_model, dataclasses.replace(SETTINGS, dtype="bfloat16"), count=6)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "policy").dtype == torch.bfloat16


def test_merging_that_changes_log_probabilities_is_refused(tiny_model: Model, tmp_path: Path) -> None:
    """A log-probability of the unmerged network that is not of the weights: an adapter that is switched off."""
    network = adapted(logprob.load_network(tiny_model, FLOAT32), FLOAT32)
    with stirred(network, FLOAT32), network.disable_adapter(), pytest.raises(RuntimeError, match="merging changes"):
        _save_enabling_between(network, tmp_path)
    assert not (tmp_path / "config.json").exists()


def _save_enabling_between(network: Any, folder: Path) -> None:
    whole = network.merge_and_unload

    def merge(**options: Any) -> Any:
        network.base_model.enable_adapter_layers()
        return whole(**options)

    network.merge_and_unload = merge
    save_policy(network, None, folder, FLOAT32, PLAIN, GROUPS, lambda _: None)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_killed_training_goes_on_to_the_same_adapter_and_policy(step: int, tiny_model: Model, tmp_path: Path) -> None:
    undisturbed, _ = _train(tmp_path / "undisturbed", tiny_model, FLOAT32, count=10)
    with pytest.raises(tiny.KilledError):
        _train(tmp_path / "killed", tiny_model, FLOAT32, count=10, killed_at=step)
    resumed, events = _train(tmp_path / "killed", tiny_model, FLOAT32, count=10)
    steps = [event["metrics"]["step"] for event in events if "step" in event.get("metrics", {})]
    assert steps == list(range(step // 2 * 2 + 1, 7))
    for ours, theirs in zip(resumed, undisturbed, strict=True):
        assert list(ours.values()) == pytest.approx(list(theirs.values()), abs=1e-6)
    for file in ("fingerprint.json", f"{ADAPTER}/adapter_model.safetensors"):
        assert (tmp_path / "killed/policy" / file).read_bytes() == (tmp_path / "undisturbed/policy" / file).read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize(
    "changes", [{"device_batch_size": 1}, {"gradient_checkpointing": True}, {"batching": "padded"}]
)
def test_how_a_step_is_cut_into_forward_passes_changes_nothing(
    changes: dict[str, Any], tiny_model: Model, tmp_path: Path
) -> None:
    whole, _ = _train(tmp_path / "whole", tiny_model, SETTINGS, count=10)
    cut, _ = _train(tmp_path / "cut", tiny_model, dataclasses.replace(SETTINGS, **changes), count=10)
    for ours, theirs in zip(whole, cut, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0, abs=1e-10)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0, abs=1e-9)


def test_without_peft_an_adapter_is_refused_in_one_line_before_any_model_is_loaded(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    SETTINGS_WITHOUT.check_libraries()
    with pytest.raises(ValueError, match=r"dpo.adapter=lora needs the package peft, .* pip install '.\[lora\]'"):
        SETTINGS.check_libraries()
    parts = {"model": tiny_model.at(Path("/nowhere")), "dpo": SETTINGS, "deepspeed": tiny.deepspeed()}
    job = {"output": str(tmp_path), **{name: to_config(part) for name, part in parts.items()}}
    with pytest.raises(ValueError, match="needs the package peft"):
        trainer.main(job, lambda _: None)


@pytest.mark.slow
def test_vllm_samples_the_merged_policy_and_the_adapter_on_the_base_alike(tiny_model: Model, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    _train(tmp_path / "train", tiny_model, FLOAT32, count=10)
    policy = tmp_path / "train" / "policy"
    merged = draw(VLLM, tiny_model.at(policy), tmp_path / "merged")
    on_base = draw(dataclasses.replace(VLLM, adapter=str(policy / ADAPTER)), tiny_model, tmp_path / "on_base")
    base = draw(VLLM, tiny_model, tmp_path / "base")
    same = [a == b for a, b in zip(merged["token_ids"].to_pylist(), on_base["token_ids"].to_pylist(), strict=True)]
    assert sum(same) >= len(same) - 1, "a draw may fall on the other side of a rounding"
    for place, alike in enumerate(same):
        if alike:
            assert on_base["logprob"][place].as_py() == pytest.approx(merged["logprob"][place].as_py(), abs=1e-2)
    assert base["token_ids"].to_pylist() != merged["token_ids"].to_pylist()


# --- inputs ----------------------------------------------------------------------------------------------------------

SETTINGS_WITHOUT = tiny.dpo()
GROUPS = [([5, 6, 7, 8], [[9, 10, 11], [12, 13, 14, 15, 16]]), ([20, 21], [[22], [23, 24]])]


@torch.no_grad()
def _logprobs(network: Any) -> torch.Tensor:
    return response_logprobs(network, PLAIN.layout(GROUPS), PLAIN)


def _rows(count: int) -> list[dict[str, Any]]:
    """Pairs whose chosen responses repeat one token and whose rejected ones another, of various lengths."""
    return [
        {
            "prompt_id": f"p{index:02d}",
            "pair_index": 0,
            "messages": [{"role": "user", "content": "a little rain" * (1 + index % 3)}],
            "chosen_ids": [10 + index] * (3 + index % 4) + [2],
            "rejected_ids": [40 + index] * (8 - index % 5) + [2],
        }
        for index in range(count)
    ]


def _side(row: dict[str, Any], side: str) -> dict[str, Any]:
    return {"messages": row["messages"], "token_ids": row[f"{side}_ids"]}


def _train(
    folder: Path, model: Model, settings: DPO, count: int, killed_at: int | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train on `count` pairs into folder/policy; returns the history and the events."""
    folder.mkdir(parents=True, exist_ok=True)
    network, tokenizer, rows = logprob.load_network(model, settings), load_tokenizer(model), _rows(count)
    for row in rows:
        prompt = prompt_ids(model, tokenizer, row["messages"])
        for side in ("chosen", "rejected"):
            row[f"reference_{side}"] = logprob.logprobs([(prompt, row[f"{side}_ids"])], network, settings, PLAIN)[0]
    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet")
    inputs = {"probe": None, "pairs": str(folder / "pairs.parquet")}
    return tiny.train(trainer.main, folder / "policy", {"model": model, "dpo": settings}, inputs, killed_at)
