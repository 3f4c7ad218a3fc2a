"""Tiles: which samples lie in which file, and which are missing.

A tile holds the samples from `first` on of some prompts, and its name says which (`store.tile_name`). A pool is shared
by every prompt set, so the samples that a job wants may lie in tiles that another job cut differently: the tiles of its
own cut are looked for by name, and where one is absent, the prompts that other tiles name inside are taken from there.
So a prompt's block of samples is made once, whatever it was sampled together with.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from sweetspot.lease import listing
from sweetspot.store import content_name, read_labels

SUFFIX = ".parquet"


@dataclass(frozen=True)
class Tile:
    """Samples [first, first + n) of the prompts in these rows of a prompt set: a file, or what is wanted of one.

    A tile that is missing holds just these prompts when it is made; one that is there may hold others too.
    """

    name: str
    rows: Sequence[int]
    first: int
    n: int

    def at(self, folder: Path) -> Path:
        """Its file."""
        return folder / f"{self.name}{SUFFIX}"


@dataclass(frozen=True)
class Group:
    """Prompts whose samples from `first` on are wanted in one tile, and the content part of that tile's name."""

    content: str
    rows: Sequence[int]
    first: int

    @property
    def name(self) -> str:
        """The name of the tile that holds them and no others."""
        return f"{self.content}-{self.first:05d}"


@dataclass(frozen=True)
class Plan:
    """The tiles of what is wanted: those that are there, and those to be made, the first block before the second."""

    present: list[Tile]
    missing: list[Tile]

    @property
    def tiles(self) -> list[Tile]:
        """All of them."""
        return [*self.present, *self.missing]


def cut(prompt_ids: Sequence[str], blocks: np.ndarray, tile_prompts: int, tile_samples: int) -> list[Group]:
    """The groups of a prompt set, the first block of all prompts before the second.

    Args:
        prompt_ids: of the prompts, in their order.
        blocks: [prompts] int, how many blocks of `tile_samples` samples each is to have. Those that are to have a block
            are cut in their order into groups of `tile_prompts`, so that a set that begins alike shares tiles.
    """
    wanted = [np.flatnonzero(blocks > block) for block in range(int(blocks.max(initial=0)))]
    groups: list[Group] = []
    before, contents = -1, list[tuple[str, Sequence[int]]]()
    for block, rows in enumerate(wanted):
        if len(rows) != before:  # blocks only get fewer prompts, so the same number is the same prompts
            before, contents = len(rows), list(_chunks(prompt_ids, rows.tolist(), tile_prompts))
        groups += [Group(content, chunk, block * tile_samples) for content, chunk in contents]
    return groups


def _chunks(prompt_ids: Sequence[str], rows: list[int], size: int) -> Iterable[tuple[str, Sequence[int]]]:
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        yield content_name([prompt_ids[row] for row in chunk]), _compact(chunk)


def _compact(rows: list[int]) -> Sequence[int]:
    """The rows, as a range where they follow one another."""
    return range(rows[0], rows[-1] + 1) if all(b == a + 1 for a, b in pairwise(rows)) else tuple(rows)


class Cover:
    """What the tiles of one folder hold. The prompt ids of a tile are read once, and only where its name is not enough.

    Args:
        folder: of the pool.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, list[str]] = {}

    def plan(self, prompt_ids: Sequence[str], groups: Sequence[Group], n: int, pack: int | None) -> Plan:
        """The tiles of the groups, by one listing of the folder.

        Args:
            prompt_ids: of the prompts, in their order.
            groups: what is wanted.
            n: samples per prompt in a tile.
            pack: prompts that are left of several groups of one block are put together again in tiles of this size;
                None = what is left of a group is a tile of its own.

        Raises:
            CorruptTileError: when a tile that has to be looked into cannot be read.
        """
        names = {name.removesuffix(SUFFIX) for name in listing(self.folder) if _is_tile(name)}
        own = {group.name for group in groups}
        others: dict[int, list[str]] = {}
        for name in sorted(names - own):
            if (first := name.rpartition("-")[2]).isdecimal():
                others.setdefault(int(first), []).append(name)
        present = [Tile(group.name, group.rows, group.first, n) for group in groups if group.name in names]
        missing: list[Tile] = []
        for first in dict.fromkeys(group.first for group in groups):
            absent = [group for group in groups if group.first == first and group.name not in names]
            if absent and first in others:
                found, absent = self._look_into(others[first], prompt_ids, absent, pack)
                present += [Tile(name, rows, first, n) for name, rows in found]
            missing += [Tile(group.name, group.rows, first, n) for group in absent]
        return Plan(present, missing)

    def _look_into(
        self, names: list[str], prompt_ids: Sequence[str], absent: list[Group], pack: int | None
    ) -> tuple[list[tuple[str, Sequence[int]]], list[Group]]:
        """The tiles of other cuts that hold some of the absent groups' prompts with those rows, and what is left."""
        first = absent[0].first
        left = {prompt_ids[row]: row for group in absent for row in group.rows}
        found: list[tuple[str, Sequence[int]]] = []
        for name in names:
            rows = [left.pop(prompt) for prompt in self._prompts(name) if prompt in left]
            if rows:
                found.append((name, _compact(sorted(rows))))
        if not found:
            return [], absent
        remaining = [[row for row in group.rows if prompt_ids[row] in left] for group in absent]
        parts = [list(chain.from_iterable(remaining))] if pack else remaining
        return found, [
            Group(content, chunk, first)
            for rows in parts
            for content, chunk in _chunks(prompt_ids, rows, pack or max(1, len(rows)))
        ]

    def _prompts(self, name: str) -> list[str]:
        if name not in self.known:
            self.known[name] = read_labels(self.folder / f"{name}{SUFFIX}")[0] or []
        return self.known[name]


def _is_tile(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".")
