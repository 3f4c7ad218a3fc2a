"""The care of a store: ls, du, verify and gc on small stores made by hand."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweetspot.exchange import check, command, inventory, show
from sweetspot.schema import PAIRS, PROMPTS, REWARDS, SAMPLES
from sweetspot.store import Store, write_tile

SAMPLER = {"_target_": "sweetspot.sampler.VllmSampler", "temperature": 0.8, "top_p": 1.0, "max_tokens": 48, "seed": 3}
OLD = 10 * 86400


def sample_rows(prompts: list[str], first: int, n: int, tokens: int = 3) -> pa.Table:
    rows = [
        {"prompt_id": name, "sample_index": index, "response": "x", "token_ids": [7] * tokens, "n_tokens": tokens}
        | {"finish_reason": "stop", "seed": index, "logprob": -1.0}
        for name in prompts
        for index in range(first, first + n)
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def reward_rows(prompts: list[str], first: int, n: int) -> pa.Table:
    rows = [
        {"prompt_id": name, "sample_index": index, "reward": 1.0}
        for name in prompts
        for index in range(first, first + n)
    ]
    return pa.Table.from_pylist(rows, schema=REWARDS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A pool of 3 prompts x 4 samples in four tiles of 2 samples, its rewards, and a pair set."""
    store = Store(tmp_path / "store")
    pool = store.artefact("samples", "pool", {"model": {"name": "tiny"}, "sampler": SAMPLER})
    rewards = store.artefact(
        "rewards",
        "rm",
        {"reward_model": {"_target_": "sweetspot.reward_model.EmbeddedReward", "head": "gold"}, "samples": "pool"},
    )
    for name, prompts in (("a", ["p", "q"]), ("b", ["r"])):
        for first in (0, 2):
            write_tile(pool / f"{name}-{first:05d}.parquet", sample_rows(prompts, first, 2), {"set_aside": {}})
            write_tile(rewards / f"{name}-{first:05d}.parquet", reward_rows(prompts, first, 2), {})
    strategy = {"_target_": "sweetspot.strategy.PositionPair", "chosen": "max", "rejected": "mu-2sigma"}
    made_of = {"strategy": strategy, "rewards": "rm", "samples": "pool", "n_samples": 4, "ignore_duplicates": False}
    pairs = store.artefact("pairs", "pairs", made_of)
    row = {"prompt_id": "p", "pair_index": 0, "messages": [{"role": "user", "content": "Why?"}], "chosen": "yes"}
    row |= {"rejected": "no", "chosen_index": 1, "rejected_index": 3, "chosen_reward": 2.0, "rejected_reward": -1.0}
    table = pa.Table.from_pylist([{**row, "chosen_z": 1.5, "rejected_z": -1.5}], schema=PAIRS)
    write_tile(pairs / "pairs.parquet", table, {"dropped": {}, "ignored_duplicates": 0})
    prompts = [{"prompt_id": name, "messages": row["messages"], "source": "test"} for name in ("p", "q", "r")]
    write_tile(store.root / "prompts" / "abc.parquet", pa.Table.from_pylist(prompts, schema=PROMPTS), {})
    return store.root


def aged(path: Path, seconds: float) -> Path:
    """The path, and all below it, last changed so long ago."""
    then = time.time() - seconds
    for found in [*path.rglob("*"), path]:
        os.utime(found, (then, then))
    return path


def states(root: Path) -> dict[str, str]:
    return {found.path: found.state for found in check.verify(root)}


def content(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_ls_counts_prompts_samples_and_tokens_without_reading_a_row(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pq.ParquetFile, "read", None)
    monkeypatch.setattr(pq, "read_table", None)
    found = inventory.listing(root)
    (pool,) = found["samples"]
    assert (pool["model"], pool["sampler"]) == ("tiny", "vllm T=0.8 top_p=1.0 max=48 seed=3")
    assert (pool["prompts"], pool["n"], pool["tokens"]) == (3, 4, 36)
    assert pool["bytes"] == sum(path.stat().st_size for path in (root / "samples" / "pool").iterdir())
    assert (found["rewards"][0]["reward_model"], found["rewards"][0]["rewards"]) == ("EmbeddedReward gold", 12)
    assert (found["pairs"][0]["strategy"], found["pairs"][0]["pairs"]) == ("(max, mu-2sigma)", 1)
    assert found["policies"] == []


def test_du_adds_up_to_what_lies_on_disk(root: Path) -> None:
    rows = inventory.sizes(root)
    files = [path for path in root.rglob("*") if path.is_file() and path.parent != root]
    assert sum(row["bytes"] for row in rows) == sum(path.stat().st_size for path in files)
    assert [(row["kind"], row["key"]) for row in rows] == [
        ("pairs", "pairs"),
        ("prompts", ""),
        ("rewards", "rm"),
        ("samples", "pool"),
    ]


def test_a_whole_store_has_nothing_wrong(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--store", str(root), "verify"]) == 0
    assert capsys.readouterr().out == "nothing is wrong\n"


def test_verify_finds_every_tile_that_was_cut_short_or_changed(root: Path) -> None:
    tiles = sorted((root / "samples" / "pool").glob("*.parquet"))
    os.truncate(tiles[0], tiles[0].stat().st_size // 2)
    os.truncate(tiles[1], 0)
    whole = tiles[2].read_bytes()
    tiles[2].write_bytes(whole[:100] + bytes([whole[100] ^ 0xFF]) + whole[101:])
    os.truncate(root / "pairs" / "pairs" / "pairs.parquet", 100)
    os.truncate(root / "prompts" / "abc.parquet", 100)
    before = content(root)
    assert states(root) == {
        "samples/pool/a-00000.parquet": "corrupt",
        "samples/pool/a-00002.parquet": "corrupt",
        "samples/pool/b-00000.parquet": "corrupt",
        "pairs/pairs/pairs.parquet": "corrupt",
        "prompts/abc.parquet": "corrupt",
    }
    assert content(root) == before


def test_verify_ends_with_1_and_names_the_file_and_the_reason(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tile = root / "rewards" / "rm" / "a-00000.parquet"
    os.truncate(tile, 50)
    assert command.main(["--store", str(root), "verify", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["state"], found["path"], found["bytes"]) == ("corrupt", "rewards/rm/a-00000.parquet", 50)
    assert found["reason"]
    assert command.main(["--store", str(root), "verify"]) == 1
    assert "rewards/rm/a-00000.parquet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([("p", 0), ("p", 0)], "some rows have the same prompt_id, sample_index"),
        ([("p", 0), (None, 1)], "some rows have no prompt_id"),
    ],
)
def test_verify_finds_rows_that_cannot_be_joined(root: Path, rows: list[tuple[str | None, int]], reason: str) -> None:
    places = [{"prompt_id": name, "sample_index": index, "reward": 1.0} for name, index in rows]
    tile = root / "rewards" / "rm" / "a-00000.parquet"
    tile.unlink()
    write_tile(tile, pa.Table.from_pylist(places, schema=REWARDS), {})
    assert [found.reason for found in check.verify(root)] == [reason]


def orphans(root: Path, age: float) -> set[str]:
    """One of every kind of orphan, all so old; returns their paths."""
    pool = root / "samples" / "pool"
    (pool / ".c-00000.parquet.1a2b3c4d.part").write_text("half")
    (pool / ".c-00000.lease.2").write_text("{}")
    (root / "policies" / ".abc.part").mkdir(parents=True)
    (root / "policies" / ".abc.part" / "checkpoint").write_text("1")
    (root / "models" / "lost").mkdir(parents=True)
    (root / "models" / "lost" / "model.safetensors").write_text("1")
    gone = Store(root).artefact("rewards", "gone", {"samples": "nowhere"})
    write_tile(gone / "a-00000.parquet", reward_rows(["p"], 0, 2), {})
    write_tile(root / "rewards" / "rm" / "z-00000.parquet", reward_rows(["z"], 0, 2), {})
    paths = {
        "samples/pool/.c-00000.parquet.1a2b3c4d.part",
        "samples/pool/.c-00000.lease.2",
        "policies/.abc.part",
        "models/lost",
        "rewards/gone",
        "rewards/rm/z-00000.parquet",
    }
    for path in paths:
        aged(root / path, age)
    return paths


def test_verify_finds_every_kind_of_orphan_and_deletes_none(root: Path) -> None:
    expected = orphans(root, OLD)
    before = content(root)
    assert states(root) == dict.fromkeys(expected, "orphaned")
    assert content(root) == before


def test_what_a_process_at_work_holds_is_no_fault(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = root / "samples" / "pool"
    (pool / ".c-00000.parquet.1a2b3c4d.part").write_text("half")
    lease = pool / ".c-00000.lease.0"
    lease.write_text("{}")
    ahead = time.time() + 3600  # the holder's clock runs ahead
    os.utime(lease, (ahead, ahead))
    assert set(states(root).values()) == {"in use"}
    assert command.main(["--store", str(root), "verify"]) == 0
    assert "in use" in capsys.readouterr().out


def test_gc_lists_and_deletes_only_with_the_flag(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = content(root)
    expected = orphans(root, OLD)
    before = content(root)
    assert command.main(["--store", str(root), "gc"]) == 0
    shown = capsys.readouterr().out
    assert all(path in shown for path in expected)
    assert "nothing was deleted" in shown
    assert content(root) == before
    assert command.main(["--store", str(root), "gc", "--delete", "--json"]) == 0
    assert {found["path"] for found in json.loads(capsys.readouterr().out)} == expected
    assert content(root) == whole | {"policies", "models"}


def test_gc_leaves_what_is_younger_than_asked_and_corrupt_tiles(root: Path) -> None:
    orphans(root, 2 * 3600)
    os.truncate(root / "samples" / "pool" / "a-00000.parquet", 10)
    before = content(root)
    assert command.main(["--store", str(root), "gc", "--delete"]) == 0  # a day by default
    assert content(root) == before
    assert command.main(["--store", str(root), "gc", "--delete", "--older-than", "90m"]) == 0
    assert (root / "samples" / "pool" / "a-00000.parquet").exists()
    assert not (root / "rewards" / "gone").exists()


def test_gc_never_takes_a_tile_under_a_live_lease(root: Path) -> None:
    """The tile of samples is being made again (remake_corrupt), so its rewards are not without samples for good."""
    (root / "samples" / "pool" / "a-00000.parquet").unlink()
    aged(root / "rewards" / "rm", OLD)
    (root / "samples" / "pool" / ".a-00000.lease.0").write_text("{}")
    assert command.main(["--store", str(root), "gc", "--delete", "--older-than", "0s"]) == 0
    assert (root / "rewards" / "rm" / "a-00000.parquet").exists()
    assert (root / "samples" / "pool" / ".a-00000.lease.0").exists()
    aged(root / "samples" / "pool" / ".a-00000.lease.0", OLD)
    assert command.main(["--store", str(root), "gc", "--delete"]) == 0
    assert not (root / "rewards" / "rm" / "a-00000.parquet").exists()


@pytest.mark.parametrize("name", ["ls", "du", "verify", "gc"])
def test_every_command_prints_tables_or_one_json_value(
    root: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    orphans(root, OLD)
    command.main(["--store", str(root), name])
    assert capsys.readouterr().out.strip()
    command.main(["--store", str(root), name, "--json"])
    assert json.loads(capsys.readouterr().out)


def test_a_folder_that_is_no_store_is_refused_and_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--store", str(tmp_path / "none"), "ls"]) == 1
    assert "error: --store must be the folder of a store" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("time_", ["1", "x", "-1d", "d", "1w"])
def test_a_time_without_a_unit_is_refused(root: Path, time_: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--store", str(root), "gc", f"--older-than={time_}"])
    assert "such as 90s, 30m, 12h or 7d" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (250e6, "250 MB"), (2e12, "2.0 TB")]
)
def test_sizes_read_well(count: float, text: str) -> None:
    assert show.size(count) == text


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["import"], ["export"]):
        with pytest.raises(SystemExit):
            command.main([*arguments, "--help"])
        shown: Any = capsys.readouterr().out
        assert "examples:\n  python -m sweetspot.store" in shown


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"_target_": "x.PositionPair", "chosen": "max", "rejected": "mu-2sigma", "ddof": 1}, "(max, mu-2sigma)"),
        (
            {"_target_": "x.PositionPair", "chosen": "max", "rejected": "mu-2sigma", "ddof": 0},
            "(max, mu-2sigma; ddof=0)",
        ),
        ({"_target_": "own.Scaled", "scale": 2}, "Scaled"),
        ({}, ""),
    ],
)
def test_a_strategy_is_listed_as_the_paper_writes_it(config: dict[str, Any], name: str) -> None:
    assert inventory.strategy_name(config) == name
