"""A judge of one's own: a real vLLM server with the embedded model, started and stopped by the judging worker."""

import subprocess
from pathlib import Path

import pytest

from sweetspot import launch
from sweetspot.component import to_config
from sweetspot.eval.judge import VllmJudge
from sweetspot.eval.serve import free_port, healthy, serving
from sweetspot.model import Model
from tests.judging import job, judge, pairs, scores


def local(folder: Path, **changes: object) -> VllmJudge:
    """The judge of conf/judge/vllm.yaml with the model of the folder."""
    fields: dict[str, object] = {
        "name": "smollm2",
        "model": Model(name="smollm2", path=str(folder), revision=None, system_prompt=None, trust_remote_code=False),
        "dtype": "float32",
        "max_model_len": 2048,
        "extra": {"top_logprobs": 20, "structured_outputs": {"choice": ["m", "M"]}},
        "concurrency": 8,
        "attempts": 3,
        "timeout": 300.0,
        "start_timeout": 600.0,
        "tensor_parallel": 1,
        "gpu_memory_utilization": 0.9,
        "kv_cache_gb": 1,
        "enforce_eager": True,
    }
    return VllmJudge(**{**fields, **changes})  # pyright: ignore


def servers() -> list[str]:
    """The command lines of the vLLM servers that run on this machine below this process."""
    listed = subprocess.run(["ps", "-eo", "pgid,args"], capture_output=True, text=True, check=True).stdout
    return [
        line for line in listed.splitlines() if "vllm.entrypoints.openai.api_server" in line and "smollm2-t" in line
    ]


@pytest.mark.slow
def test_the_embedded_model_judges_20_pairs_and_its_server_is_gone_afterwards(smollm2: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    spec = job(pairs(20), judge("http://127.0.0.1/v1", name="smollm2-t"), tmp_path)
    spec["judge"] = to_config(local(smollm2, name="smollm2-t"))
    launch.run("sweetspot.eval.worker", spec, tmp_path / "judge", {"OMP_NUM_THREADS": "1"}, lambda _: None)
    rows, metrics = scores(tmp_path)
    assert len(rows) == metrics["n_total"] == 20
    assert all(0 < row["preference"] < 1 for row in rows)
    assert len({row["preference"] for row in rows}) > 10
    assert metrics["spent"]["unusable"] == 0
    assert metrics["spent"]["served_by"] == ["smollm2-t"]
    assert "Application startup complete" in (tmp_path / "server.log").read_text()
    assert servers() == []


@pytest.mark.slow
def test_a_server_that_cannot_start_is_one_line_with_its_log(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    (tmp_path / "config.json").write_text("{}")
    with (
        pytest.raises(ValueError, match=r"the vLLM server ended with code \d+ \(log: .*server.log\)"),
        serving(local(tmp_path), tmp_path / "server.log", lambda _: None),
    ):
        pass
    assert "Error" in (tmp_path / "server.log").read_text()


def test_an_address_that_is_served_elsewhere_is_asked_as_it_is(tmp_path: Path) -> None:
    asked = judge("http://127.0.0.1:1/v1")
    with serving(asked, tmp_path / "server.log", lambda _: None) as found:
        assert found is asked
    assert not (tmp_path / "server.log").exists()


def test_nobody_is_healthy_at_a_free_port() -> None:
    assert not healthy(free_port())
