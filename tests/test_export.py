"""Exporting: what `datasets` and TRL read as it is, and the card beside it."""

import json
import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from sweetspot.exchange import command, exporting
from sweetspot.exchange.exporting import export
from tests.test_store_command import root as root

MESSAGES = [{"role": "user", "content": "Why?"}]


def test_pairs_are_in_the_conversational_preference_format(root: Path, tmp_path: Path) -> None:
    assert export(root, "pairs", "pairs", tmp_path / "out", jsonl=False) == {"pairs.parquet": 1}
    (row,) = pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()
    assert row["prompt"] == MESSAGES
    assert row["chosen"] == [{"role": "assistant", "content": "yes"}]
    assert row["rejected"] == [{"role": "assistant", "content": "no"}]
    assert (row["prompt_id"], row["chosen_index"], row["rejected_index"]) == ("p", 1, 3)
    assert (row["chosen_reward"], row["rejected_reward"], row["chosen_z"], row["rejected_z"]) == (2.0, -1.0, 1.5, -1.5)


def test_datasets_reads_the_exports_offline(root: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cache = str(tmp_path / "cache")
    for kind, key, rows in (("pairs", "pairs", 1), ("samples", "pool", 12), ("rewards", "rm", 12)):
        for jsonl, reader in ((False, "parquet"), (True, "json")):
            out = tmp_path / f"{kind}-{reader}"
            export(root, kind, key, out, jsonl)  # pyright: ignore
            file = str(out / f"{kind}.{'jsonl' if jsonl else 'parquet'}")
            read = datasets.load_dataset(reader, data_files=file, split="train", cache_dir=cache)
            assert read.num_rows == rows
    whole = datasets.load_dataset(
        str(tmp_path / "samples-parquet"), "prompts", split="train", cache_dir=cache
    )  # the card
    assert sorted(whole["prompt_id"]) == ["p", "q", "r"]


@pytest.mark.slow
def test_trl_trains_on_exported_pairs_as_they_are(root: Path, tmp_path: Path, tiny_policy: Path) -> None:
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export(root, "pairs", "pairs", tmp_path / "out", jsonl=False)
    file = str(tmp_path / "out" / "pairs.parquet")
    pairs = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
    settings = trl.DPOConfig(
        output_dir=str(tmp_path / "trl"),
        max_steps=1,
        report_to="none",
        use_cpu=True,
        per_device_train_batch_size=1,
        bf16=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl.DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_policy),
            args=settings,
            train_dataset=pairs,
            processing_class=AutoTokenizer.from_pretrained(tiny_policy),
        )
        assert trainer.train().global_step == 1


def test_samples_and_rewards_come_with_their_prompts_by_prompt_id_and_sample_index(root: Path, tmp_path: Path) -> None:
    export(root, "samples", "pool", tmp_path / "samples", jsonl=False)
    counts = export(root, "rewards", "rm", tmp_path / "rewards", jsonl=True)
    assert counts == {"rewards.jsonl": 12, "prompts.jsonl": 3}
    samples = pq.read_table(tmp_path / "samples" / "samples.parquet").to_pylist()
    rewards = [json.loads(line) for line in (tmp_path / "rewards" / "rewards.jsonl").read_text().splitlines()]
    places = {(name, index) for name in "pqr" for index in range(4)}
    assert {(row["prompt_id"], row["sample_index"]) for row in samples} == places
    assert {(row["prompt_id"], row["sample_index"]) for row in rewards} == places
    prompts = pq.read_table(tmp_path / "samples" / "prompts.parquet").to_pylist()
    assert {row["prompt_id"]: row["messages"] for row in prompts} == dict.fromkeys("pqr", MESSAGES)


def test_the_card_tells_counts_strategy_reward_model_lineage_and_citation(root: Path, tmp_path: Path) -> None:
    export(root, "pairs", "pairs", tmp_path / "out", jsonl=False)
    text = (tmp_path / "out" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    configs: Any = yaml.safe_load(front)["configs"]
    assert configs == [{"config_name": "pairs", "data_files": "pairs.parquet", "default": True}]
    for words in (
        "strategy: (max, mu-2sigma) of n = 4 responses per prompt",
        "not ignored",
        "reward model: EmbeddedReward (head gold)",
        "responses of: unknown (name tiny)",
        "sampling: VllmSampler (temperature 0.8",
        "`pairs.parquet`: 1 rows",
        "pairs `pairs`",
        "rewards `rm`",
        "samples `pool`",
        "pyarrow ",
        "2502.16825",
    ):
        assert words in body


def test_an_export_is_whole_or_absent_and_writes_over_nothing(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "prompts" / "abc.parquet").unlink()
    store, out = ["--store", str(root)], tmp_path / "out"
    assert command.main([*store, "export", "samples", "pool", str(out)]) == 1
    assert "lacks the messages of 3 prompts, p among them" in capsys.readouterr().err
    assert not out.exists()
    assert command.main([*store, "export", "pairs", "pairs", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'pairs.parquet'}: 1 rows\n"
    assert command.main([*store, "export", "pairs", "pairs", str(out)]) == 1
    assert "OUT must be a folder that does not exist yet" in capsys.readouterr().err
    assert command.main([*store, "export", "pairs", "nothing", str(tmp_path / "other")]) == 1
    assert "KEY must be the key of pairs in" in capsys.readouterr().err


def test_nothing_is_pushed_unless_it_is_asked_for(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "push", None)  # a call would fail
    assert command.main(["--store", str(root), "export", "pairs", "pairs", str(tmp_path / "out")]) == 0


def test_the_lineage_of_an_imported_pool_names_the_file_and_its_digest(
    tmp_path: Path, tiny_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"prompt": "Why?", "responses": ["a", "b"], "rewards": [1, 2]}) + "\n")
    store = ["--store", str(tmp_path / "store")]
    command.main([*store, "import", str(file), "--model", str(tiny_policy), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert command.main([*store, "export", "rewards", facts["rewards"], str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"source: a.jsonl, SHA-256 {facts['sources'][0]['sha256']}" in card
    assert "imported: 2 responses to 1 prompts" in card
