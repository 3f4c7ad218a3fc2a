"""Sampling: tiles, seeds that never overlap, and samples that depend on their own seed only."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweetspot import launch
from sweetspot.component import key, to_config
from sweetspot.model import Model, load_tokenizer, prompt_ids
from sweetspot.sampler import Sampler, TransformersSampler, VllmSampler, blocks_for, stream_seed, wanted
from sweetspot.schema import PROMPTS, SAMPLES, prompt_id
from sweetspot.store import read_tile
from tests import tiny

COMMON = {
    "seed": 3,
    "temperature": 0.8,
    "top_p": 1.0,
    "max_tokens": 8,
    "max_prompt_tokens": 64,
    "dtype": "float32",
    "tile_prompts": 2,
    "tile_samples": 4,
    "budget": "uniform",
    "pilot_samples": 16,
    "mean_samples": None,
    "gain_threshold": 0.0,
    "tail": "upper",
}
TRANSFORMERS = TransformersSampler(**COMMON, batch_size=8)  # pyright: ignore
VLLM = VllmSampler(
    **COMMON,
    seeding="request",
    quantization=None,
    kv_cache_dtype="auto",
    adapter=None,
    max_num_seqs=64,
    gpu_memory_utilization=0.5,
    kv_cache_gb=1,
    prefix_caching=True,
    chunked_prefill=None,
    enforce_eager=True,
    tensor_parallel=1,
)  # pyright: ignore
TEXTS = ["Why do cats sleep?", "Write about the rain.", "A garden needs", "long " * 100]


def prompts() -> pa.Table:
    turns = [[{"role": "user", "content": text}] for text in TEXTS]
    rows = [{"prompt_id": prompt_id(turn), "messages": turn, "source": "test"} for turn in turns]
    return pa.Table.from_pylist(rows, schema=PROMPTS)


def draw(sampler: Sampler, model: Model, folder: Path, n: int = 8) -> pa.Table:
    """The samples of the four prompts through the worker, in a process of its own."""
    folder.mkdir()
    pq.write_table(prompts(), folder / "prompts.parquet")
    names = prompts()["prompt_id"].to_pylist()
    job = {
        "model": to_config(model),
        "sampler": to_config(sampler),
        "prompts": str(folder / "prompts.parquet"),
        "blocks": blocks_for(n, sampler),
        "folder": str(folder / "pool"),
        "probe": str(folder / "probe.json"),
        "lease_seconds": 60,
    }
    environment = {**tiny.launch(threads=1, devices=None, lease_seconds=60).environment(), **sampler.environment()}
    launch.run("sweetspot.sampler.worker", job, folder / "job", environment, lambda _: None)
    groups = wanted(names, blocks_for(n, sampler), sampler)
    return pa.concat_tables([read_tile(folder / "pool" / f"{group.name}.parquet", SAMPLES)[0] for group in groups])


def test_seeds_of_different_prompts_and_samples_never_overlap() -> None:
    seeds = [stream_seed(0, f"{number:016x}") + index for number in range(500) for index in range(400)]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < 2**63
    assert stream_seed(0, "a") != stream_seed(1, "a")


def test_fields_that_change_speed_only_stay_out_of_the_key() -> None:
    assert key(VLLM) == key(
        replace(
            replace(VLLM, max_num_seqs=7, enforce_eager=False, gpu_memory_utilization=0.9, kv_cache_gb=3),
            prefix_caching=False,
            chunked_prefill=False,
            tensor_parallel=2,
        )
    )
    changes = {
        "seed": 4,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 9,
        "max_prompt_tokens": 65,
        "dtype": "bfloat16",
        "seeding": "tile",
        "quantization": "fp8",
        "kv_cache_dtype": "fp8",
    }
    assert all(key(VLLM) != key(replace(VLLM, **{name: value})) for name, value in changes.items())


def test_a_temperature_of_0_is_refused_with_its_reason() -> None:
    with pytest.raises(ValueError, match="temperature must be > 0 to draw distinct responses, got 0"):
        replace(TRANSFORMERS, temperature=0.0)


@pytest.fixture(scope="module")
def by_transformers(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return draw(TRANSFORMERS, tiny_model, tmp_path_factory.mktemp("draw") / "whole")


@pytest.mark.slow
def test_samples_carry_what_the_table_says(by_transformers: pa.Table, tiny_model: Model) -> None:
    table = prompts()
    rows = by_transformers.to_pylist()
    assert len(rows) == 3 * 8
    for row in rows:
        assert row["n_tokens"] == len(row["token_ids"]) <= 8
        assert row["finish_reason"] == ("stop" if row["token_ids"][-1] == 2 else "length")
        assert row["seed"] == stream_seed(3, row["prompt_id"]) + row["sample_index"]
        assert row["logprob"] < 0
    responses = {(row["prompt_id"], tuple(row["token_ids"])) for row in rows}
    assert len(responses) == len(rows)
    assert table["prompt_id"][3].as_py() not in {row["prompt_id"] for row in rows}
    assert len(prompt_ids(tiny_model, load_tokenizer(tiny_model), table["messages"][3].as_py())) > 64


@pytest.mark.slow
def test_a_sample_does_not_depend_on_how_the_pool_is_cut(
    by_transformers: pa.Table, tiny_model: Model, tmp_path: Path
) -> None:
    other = draw(replace(TRANSFORMERS, tile_prompts=4, tile_samples=2, batch_size=5), tiny_model, tmp_path / "cut")
    ids = {(row["prompt_id"], row["sample_index"]): row["token_ids"] for row in by_transformers.to_pylist()}
    assert {(row["prompt_id"], row["sample_index"]): row["token_ids"] for row in other.to_pylist()} == ids


@pytest.mark.slow
def test_every_setting_changes_the_samples(tiny_model: Model) -> None:
    prompt = [prompt_ids(tiny_model, load_tokenizer(tiny_model), [{"role": "user", "content": TEXTS[0]}])]

    def ids(seeds: list[int], **changes: object) -> list[list[int]]:
        engine = replace(TRANSFORMERS, **changes).load(tiny_model, [2], 2)
        return [response.token_ids for response in engine(prompt, seeds, 4)[0]]

    plain = ids([7])
    assert ids([7]) == plain
    assert ids([8])[:3] == plain[1:]  # sample i of a prompt has the seed of its first plus i
    assert ids([7], temperature=3.0) != plain
    assert ids([7], top_p=0.05) != plain
    assert max(map(len, ids([7], max_tokens=3))) == 3


@pytest.mark.slow
def test_the_logprob_is_the_untempered_sum_over_the_response(by_transformers: pa.Table, tiny_model: Model) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(tiny_model.path, dtype=torch.float32)
    tokenizer = load_tokenizer(tiny_model)
    messages = dict(zip(prompts()["prompt_id"].to_pylist(), prompts()["messages"].to_pylist(), strict=True))
    for row in by_transformers.to_pylist()[:5]:
        prompt = prompt_ids(tiny_model, tokenizer, messages[row["prompt_id"]])
        with torch.inference_mode():
            logits = network(torch.tensor([prompt + row["token_ids"]])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(row["token_ids"])[:, None]).sum()
        assert row["logprob"] == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.slow
def test_vllm_samples_the_same_table_twice_bit_for_bit(tiny_model: Model, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    one, two = (draw(VLLM, tiny_model, tmp_path / name) for name in ("one", "two"))
    assert one.equals(two)
    rows = one.to_pylist()
    assert len(rows) == 3 * 8
    for row in rows:
        assert row["finish_reason"] == ("stop" if row["token_ids"][-1] == 2 else "length")
        assert row["seed"] == stream_seed(3, row["prompt_id"]) + row["sample_index"]
    assert len({(row["prompt_id"], tuple(row["token_ids"])) for row in rows}) == len(rows)
