"""The store: whole or absent, first writer wins, damage is found and named."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweetspot.lease import Watch
from sweetspot.schema import REWARDS
from sweetspot.store import CorruptTileError, Store, StoreError, read_labels, read_tile, tile_name, write_tile


def rows(values: list[float]) -> pa.Table:
    places = [{"prompt_id": "p", "sample_index": index, "reward": value} for index, value in enumerate(values)]
    return pa.Table.from_pylist(places, schema=REWARDS)


def test_a_tile_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "pool" / "tile.parquet"
    assert write_tile(path, rows([1.5, -2.0]), {"seconds": 3})
    table, facts = read_tile(path, REWARDS)
    assert table.equals(rows([1.5, -2.0]))
    assert facts == {"seconds": 3}


def test_the_first_writer_wins_and_leaves_no_scratch_file(tmp_path: Path) -> None:
    path = tmp_path / "tile.parquet"
    assert write_tile(path, rows([1.0]), {})
    assert not write_tile(path, rows([2.0]), {})
    assert read_tile(path, REWARDS)[0]["reward"].to_pylist() == [1.0]
    assert [found.name for found in tmp_path.iterdir()] == ["tile.parquet"]


def test_every_damaged_byte_is_found_or_harmless(tmp_path: Path) -> None:
    whole = tmp_path / "tile.parquet"
    write_tile(whole, rows([float(value) for value in range(50)]), {})
    good, content = read_tile(whole, REWARDS)[0], whole.read_bytes()
    found = 0
    for place in range(0, len(content), 7):
        whole.unlink()
        whole.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            assert read_tile(whole, REWARDS)[0].equals(good)
        except CorruptTileError:
            found += 1
    assert found > len(content) // 7 // 2


@pytest.mark.parametrize("keep", [0, 1, 100])
def test_a_cut_tile_is_named_with_the_way_out(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "tile.parquet"
    write_tile(path, rows([1.0]), {})
    os.truncate(path, keep)
    with pytest.raises(CorruptTileError, match=r"tile\.parquet is corrupt .*remake_corrupt=true"):
        read_tile(path, REWARDS)


def test_a_tile_under_another_name_is_refused(tmp_path: Path) -> None:
    write_tile(tmp_path / "a.parquet", rows([1.0]), {})
    (tmp_path / "a.parquet").rename(tmp_path / "b.parquet")
    with pytest.raises(CorruptTileError, match="it holds the tile a"):
        read_tile(tmp_path / "b.parquet", REWARDS)


def test_a_tile_of_another_schema_is_refused(tmp_path: Path) -> None:
    write_tile(tmp_path / "a.parquet", pa.table({"prompt_id": ["p"]}), {})
    with pytest.raises(CorruptTileError, match="columns"):
        read_tile(tmp_path / "a.parquet", REWARDS)


IDS = ["p", "q", "r"]


def named(folder: Path, places: list[tuple[str, int]], ids: list[str] = IDS, first: int = 4) -> Path:
    """A tile that names its prompts, with a row for each place."""
    path = folder / f"{tile_name(IDS, first)}.parquet"
    table = [{"prompt_id": name, "sample_index": index, "reward": 0.5} for name, index in places]
    write_tile(path, pa.Table.from_pylist(table, schema=REWARDS), {"truncated": 1}, ids)
    return path


@pytest.mark.parametrize(
    "places", [[], [("p", 4), ("p", 5), ("q", 4), ("q", 5), ("r", 4)], [("p", 4), ("r", 4)], [("r", 4), ("r", 5)]]
)
def test_a_tile_that_names_its_prompts_may_lack_the_rows_of_some(tmp_path: Path, places: list[tuple[str, int]]) -> None:
    path = named(tmp_path, places)
    assert read_tile(path, REWARDS)[0].num_rows == len(places)
    assert read_tile(path, REWARDS, ["prompt_id", "sample_index"])[0].num_columns == 2
    assert read_labels(path) == (IDS, {"truncated": 1})


@pytest.mark.parametrize(
    ("places", "ids", "told"),
    [
        ([("p", 4)], ["p", "q"], "prompt ids are not those of its name"),
        ([("x", 4)], IDS, "not those of its prompts in their order"),
        ([("q", 4), ("p", 4)], IDS, "not those of its prompts in their order"),
        ([("p", 4), ("q", 4), ("p", 5)], IDS, "not those of its prompts in their order"),
        ([("p", 5), ("p", 6)], IDS, "do not follow one another from 4"),
        ([("p", 4), ("p", 6)], IDS, "do not follow one another from 4"),
        ([("p", 4), ("p", 4)], IDS, "do not follow one another from 4"),
        ([("p", 5), ("p", 4)], IDS, "do not follow one another from 4"),
    ],
)
def test_rows_that_are_not_those_of_the_tile_are_found(
    tmp_path: Path, places: list[tuple[str, int]], ids: list[str], told: str
) -> None:
    with pytest.raises(CorruptTileError, match=told):
        read_tile(named(tmp_path, places, ids), REWARDS)


def read_and_write(root: Path, told: Any) -> None:
    """What a process does that may only read; another user where this one is root, whom permissions do not stop."""
    if os.getuid() == 0:
        os.setuid(65534)
    folder = Store(root).artefact("rewards", "abc", {})
    lines = [str(read_tile(folder / "there.parquet", REWARDS)[0]["reward"].to_pylist())]
    lines.append(str(write_tile(folder / "there.parquet", rows([2.0]), {})))
    new = folder / "new.parquet"
    for attempt in (lambda: write_tile(new, rows([1.0]), {}), lambda: Watch(60).claim(new, None)):
        try:
            attempt()
        except StoreError as error:
            lines.append(str(error))
    told.send(lines)


def test_a_read_only_store_gives_what_it_has_and_says_what_to_do_about_the_rest() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "store"
        folder = Store(root).artefact("rewards", "abc", {})
        write_tile(folder / "there.parquet", rows([1.5]), {})
        Path(scratch).chmod(0o755)
        folder.chmod(0o555)
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        reader = context.Process(target=read_and_write, args=(root, there))
        reader.start()
        assert here.poll(30)
        told = here.recv()
        reader.join()
        folder.chmod(0o755)
    assert told[:2] == ["[1.5]", "False"]
    assert len(told) == 4
    for line in told[2:]:
        assert line.startswith(f"store: {folder} cannot be written (Permission denied); what it holds can be used")


def test_a_full_disk_says_so_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(StoreError, match=r"disk is full .*nothing complete is lost"):
        write_tile(tmp_path / "tile.parquet", rows([1.0]), {})
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "store_version": 99}))
    with pytest.raises(StoreError, match="written by store version 99"):
        Store(tmp_path)


@pytest.mark.parametrize("text", ["", "garbage", "[]", "{}"])
def test_a_folder_with_another_meta_json_is_no_store(tmp_path: Path, text: str) -> None:
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(StoreError, match="was written by store version unknown"):
        Store(tmp_path)
    assert (tmp_path / "meta.json").read_text() == text


def test_an_artefact_records_where_it_comes_from(tmp_path: Path) -> None:
    folder = Store(tmp_path).artefact("rewards", "abc", {"reward_model": "toy"})
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["reward_model"] == "toy"
    assert "pyarrow" in meta["libraries"]


def test_a_folder_is_absent_until_it_is_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.folder("policies", "abc")
    with pytest.raises(KeyboardInterrupt), store.building(folder, {}) as scratch:
        (scratch / "checkpoint").write_text("1")
        raise KeyboardInterrupt
    assert not folder.exists()
    with store.building(folder, {}) as scratch:
        assert (scratch / "checkpoint").read_text() == "1"
    assert (folder / "checkpoint").exists()


def test_files_that_were_written_for_their_owner_are_read_by_all_who_may_read_the_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name, rights, readers in (("open", 0o755, 0o644), ("closed", 0o700, 0o600)):
        with store.building(store.folder("policies", name), {}) as scratch:
            scratch.chmod(rights)
            (scratch / "adapter").mkdir()
            for path in (scratch / "model.safetensors", scratch / "adapter" / "adapter.safetensors"):
                path.touch(0o600)
        placed = store.folder("policies", name).rglob("*.safetensors")
        assert [path.stat().st_mode & 0o777 for path in placed] == [readers] * 2


WRITER = """
import sys, pathlib
from tests.test_store import rows
from sweetspot.store import write_tile
for number in range(100000):
    write_tile(pathlib.Path(sys.argv[1]) / f"{number:06d}.parquet", rows([float(number)] * 200), {})
"""


def test_a_writer_killed_at_any_moment_leaves_only_whole_tiles(tmp_path: Path) -> None:
    for pause in (0.02, 0.05, 0.11):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
        while not list(tmp_path.glob("[0-9]*.parquet")):
            time.sleep(0.01)
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        tiles = sorted(tmp_path.glob("[0-9]*.parquet"))
        assert tiles
        for tile in tiles:
            assert read_tile(tile, REWARDS)[0]["reward"].to_pylist() == [float(tile.stem)] * 200
            tile.unlink()
