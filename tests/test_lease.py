"""Leases: one holder a tile whatever its clock says, and a dead one's tile goes to exactly one other."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sweetspot.lease import Holder, Lease, Watch, generations, lease_path

HOUR = 3600.0


def held(tile: Path, term: float = 60) -> Lease:
    lease = Watch(term).claim(tile, None)
    assert isinstance(lease, Lease)
    return lease


def strange(tile: Path, generation: int = 0) -> Path:
    """The lease of a process on a machine that this one knows nothing of."""
    path = lease_path(tile, generation)
    path.write_text(json.dumps(asdict(replace(Holder.here(), host="elsewhere", space="another boot"))))
    return path


def test_a_held_tile_names_its_holder_and_a_released_one_is_free(tmp_path: Path) -> None:
    tile, watch = tmp_path / "t.parquet", Watch(60)
    lease = held(tile)
    holder = watch.claim(tile, 0)
    assert isinstance(holder, Holder)
    assert (holder.host, holder.pid) == (socket.gethostname(), os.getpid())
    lease.release()
    assert list(tmp_path.iterdir()) == []
    held(tile).release()


def test_a_lease_that_is_touched_lives_on_and_one_that_is_not_ends_after_a_term(tmp_path: Path) -> None:
    touched, silent = tmp_path / "touched.parquet", tmp_path / "silent.parquet"
    lease, watch = held(touched, term=0.3), Watch(0.3)
    strange(silent)
    assert isinstance(watch.claim(touched, 0), Holder)
    assert isinstance(watch.claim(silent, 0), Holder)
    time.sleep(0.5)
    assert isinstance(watch.claim(touched, 0), Holder)
    taken = watch.claim(silent, 0)
    assert isinstance(taken, Lease)
    assert taken.generation == 1
    assert generations(tmp_path) == {"touched": 0, "silent": 1}
    taken.release()
    lease.release()
    assert generations(tmp_path) == {}  # the dead lease below went with it


@pytest.mark.parametrize("offset", [HOUR, -HOUR])
def test_a_holder_whose_clock_is_an_hour_off_keeps_its_tile_while_it_lives_and_loses_it_when_it_does_not(
    tmp_path: Path, offset: float
) -> None:
    tile, watch = tmp_path / "t.parquet", Watch(0.3)
    path = strange(tile)
    for _ in range(8):  # 0.8 s: longer than a term, with a heartbeat by that clock
        os.utime(path, (time.time() + offset, time.time() + offset))
        assert isinstance(watch.claim(tile, 0), Holder)
        time.sleep(0.1)
    time.sleep(0.4)
    taken = watch.claim(tile, 0)
    assert isinstance(taken, Lease)
    taken.release()


def test_a_watcher_counts_a_term_from_its_own_first_look(tmp_path: Path) -> None:
    path = strange(tmp_path / "t.parquet")
    os.utime(path, (0, 0))  # as old as can be: that says nothing
    assert isinstance(Watch(0.3).claim(tmp_path / "t.parquet", 0), Holder)


def test_a_dead_process_of_this_machine_is_noticed_at_once(tmp_path: Path) -> None:
    tile = tmp_path / "t.parquet"
    code = "import sys, time; from pathlib import Path; from tests.test_lease import held; "
    code += "held(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tile)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    watch = Watch(HOUR)
    holder = watch.claim(tile, 0)
    assert isinstance(holder, Holder) and holder.pid == process.pid
    process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while isinstance(taken := watch.claim(tile, 0), Holder):  # a zombie counts as dead: it is not waited for
        assert time.monotonic() < deadline
    assert isinstance(taken, Lease) and taken.generation == 1
    process.communicate()


def test_a_process_that_was_given_a_dead_one_s_number_does_not_hold_its_tile(tmp_path: Path) -> None:
    path = lease_path(tmp_path / "t.parquet", 0)
    here = Holder.here()
    path.write_text(json.dumps(asdict(replace(here, started=here.started - 1))))
    assert isinstance(Watch(HOUR).claim(tmp_path / "t.parquet", 0), Lease)


@pytest.mark.parametrize("generation", [None, 0])
def test_of_many_that_want_a_tile_at_once_one_gets_it(tmp_path: Path, generation: int | None) -> None:
    """Twenty races of sixteen threads for a free tile (None), and for that of a holder found dead."""
    for race in range(20):
        tile = tmp_path / f"{race}.parquet"
        watches = [Watch(0.01) for _ in range(16)]
        if generation == 0:
            strange(tile)
            for watch in watches:
                watch.claim(tile, 0)
            time.sleep(0.02)
        start, got = threading.Barrier(16), list[Lease | Holder | None]()

        def want(watch: Watch, tile: Path = tile, start: threading.Barrier = start) -> None:
            start.wait()
            got.append(watch.claim(tile, generation))  # noqa: B023 - the threads end within the round

        threads = [threading.Thread(target=want, args=(watch,)) for watch in watches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (lease,) = (found for found in got if isinstance(found, Lease))
        assert lease.generation == (0 if generation is None else 1)
        lease.release()


def test_a_lease_that_vanished_under_a_slow_watcher_is_not_built_upon(tmp_path: Path) -> None:
    tile, slow, quick = tmp_path / "t.parquet", Watch(0.05), Watch(60)
    strange(tile)
    slow.claim(tile, 0)
    time.sleep(0.1)
    lease_path(tile, 0).unlink()  # its holder was alive after all and gave it back; another begins anew
    fresh = quick.claim(tile, None)
    assert isinstance(fresh, Lease)
    assert isinstance(slow.claim(tile, 0), Holder)
    fresh.release()


def test_a_holder_that_was_overtaken_ends_its_heartbeat_and_leaves_the_new_lease_alone(tmp_path: Path) -> None:
    tile = tmp_path / "t.parquet"
    old = held(tile, term=0.1)
    lease_path(tile, 1).write_text(json.dumps(asdict(Holder.here())))
    old.release()
    assert generations(tmp_path) == {"t": 1}
