"""Filling: many processes, one pool, each tile once, and nothing lost by a kill or a fault."""

import errno
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweetspot.component import to_config
from sweetspot.fill import Todo, Told, absent, fill
from sweetspot.launch import TileError
from sweetspot.lease import Lease, Watch, generations
from sweetspot.model import Model
from sweetspot.sampler import Sampler, stream_seed
from sweetspot.schema import PROMPTS, REWARDS, SAMPLES, prompt_id
from sweetspot.stopping import Stopped
from sweetspot.store import StoreError, read_tile, write_tile
from tests import tiny
from tests.test_sampler import TRANSFORMERS, VLLM


def todos(folder: Path, count: int = 3) -> list[Todo]:
    return [Todo(folder / f"{number}.parquet", 2, number) for number in range(count)]


def place(todo: Todo) -> bool:
    row = {"prompt_id": "p", "sample_index": 0, "reward": float(todo.what)}
    return write_tile(todo.path, pa.Table.from_pylist([row], schema=REWARDS), {})


def made(events: list[dict[str, Any]]) -> list[str]:
    return [event["made"] for event in events if "made" in event]


def test_a_worker_makes_what_is_missing_and_leaves_no_lease(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    place(todos(tmp_path)[1])

    def make(engine: str, todo: Todo, told: Told) -> Any:
        assert engine == "loaded"
        told.add(work=10, responses=2)
        return lambda: place(todo)

    fill(lambda: absent(todos(tmp_path)), lambda: "loaded", make, events.append, 60, "tokens/s")
    assert made(events) == ["0", "2"]
    last = events[-1]["progress"]
    assert (last["done"], last["total"], last["unit"], last["per"]) == (4, 4, "responses", "tokens/s")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.parquet", "1.parquet", "2.parquet"]


def interrupted(folder: Path, at: int) -> bool:
    """Fill a folder, and raise before the line numbered `at` that runs in the main thread, as a stop signal does.

    Returns:
        False when there are fewer lines.
    """
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if Path(frame.f_code.co_filename).name not in ("lease.py", "fill.py", "store.py"):
            return None
        lines += event == "line"
        if event == "line" and lines == at:
            raise Stopped("SIGTERM")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        fill(
            lambda: absent(todos(folder, 2)),
            str,
            lambda _engine, todo, _told: lambda: place(todo),
            lambda _: None,
            60,
            "",
        )
    except Stopped:
        return True
    finally:
        sys.settrace(before)
    return False


def test_a_stop_signal_between_any_two_lines_leaves_no_lease_and_no_half_tile(tmp_path: Path) -> None:
    at = 1
    while interrupted(folder := tmp_path / str(at), at):
        assert generations(folder) == {}, at
        assert all(read_tile(path, REWARDS)[0].num_rows == 1 for path in folder.glob("[!.]*")), at
        at += 1
    assert at > 200


def never() -> None:
    raise AssertionError("the engine was loaded")


def test_a_worker_that_finds_every_tile_held_loads_nothing_waits_and_says_for_whom(tmp_path: Path) -> None:
    """The holder finishes its tiles after a second; nothing was left for the one that waited."""
    import threading

    held = [Watch(60).claim(todo.path, None) for todo in todos(tmp_path)]
    assert all(isinstance(lease, Lease) for lease in held)
    threading.Timer(1.2, lambda: [place(todo) for todo in todos(tmp_path)]).start()
    events: list[dict[str, Any]] = []
    fill(lambda: absent(todos(tmp_path)), never, lambda *_: never, events.append, 60, "")  # pyright: ignore
    notes = [event["progress"]["note"] for event in events if "progress" in event]
    assert any(note.endswith(f"(process {os.getpid()}): 3") and "waiting for tiles of" in note for note in notes)
    assert events[-1]["progress"]["done"] == 6


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (RuntimeError("engine core died"), TileError, "RuntimeError: engine core died"),
        (KeyError("absent"), TileError, "KeyError: 'absent'"),
        (ValueError("reward_model: rewards must be finite"), ValueError, "must be finite"),
        (StoreError("store: the disk is full"), StoreError, "the disk is full"),
    ],
)
@pytest.mark.parametrize("writing", [False, True])
def test_a_fault_keeps_what_is_complete_and_gives_the_tile_back(
    tmp_path: Path, error: Exception, raised: type[Exception], text: str, writing: bool
) -> None:
    def fail() -> bool:
        raise error

    def make(_: None, todo: Todo, __: Told) -> Any:
        if todo.what == 1 and not writing:
            fail()
        return fail if todo.what == 1 else lambda: place(todo)

    with pytest.raises(raised, match=text) as failed:
        fill(lambda: absent(todos(tmp_path)), lambda: None, make, lambda _: None, 60, "")
    assert (tmp_path / "0.parquet").exists() and not (tmp_path / "1.parquet").exists()
    assert generations(tmp_path) == {}
    if isinstance(failed.value, TileError):
        assert failed.value.tile == "1"


def test_a_tile_that_another_wrote_first_is_kept_and_told(tmp_path: Path) -> None:
    """What a holder meets that was taken for dead: somebody placed its tile."""
    events: list[dict[str, Any]] = []

    def make(_: None, todo: Todo, __: Told) -> Any:
        place(replace(todo, what=99))
        return lambda: place(todo)

    fill(lambda: absent(todos(tmp_path, 1)), lambda: None, make, events.append, 60, "")
    assert read_tile(tmp_path / "0.parquet", REWARDS)[0]["reward"].to_pylist() == [99.0]
    assert [event["lost"] for event in events if "lost" in event] == ["0"]


def test_a_tile_of_another_cut_with_one_of_its_prompts_in_the_making_is_waited_for(tmp_path: Path) -> None:
    other = Watch(60).claim(tmp_path / "feed-00000.parquet", None, ["q", "r"])
    far = Watch(60).claim(tmp_path / "beef-00016.parquet", None, ["p"])  # another block
    assert isinstance(other, Lease) and isinstance(far, Lease)
    todo = Todo(tmp_path / "cafe-00000.parquet", 1, 0, ["p", "q"])
    events: list[dict[str, Any]] = []

    def emit(event: dict[str, Any]) -> None:
        events.append(event)
        if "waiting" in event.get("progress", {}).get("note", ""):
            assert not any("tile" in event for event in events)
            other.release()

    fill(lambda: absent([todo]), lambda: None, lambda _, todo, __: lambda: place(todo), emit, 1, "")
    assert made(events) == ["cafe-00000"]
    assert any("waiting" in event.get("progress", {}).get("note", "") for event in events)


def prompts(folder: Path, count: int) -> list[str]:
    """A prompts file; returns the ids."""
    turns = [[{"role": "user", "content": f"Say {number} in other words."}] for number in range(count)]
    rows = [{"prompt_id": prompt_id(turn), "messages": turn, "source": "test"} for turn in turns]
    pq.write_table(pa.Table.from_pylist(rows, schema=PROMPTS), folder / "prompts.parquet")
    return [row["prompt_id"] for row in rows]


def sampling(folder: Path, pool: str, model: Model, sampler: Sampler, blocks: int) -> dict[str, Any]:
    return {
        "model": to_config(model),
        "sampler": to_config(sampler),
        "prompts": str(folder / "prompts.parquet"),
        "blocks": blocks,
        "folder": str(folder / pool),
        "probe": str(folder / "probe.json"),
        "lease_seconds": 60,
    }


def work(job: dict[str, Any], events: str) -> None:
    """A worker process."""
    import torch

    from sweetspot.sampler import worker

    torch.set_num_threads(1)
    with Path(events).open("a", buffering=1) as file:
        worker.main(job, lambda event: file.write(json.dumps(event) + "\n") and None)


def start(job: dict[str, Any], count: int) -> "list[multiprocessing.process.BaseProcess]":
    """Worker processes that have imported the engine already, so that their first tiles come close together."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sweetspot.sampler.transformers", "sweetspot.sampler.worker"])
    workers = [context.Process(target=work, args=(job, f"{job['folder']}-{n}.jsonl")) for n in range(count)]
    for worker in workers:
        worker.start()
    return workers


def events_of(job: dict[str, Any], number: int) -> list[dict[str, Any]]:
    path = Path(f"{job['folder']}-{number}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def content(pool: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in pool.iterdir() if path.name.endswith(".parquet")}


POOL = replace(TRANSFORMERS, tile_prompts=3, tile_samples=4, max_tokens=6)  # 20 prompts: 7 groups, 3 blocks, 21 tiles
TILES = 21


@pytest.fixture(scope="module")
def alone(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], float]:
    """A folder with the prompts, the pool as one process makes it, and how long that takes from its first tile."""
    folder = tmp_path_factory.mktemp("alone")
    prompts(folder, 20)
    job = sampling(folder, "alone", tiny_model, POOL, 3)
    (worker,) = start(job, 1)
    while not events_of(job, 0):
        time.sleep(0.01)
    began = time.monotonic()
    worker.join()
    assert worker.exitcode == 0
    return folder, content(folder / "alone"), time.monotonic() - began


@pytest.mark.slow
def test_four_processes_make_each_tile_once_and_the_same_bytes_as_one(
    alone: tuple[Path, dict[str, bytes], float], tiny_model: Model
) -> None:
    folder, expected, _ = alone
    assert len(expected) == TILES
    job = sampling(folder, "four", tiny_model, POOL, 3)
    workers = start(job, 4)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    each = [events_of(job, number) for number in range(4)]
    assert Counter(name for events in each for name in made(events)) == dict.fromkeys(
        (name.removesuffix(".parquet") for name in expected), 1
    )
    assert sum("tile" in event for events in each for event in events) == TILES
    assert content(folder / "four") == expected
    assert generations(folder / "four") == {}


@pytest.mark.slow
@pytest.mark.parametrize("repeat", range(10))
def test_two_of_four_processes_killed_at_random_moments_cost_their_tiles_in_hand_and_nothing_else(
    repeat: int, alone: tuple[Path, dict[str, bytes], float], tiny_model: Model
) -> None:
    folder, expected, seconds = alone
    job, draw = sampling(folder, f"killed{repeat}", tiny_model, POOL, 3), random.Random(repeat)
    workers = start(job, 4)
    while not any(events_of(job, number) for number in range(4)):
        time.sleep(0.01)
    doomed = draw.sample(range(4), 2)
    for number in doomed:
        time.sleep(draw.uniform(0, seconds / 3))
        os.kill(workers[number].pid or 0, signal.SIGKILL)
        whole = content(folder / f"killed{repeat}") if (folder / f"killed{repeat}").exists() else {}
        assert whole.items() <= expected.items()  # at any moment: whole tiles, and the right ones
    for worker in workers:
        worker.join()
    assert [workers[number].exitcode for number in range(4) if number not in doomed] == [0, 0]
    assert content(folder / f"killed{repeat}") == expected
    begun = Counter(event["tile"] for number in range(4) for event in events_of(job, number) if "tile" in event)
    of_survivors = Counter(
        event["tile"] for number in set(range(4)) - set(doomed) for event in events_of(job, number) if "tile" in event
    )
    assert max(of_survivors.values(), default=1) == 1
    assert sum(begun.values()) - TILES <= 4  # each of the two held at most one in the engine and one being written


@pytest.mark.slow
def test_two_vllm_workers_fill_one_pool_with_the_same_ids_and_seeds(tiny_model: Model, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    from sweetspot import launch

    sampler = replace(VLLM, tile_prompts=2, tile_samples=2, max_tokens=4)
    names = prompts(tmp_path, 6)
    environment = {**tiny.launch(threads=1, devices=None, lease_seconds=60).environment(), **sampler.environment()}
    job = sampling(tmp_path, "pool", tiny_model, sampler, 2)
    placed = launch.run_workers("sweetspot.sampler.worker", job, tmp_path / "job", [environment] * 2, lambda _: None)
    tiles = [read_tile(path, SAMPLES)[0] for path in (tmp_path / "pool").glob("*.parquet")]
    assert placed == len(tiles) == 6
    rows = [row for tile in tiles for row in tile.to_pylist()]
    assert sorted((row["prompt_id"], row["sample_index"], row["seed"]) for row in rows) == sorted(
        (name, index, stream_seed(3, name) + index) for name in names for index in range(4)
    )


def test_a_full_disk_is_told_in_one_line_and_what_is_complete_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pq.write_table

    def full(table: pa.Table, path: Path, **settings: Any) -> None:
        if "1.parquet" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(table, path, **settings)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(StoreError, match=r"disk is full .*nothing complete is lost"):
        fill(lambda: absent(todos(tmp_path)), lambda: None, lambda _, todo, __: lambda: place(todo), print, 60, "")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("2")] == ["0.parquet"]
