"""The training worker and the log-probability worker, on a tiny model."""

# ruff: noqa: E402 - the imports wait for importorskip

import dataclasses
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sweetspot import logprob, trainer
from sweetspot.component import build, to_config
from sweetspot.dpo import DPO
from sweetspot.logprob.forward import PLAIN
from sweetspot.model import Model, Probe, TemplateError, load_tokenizer, prompt_ids
from sweetspot.schema import LOGPROBS
from sweetspot.store import read_tile
from sweetspot.trainer.checkpoints import CHECKPOINTS, WHOLE, last_whole
from sweetspot.trainer.pair_trainer import collate_pairs, measure, without_dropout
from sweetspot.trainer.pairs import TrainingPair, regroup, split, training_pairs
from tests import ranked, tiny

END = 2
SETTINGS = tiny.dpo()
SPEED = {"speed/pairs_per_second", "speed/tokens_per_second", "speed/flops_use", "memory/peak_gb"}


# --- rows and batches ------------------------------------------------------------------------------------------------


def test_a_batch_holds_exactly_the_prompt_ids_and_the_sampled_ids_end_of_turn_included(tiny_model: Model) -> None:
    tokenizer = load_tokenizer(tiny_model)
    pairs, _ = training_pairs(_rows(3), tiny_model, tokenizer, SETTINGS)
    layout = collate_pairs(pairs, PLAIN)["layout"]
    rendered = [prompt for row in _rows(3) for prompt in [prompt_ids(tiny_model, tokenizer, row["messages"])] * 2]
    sampled = [row[f"{side}_ids"] for row in _rows(3) for side in ("chosen", "rejected")]
    for row, prompt, response in zip(range(6), rendered, sampled, strict=True):
        assert layout.token_ids[row][: len(prompt) + len(response) - 1].tolist() == prompt + response[:-1]
        assert layout.targets[layout.owner == row].tolist() == response
        assert response[-1] == END
        assert prompt.count(tokenizer.bos_token_id) == 2, (
            "one turn and the opening: BOS opens each turn of this template"
        )


def test_pairs_come_in_the_order_of_their_ids_whatever_the_file_order(tiny_model: Model) -> None:
    tokenizer = load_tokenizer(tiny_model)
    forward, _ = training_pairs(_rows(5), tiny_model, tokenizer, SETTINGS)
    backward, _ = training_pairs(_rows(5)[::-1], tiny_model, tokenizer, SETTINGS)
    assert forward == backward


def test_a_long_prompt_loses_its_beginning_and_a_pair_that_still_does_not_fit_is_dropped_and_counted(
    tiny_model: Model,
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    rows = _rows(3)
    rows[0]["messages"] = [{"role": "user", "content": "rain " * 120}]
    rows[1]["rejected_ids"] = [9] * 200
    whole = prompt_ids(tiny_model, tokenizer, rows[0]["messages"])
    pairs, dropped = training_pairs(rows, tiny_model, tokenizer, SETTINGS)
    assert dropped == {"too_long": 1}
    assert len(whole) > 96
    assert pairs[0].prompt == whole[-96:]
    assert [pair.chosen for pair in pairs] == [rows[0]["chosen_ids"], rows[2]["chosen_ids"]]


def test_no_pair_that_fits_is_refused(tiny_model: Model) -> None:
    rows = [{**row, "chosen_ids": [9] * 200} for row in _rows(2)]
    with pytest.raises(ValueError, match=r"none of the 2 pairs fits into dpo.max_tokens = 128"):
        training_pairs(rows, tiny_model, load_tokenizer(tiny_model), SETTINGS)


def test_a_pair_without_reference_is_refused_by_name(tiny_model: Model) -> None:
    rows = [{**row, "reference_chosen": math.nan} for row in _rows(1)]
    with pytest.raises(ValueError, match=r"finite, got \(nan, -1.0\) for pair \(p00, 0\)"):
        training_pairs(rows, tiny_model, load_tokenizer(tiny_model), SETTINGS)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"device_batch_size": 3}, "dpo: batch_size must be a multiple of device_batch_size, got 4 and 3"),
        ({"max_prompt_tokens": 128}, "dpo: max_prompt_tokens must be smaller than max_tokens, .* got 128 and 128"),
        ({"autocast": "bfloat16"}, "dpo: autocast must be null unless dtype is float32, got bfloat16 with float64"),
        ({"beta": 0.0}, "dpo.beta: must be greater than 0, got 0.0"),
        ({"schedule": "constant"}, "dpo.schedule: must be 'linear' or 'cosine', got 'constant'"),
        ({"loss": "kto"}, "dpo.loss: must be 'dpo', .* got 'kto'"),
        ({"label_smoothing": 0.5}, "dpo.label_smoothing: must be less than 0.5, got 0.5"),
        (
            {"loss": "ipo", "label_smoothing": 0.1},
            r"dpo: label_smoothing must be 0 with loss=ipo, .* \(it is for dpo, robust\), got 0.1",
        ),
        ({"gamma": 0.5}, r"dpo: gamma must be 0 with loss=dpo, .* \(it is for simpo\), got 0.5"),
        ({"length_alpha": 0.1}, r"dpo: length_alpha must be 0 with loss=dpo, .* \(it is for rdpo\), got 0.1"),
        (
            {"loss": "orpo", "sft_weight": 1.0},
            "dpo: sft_weight must be 0 with loss=orpo, which has an NLL term, got 1.0",
        ),
        (
            {"loss": "simpo", "reference_model": "first"},
            "dpo: reference_model must be left at previous with loss=simpo, which has no reference, got first",
        ),
    ],
)
def test_impossible_settings_are_refused_in_one_line(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build({**to_config(SETTINGS), **changes}, at="dpo")


# --- log-probabilities -----------------------------------------------------------------------------------------------


def test_the_logprob_worker_writes_a_row_per_response_that_fits_and_names_the_others(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob, "PART_ROWS", 3)
    rows = [
        {"prompt_id": row["prompt_id"], "sample_index": 1, "messages": row["messages"], "token_ids": row["chosen_ids"]}
        for row in _rows(5)
    ]
    rows[2]["token_ids"] = [9] * 200
    _logprob(rows, tiny_model, tmp_path)
    parts = [read_tile(path, LOGPROBS) for path in sorted((tmp_path / "parts").glob("*.parquet"))]
    found = {row["prompt_id"]: row for table, _ in parts for row in table.to_pylist()}
    assert len(parts) == 2
    assert sorted(found) == ["p00", "p01", "p03", "p04"]
    assert [place for _, facts in parts for place in facts["too_long"]] == [["p02", 1]]
    network = logprob.load_network(tiny_model, SETTINGS)
    for row in (rows[0], rows[4]):
        prompt = prompt_ids(tiny_model, load_tokenizer(tiny_model), row["messages"])
        value = logprob.logprobs([(prompt, row["token_ids"])], network, SETTINGS, PLAIN)[0]
        assert found[row["prompt_id"]]["logprob"] == pytest.approx(value, abs=1e-10)
        assert found[row["prompt_id"]]["n_tokens"] == len(row["token_ids"])


def test_dropout_of_modules_and_attention_is_off() -> None:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=0.5,
    )
    network = torch.nn.Sequential(LlamaForCausalLM(config), torch.nn.Dropout(0.5)).train()
    without_dropout(network)
    ids = torch.arange(20)[None]
    assert torch.equal(network[0](ids).logits, network[0](ids).logits)
    assert network[1].p == 0
    assert config.attention_dropout == 0.5, "the policy's config stays that of the start model"


# --- training --------------------------------------------------------------------------------------------------------


def test_a_trained_policy_is_a_plain_folder_that_renders_as_its_start_model(tiny_model: Model, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, dtype="float32")
    _, events = _train(tmp_path, tiny_model, settings, count=10)
    folder = tmp_path / "policy"
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "history.jsonl"} <= names
    assert {"README.md", "fingerprint.json"} <= names
    assert not [name for name in names if "checkpoint" in name or name.endswith((".bin", ".pt"))]
    policy = tiny_model.at(folder)
    network = AutoModelForCausalLM.from_pretrained(folder)
    assert network.dtype == torch.float32
    assert Probe.of(policy, load_tokenizer(policy)) == Probe.of(tiny_model, load_tokenizer(tiny_model))
    start = AutoModelForCausalLM.from_pretrained(tiny_model.path)
    assert not torch.equal(network.lm_head.weight, start.lm_head.weight)
    card = (folder / "README.md").read_text()
    assert "| base | tiny |" in card
    assert "| pairs dropped as too_long | 0 |" in card
    assert "| beta | 0.1 |" in card
    assert "| loss, first step | 0.6931 |" in card
    assert events[0] == {"metrics": {"pairs": 10, "too_long": 0, "held_out": 0}}


def test_training_starts_at_log_two_and_separates_the_pairs(tiny_model: Model, tmp_path: Path) -> None:
    history, events = _train(tmp_path, tiny_model, SETTINGS, count=10)
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5, 6], "3 steps an epoch: 4, 4 and 2 pairs"
    assert [row["epoch"] for row in history] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-9)
    assert history[0]["rewards/margin"] == pytest.approx(0, abs=1e-9)
    assert history[-1]["loss"] < history[0]["loss"]
    last = history[-1]
    assert last["rewards/margin"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"], abs=1e-9)
    assert last["rewards/accuracy"] == 1
    assert last["learning_rate"] == pytest.approx(1e-3 / 5), (
        "warm-up of one step, then linear: the last step has 1/5 left"
    )
    steps = [event["metrics"] for event in events if "step" in event.get("metrics", {})]
    assert [{name: row[name] for name in history[0]} for row in steps] == history
    assert {name for row in steps for name in row.keys() - history[0].keys()} == SPEED
    assert all(row[name] > 0 for row in steps for name in SPEED)
    progress = [event["progress"] for event in events if "progress" in event]
    assert progress[0]["note"] == "shared_prefix, tiles of the vocabulary, torch, without gated products"
    assert [state["done"] for state in progress[1:]] == [1, 2, 3, 4, 5, 6]
    assert {(state["total"], state["unit"]) for state in progress[1:]} == {(6, "steps")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"device_batch_size": 1},
        {"device_batch_size": 2},
        {"gradient_checkpointing": True},
        {"batching": "padded"},
        {"batching": "padded", "device_batch_size": 1},
        {"batching": "packed", "gradient_checkpointing": True},
    ],
)
@pytest.mark.usefixtures("exact_norms")
def test_how_a_step_is_cut_into_forward_passes_changes_nothing(
    changes: dict[str, Any], tiny_model: Model, tmp_path: Path
) -> None:
    """10 pairs in steps of 4: an epoch's last step has 2, which a mean of means over forward passes would misweigh.

    In the first two steps (the first moves nothing, its rate is 0) policy and reference agree, and which of the two
    is above the other is a matter of rounding.
    """
    whole, _ = _train(tmp_path / "whole", tiny_model, SETTINGS, count=10)
    cut, _ = _train(tmp_path / "cut", tiny_model, dataclasses.replace(SETTINGS, **changes), count=10)
    assert [row.pop("rewards/accuracy") for row in whole][2:] == [row.pop("rewards/accuracy") for row in cut][2:]
    for ours, theirs in zip(whole, cut, strict=True):
        assert ours == pytest.approx(theirs, rel=0, abs=1e-10)


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_a_reference_free_loss_trains_on_pairs_without_references(loss: str, tiny_model: Model, tmp_path: Path) -> None:
    """The mean log-probability per token of 10 pairs, times beta, is the reward; NaN references are not read."""
    settings = dataclasses.replace(SETTINGS, loss=loss, batch_size=5, device_batch_size=5)
    history, _ = _train(tmp_path, tiny_model, settings, count=10, reference=math.nan)
    assert all(math.isfinite(value) for row in history for value in row.values())
    assert history[0]["rewards/chosen"] < -0.1
    assert history[-1]["loss"] < history[0]["loss"]


def test_held_out_pairs_are_those_of_the_same_prompts_and_measured_after_each_epoch(
    tiny_model: Model, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, held_out_share=0.3)
    rows = _rows(30)
    kept, held_out = split(rows, settings)
    assert 3 <= len(held_out) <= 15
    assert [row["prompt_id"] for row in split(rows[::-1], settings)[1]] == [row["prompt_id"] for row in held_out][::-1]
    assert {row["prompt_id"] for row in held_out} < {
        row["prompt_id"] for row in split(rows, dataclasses.replace(settings, held_out_share=0.6))[1]
    }, "a larger share holds out more prompts, and those too"
    history, events = _train(tmp_path, tiny_model, settings, count=30)
    assert events[0] == {"metrics": {"pairs": len(kept), "too_long": 0, "held_out": len(held_out)}}
    measured = [row for row in history if "held_out/loss" in row]
    assert [row["epoch"] for row in measured] == [1, 2]
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").double()
    pairs, _ = training_pairs(
        _with_references(held_out, tiny_model, settings), tiny_model, load_tokenizer(tiny_model), settings
    )
    sums = measure(policy, collate_pairs(pairs, PLAIN), PLAIN, settings)[1]
    assert measured[-1]["held_out/loss"] == pytest.approx(sums[1].item() / len(held_out), abs=1e-6)
    assert measured[-1]["held_out/logps/chosen"] == pytest.approx(sums[-2].item() / len(held_out), rel=1e-6)


def test_a_share_that_holds_out_every_pair_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dpo.held_out_share must leave pairs to train on, got 0.999999: all 3 go"):
        split(_rows(3), dataclasses.replace(SETTINGS, held_out_share=0.999999))


def test_a_step_s_pairs_are_cut_by_length_for_padded_rows_and_evened_out_for_packed_ones() -> None:
    """Of 2, 10, 4 and 8 tokens: padded 10 8 and 4 2; else 10, then 8 and 4 to the other, which is full, and 2."""
    two, ten, four, eight = (TrainingPair([], [1] * length, [], 0, 0) for length in (2, 10, 4, 8))
    assert regroup([two, ten, four, eight], [2, 2], "padded") == [[ten, eight], [four, two]]
    assert regroup([two, ten, four, eight], [2, 2], "shared_prefix") == [[ten, two], [eight, four]]
    assert regroup([two, ten, four], [2, 1], "packed") == [[ten, two], [four]]


def test_a_seed_gives_one_policy_and_another_seed_another(tiny_model: Model, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, dtype="float32")
    for name in ("first", "second"):
        _train(tmp_path / name, tiny_model, settings, count=6)
    _train(tmp_path / "other", tiny_model, dataclasses.replace(settings, seed=1), count=6)
    first, second, other = (
        (tmp_path / name / "policy/fingerprint.json").read_text() for name in ("first", "second", "other")
    )
    assert first == second != other


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_killed_training_goes_on_to_the_undisturbed_curve_and_policy(
    step: int, tiny_model: Model, tmp_path: Path
) -> None:
    """A checkpoint every 2 steps of 6: killed at step 1 it starts anew, at 3 and 5 it goes on from 2 and 4."""
    settings = dataclasses.replace(SETTINGS, dtype="float32")
    undisturbed, _ = _train(tmp_path / "undisturbed", tiny_model, settings, count=10)
    with pytest.raises(tiny.KilledError):
        _train(tmp_path / "killed", tiny_model, settings, count=10, killed_at=step)
    resumed, events = _train(tmp_path / "killed", tiny_model, settings, count=10)
    assert [row["step"] for row in resumed] == [1, 2, 3, 4, 5, 6]
    steps = [event["metrics"]["step"] for event in events if "step" in event.get("metrics", {})]
    assert steps == list(range(step // 2 * 2 + 1, 7)), "steps before the checkpoint are not made again"
    for ours, theirs in zip(resumed, undisturbed, strict=True):
        assert list(ours.values()) == pytest.approx(list(theirs.values()), abs=1e-6)
    digests = {(tmp_path / name / "policy/fingerprint.json").read_text() for name in ("undisturbed", "killed")}
    assert len(digests) == 1


def test_a_checkpoint_without_its_mark_is_deleted_and_the_one_before_taken(tiny_model: Model, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, dtype="float32", save_total_limit=2)
    with pytest.raises(tiny.KilledError):
        _train(tmp_path, tiny_model, settings, count=10, killed_at=5)
    checkpoints = tmp_path / "policy" / CHECKPOINTS
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    (checkpoints / "checkpoint-4" / WHOLE).unlink()
    (checkpoints / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
    assert last_whole(checkpoints) == checkpoints / "checkpoint-2"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-2"]
    history, _ = _train(tmp_path, tiny_model, settings, count=10)
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5, 6]


def test_a_policy_that_was_finished_but_not_tidied_is_only_tidied(tiny_model: Model, tmp_path: Path) -> None:
    _train(tmp_path, tiny_model, SETTINGS, count=4)
    (tmp_path / "policy" / CHECKPOINTS).mkdir()
    _, events = _train(tmp_path, tiny_model, SETTINGS, count=4)
    assert events == []
    assert not (tmp_path / "policy" / CHECKPOINTS).exists()


def test_a_loss_that_is_not_finite_stops_the_training(tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"training: loss .*nan.* at step \d"):
        _train(tmp_path, tiny_model, dataclasses.replace(SETTINGS, learning_rate=1e300), count=10)
    assert not (tmp_path / "policy" / "fingerprint.json").exists()


def test_the_template_doctor_stops_training_and_reference_when_sampling_rendered_otherwise(
    tiny_model: Model, tmp_path: Path
) -> None:
    system = dataclasses.replace(tiny_model, system_prompt="Be brief.")
    sampled = dataclasses.asdict(Probe.of(system, load_tokenizer(system)))
    with pytest.raises(TemplateError, match="training"):
        _train(tmp_path, tiny_model, SETTINGS, count=4, probe=sampled)
    rows = [{"prompt_id": "a", "sample_index": 0, "messages": _rows(1)[0]["messages"], "token_ids": [9]}]
    with pytest.raises(TemplateError, match="the reference"):
        _logprob(rows, tiny_model, tmp_path, probe=sampled)


# --- inputs ----------------------------------------------------------------------------------------------------------


def _rows(count: int) -> list[dict[str, Any]]:
    """Pairs whose chosen responses repeat one token and whose rejected ones another, of various lengths."""
    return [{**row, "reference_chosen": -1.0, "reference_rejected": -1.0} for row in ranked.rows(count)]


def _with_references(rows: list[dict[str, Any]], model: Model, settings: DPO) -> list[dict[str, Any]]:
    network, tokenizer = logprob.load_network(model, settings), load_tokenizer(model)
    for row in rows:
        prompt = prompt_ids(model, tokenizer, row["messages"])
        for side in ("chosen", "rejected"):
            row[f"reference_{side}"] = logprob.logprobs([(prompt, row[f"{side}_ids"])], network, settings, PLAIN)[0]
    return rows


def _train(
    folder: Path,
    model: Model,
    settings: DPO,
    count: int,
    killed_at: int | None = None,
    reference: float | None = None,
    probe: dict[str, Any] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train on `count` pairs into folder/policy; returns the history and the events."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pairs.parquet"
    rows = _with_references(_rows(count), model, settings)
    if reference is not None:
        rows = [{**row, "reference_chosen": reference, "reference_rejected": reference} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), path)
    inputs = {"probe": probe, "pairs": str(path)}
    return tiny.train(trainer.main, folder / "policy", {"model": model, "dpo": settings}, inputs, killed_at)


def _logprob(rows: list[dict[str, Any]], model: Model, folder: Path, probe: dict[str, Any] | None = None) -> None:
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    job = {
        "model": to_config(model),
        "dpo": to_config(SETTINGS),
        "probe": probe,
        "rows": str(path),
        "parts": str(folder / "parts"),
    }
    logprob.main(job, lambda _: None)
