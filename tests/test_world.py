"""Which ranks a training has, and what is refused before anything is made."""

import os
from pathlib import Path
from typing import Any

import pytest

from sweetspot import ranks
from sweetspot.component import build, to_config
from sweetspot.stages import check_training
from tests import tiny


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four processors, no GPU, no SLURM."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def test_ranks_are_the_devices_of_all_nodes_each_with_its_part_of_the_processors() -> None:
    found = ranks.environments(tiny.launch(threads=None, devices=2, nodes=3, node_rank=1, head="node0", port=1234))
    assert [(one["RANK"], one["LOCAL_RANK"]) for one in found] == [("2", "0"), ("3", "1")]
    assert {one["WORLD_SIZE"] for one in found} == {"6"}
    assert {one["OMP_NUM_THREADS"] for one in found} == {"2"}
    assert {(one["MASTER_ADDR"], one["MASTER_PORT"]) for one in found} == {("node0", "1234")}


def test_ranks_are_all_gpus_unless_fewer_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert len(ranks.environments(tiny.launch())) == 3
    two = ranks.environments(tiny.launch(devices=2))
    assert [one["CUDA_VISIBLE_DEVICES"] for one in two] == ["4,5", "4,5"]


def test_slurm_tells_the_node_the_head_and_a_port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lister = tmp_path / "scontrol"
    lines = ["#!/bin/sh", '[ "$3" = "gpu[7-8]" ] && printf "gpu7\\ngpu8\\n"']
    lines.append('[ "$4" = gpu7 ] && echo "NodeName=gpu7 Arch=x86_64 NodeAddr=10.0.0.7 NodeHostName=gpu7"')
    lister.write_text("\n".join(lines) + "\nexit 0\n")
    lister.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {"NODEID": "1", "JOB_ID": "70001", "JOB_NODELIST": "gpu[7-8]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    (one,) = ranks.environments(tiny.launch(nodes=2))
    assert (one["RANK"], one["MASTER_ADDR"], one["MASTER_PORT"]) == ("1", "10.0.0.7", "20001")  # 20000 + 70001 % 10000


@pytest.mark.parametrize(
    ("launch", "text"),
    [
        ({"devices": 5}, r"^launch.devices must be <= 4, the processors this process may use, got 5$"),
        (
            {"devices": 3},
            r"^dpo.batch_size must be a multiple of the ranks of training .*, got 4 and 3 ranks; 2 would do$",
        ),
        ({"nodes": 2}, r"^launch.node_rank must be 0 to 1, one on each node, got None$"),
        ({"nodes": 2, "node_rank": 2}, r"^launch.node_rank must be 0 to 1, one on each node, got 2$"),
        ({"nodes": 2, "node_rank": 0}, r"^launch.head and launch.port must be given .*, got None and None$"),
    ],
)
def test_devices_and_nodes_that_do_not_go_are_refused_in_one_line(launch: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_training(tiny.dpo(dtype="float32"), tiny.deepspeed(), tiny.launch(**launch))


def test_what_deepspeed_would_train_otherwise_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^dtype of training must be float32 with deepspeed, .*, got bfloat16; "):
        check_training(tiny.dpo(dtype="bfloat16"), tiny.deepspeed(stage=1), tiny.launch())
    lora = tiny.dpo(dtype="float32", adapter="lora", lora_rank=2, lora_alpha=4.0, lora_targets="all-linear")
    with pytest.raises(ValueError, match=r"^deepspeed.stage must be 0, 1 or 2 with dpo.adapter=lora, got 3$"):
        check_training(lora, tiny.deepspeed(stage=3), tiny.launch())


def test_offload_without_stage_3_is_refused_in_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"^deepspeed: offload must be false unless stage is 3, got true with stage 2$"
    ):
        build({**to_config(tiny.deepspeed(stage=2)), "offload": True}, at="deepspeed")


def test_a_machine_without_a_compiler_is_told_what_deepspeed_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"^deepspeed on a processor builds a C\+\+ part and needs c\+\+ \(Debian: "):
        ranks.check(tiny.launch(), stage=2)


@pytest.mark.parametrize(
    ("batch", "device_batch", "count", "expected"),
    [
        (8, 4, 1, (4, 2)),
        (8, 4, 2, (4, 1)),
        (8, 4, 4, (2, 1)),
        (12, 4, 2, (3, 2)),
        (128, 2, 8, (2, 8)),
        (7, 4, 1, (1, 7)),
    ],
)
def test_the_batch_is_the_same_on_any_number_of_ranks(
    batch: int, device_batch: int, count: int, expected: tuple[int, int]
) -> None:
    found = ranks.divide(batch, device_batch, count)
    assert found == expected
    assert found[0] * found[1] * count == batch
