"""Tiles: what is wanted, and where it lies already."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sweetspot.schema import REWARDS
from sweetspot.store import CorruptTileError, tile_name, write_tile
from sweetspot.tile import Cover, Group, cut

IDS = [f"{number:016x}" for number in range(10)]


def place(folder: Path, ids: list[str], first: int, n: int = 2) -> str:
    """A tile with n samples of each prompt."""
    rows = [{"prompt_id": name, "sample_index": first + index, "reward": 0.0} for name in ids for index in range(n)]
    name = tile_name(ids, first)
    write_tile(folder / f"{name}.parquet", pa.Table.from_pylist(rows, schema=REWARDS), {}, ids)
    return name


def units(groups: list[Group], n: int = 4) -> list[tuple[int, int]]:
    return sorted((row, group.first + index) for group in groups for row in group.rows for index in range(n))


@pytest.mark.parametrize("count", range(18))
def test_the_tiles_cover_every_sample_of_every_prompt_once(count: int) -> None:
    names = [f"{number:016x}" for number in range(count)]
    groups = cut(names, np.full(count, 3), 4, 4)
    assert units(groups) == [(row, index) for row in range(count) for index in range(12)]
    assert len({group.name for group in groups}) == len(groups)


def test_a_smaller_n_and_a_shorter_prompt_list_share_tiles() -> None:
    whole = {group.name for group in cut(IDS[:8], np.full(8, 2), 2, 4)}
    assert {group.name for group in cut(IDS[:8], np.full(8, 1), 2, 4)} < whole
    assert {group.name for group in cut(IDS[:4], np.full(4, 2), 2, 4)} < whole


def test_prompts_with_blocks_of_their_own_fill_later_tiles_together() -> None:
    groups = cut(IDS[:5], np.array([1, 3, 0, 2, 3]), 2, 4)
    assert [(list(group.rows), group.first) for group in groups] == [
        ([0, 1], 0),
        ([3, 4], 0),
        ([1, 3], 4),
        ([4], 4),
        ([1, 4], 8),
    ]


def plan(folder: Path, ids: list[str], pack: int | None = 4) -> tuple[list[tuple[str, list[int]]], list[list[int]]]:
    """Of one block in tiles of four: the tiles that are there with the rows that they serve, and those that are not."""
    found = Cover(folder).plan(ids, cut(ids, np.full(len(ids), 1), 4, 2), 2, pack)
    assert sorted(row for tile in found.tiles for row in tile.rows) == list(range(len(ids)))
    return [(tile.name, list(tile.rows)) for tile in found.present], [list(tile.rows) for tile in found.missing]


def test_an_empty_pool_misses_all_tiles(tmp_path: Path) -> None:
    assert plan(tmp_path / "absent", IDS) == ([], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]])


def test_prompts_in_tiles_of_another_prompt_set_are_used_and_the_others_are_put_together(tmp_path: Path) -> None:
    other = place(tmp_path, [IDS[5], IDS[1], "f" * 16, IDS[4]], 0)
    place(tmp_path, IDS[:4], 2)  # another block, which says nothing of this one
    assert plan(tmp_path, IDS) == ([(other, [1, 4, 5])], [[0, 2, 3, 6], [7, 8, 9]])
    assert plan(tmp_path, IDS, pack=None) == ([(other, [1, 4, 5])], [[0, 2, 3], [6, 7], [8, 9]])


def test_the_own_cut_comes_first_and_no_prompt_is_taken_twice(tmp_path: Path) -> None:
    own = place(tmp_path, IDS[:4], 0)
    twice = place(tmp_path, IDS[3:6], 0)
    assert plan(tmp_path, IDS) == ([(own, [0, 1, 2, 3]), (twice, [4, 5])], [[6, 7, 8, 9]])


def test_what_was_left_over_is_found_again_when_it_has_been_made(tmp_path: Path) -> None:
    other = place(tmp_path, [IDS[1]], 0)
    _, missing = plan(tmp_path, IDS)
    made = [(place(tmp_path, [IDS[row] for row in rows], 0), rows) for rows in missing]
    present, missing = plan(tmp_path, IDS)
    assert sorted(present) == sorted([(other, [1]), *made])
    assert missing == []


def test_a_tile_is_looked_into_only_where_its_name_is_not_enough(tmp_path: Path) -> None:
    names = [place(tmp_path, IDS[start : start + 4], 0) for start in (0, 4, 8)]
    broken = tmp_path / f"{tile_name(['x'], 0)}.parquet"
    broken.write_bytes(b"PAR1 cut short")
    assert plan(tmp_path, IDS)[1] == []
    (tmp_path / f"{names[2]}.parquet").unlink()
    with pytest.raises(CorruptTileError, match=rf"{broken.name} is corrupt .*remake_corrupt=true"):
        plan(tmp_path, IDS)
