"""The forecast of a sweep, with numbers worked by hand: a response has 5 tokens of 0.1 s, a worker starts in 10 s."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweetspot.sweep import rates
from sweetspot.sweep.calibrate import OTHERS, compose, sizes, span
from sweetspot.sweep.forecast import Forecast, Need, lines
from sweetspot.sweep.rates import ASSUMED, NOTHING, Calibration, Rate, label
from sweetspot.sweep.work import Work

CALIBRATION = Calibration(
    (
        Rate("job", "job", 3),
        Rate("sample", "a", 10, 0.1, bytes_per_token=8, tokens=5),
        Rate("train", "a", 20, 0.1, bytes_each=1000),
    ),
    "today",
)
TILES = Need("sample", "sample", "a", {"t1": 8, "t2": 8}, frozenset(), 5, "tiles", divided=True)
POLICY = Need("train", "train", "a", {"p": 40}, frozenset(), 5, "policies")


def forecast(*jobs: list[Need], at_once: int = 1, devices: int = 1) -> Forecast:
    found = Forecast(CALIBRATION)
    found.add(jobs, at_once, devices)
    return found


def test_a_job_takes_its_start_and_its_tokens() -> None:
    found = forecast([TILES, POLICY])
    assert found.seconds["sample"] == pytest.approx(10 + 16 * 0.5)
    assert found.seconds["train"] == pytest.approx(20 + 40 * 0.5)
    assert found.seconds["start and end"] == 3
    assert found.longest == pytest.approx(18 + 40 + 3)
    assert found.device_hours == pytest.approx(61 / 3600)
    assert (found.stages["sample"].bytes, found.stages["train"].bytes) == (16 * 5 * 8, 1000)


def test_jobs_that_want_the_same_tiles_at_once_divide_them_and_each_has_its_start() -> None:
    assert forecast([TILES], [TILES], at_once=2).seconds["sample"] == pytest.approx(2 * (10 + 8 * 0.5))


def test_more_jobs_than_tiles_wait_for_a_whole_tile() -> None:
    assert forecast([TILES], [TILES], [TILES], at_once=3).seconds["sample"] == pytest.approx(3 * (10 + 8 * 0.5))


def test_jobs_in_turn_find_what_the_first_has_made() -> None:
    found = forecast([TILES], [TILES], at_once=1)
    assert found.seconds["sample"] == pytest.approx(10 + 16 * 0.5)
    assert found.stages["sample"].made == {"t1": 8, "t2": 8}


def test_what_cannot_be_divided_takes_each_job_its_whole_time_and_is_made_once() -> None:
    found = forecast([POLICY], [POLICY], at_once=2)
    assert found.seconds["train"] == pytest.approx(2 * (20 + 40 * 0.5))
    assert found.stages["train"].bytes == 1000


def test_a_job_makes_what_two_of_its_stages_need_once() -> None:
    again = replace(TILES, stage="evaluate", parts={"t2": 8, "t3": 8})
    found = forecast([TILES, again])
    assert found.seconds["evaluate"] == pytest.approx(10 + 8 * 0.5)
    assert forecast([TILES, replace(TILES, stage="evaluate")]).seconds["evaluate"] == 0


def test_what_the_store_has_takes_nothing() -> None:
    found = forecast([replace(TILES, there=frozenset({"t1"}))], [replace(POLICY, there=frozenset({"p"}))])
    assert found.seconds["sample"] == pytest.approx(10 + 8 * 0.5)
    assert found.seconds["train"] == 0
    assert (found.stages["sample"].reused, found.stages["train"].reused) == ({"t1"}, {"p"})


def test_the_devices_of_a_job_divide_its_tokens_and_all_of_them_are_paid() -> None:
    spent = forecast([TILES], devices=4).stages["sample"]
    assert spent.seconds == pytest.approx(10 + 16 * 0.5 / 4)
    assert spent.device_seconds == pytest.approx(4 * 12)


def test_the_lines_tell_made_reused_cost_and_where_the_rates_are_from() -> None:
    found = forecast([replace(TILES, there=frozenset({"t1"}), of="b"), POLICY])
    told = list(lines(found, 60.0, "c.json"))
    assert told[0].split() == ["stage", "makes", "reuses", "hours", "device-hours", "disk"]
    assert told[2].split() == ["sample", "1", "tiles,", "8", "responses", "1", "tiles", "0.004", "0.004", "320.0", "B"]
    assert told[8] == "in all    0.016 device-hours, 0.95 at 60 a device-hour; 1.3 KB; the longest job 0.9 minutes"
    assert told[9:] == ["measured  today (c.json)", "caution   sample of b: as measured of a"]
    (assumed,) = list(lines(Forecast(NOTHING), None, "c.json"))[9:]
    assert assumed.startswith("assumed   a device samples 8,000")
    assert "there is no c.json" in assumed


def test_a_rate_that_was_not_measured_is_the_nearest_one() -> None:
    assert CALIBRATION.find("sample", "a").start == 10
    assert CALIBRATION.find("sample", "b").of == "a"
    assert CALIBRATION.find("score", "b") in ASSUMED
    assert CALIBRATION.caution("sample", "a") is None
    assert CALIBRATION.caution("score", "b") == "score of b: as assumed"


def test_a_newer_measurement_replaces_that_of_the_same_thing_alone(tmp_path: Path) -> None:
    newer = Calibration((Rate("sample", "a", 7), Rate("sample", "b", 1)), "now")
    merged = CALIBRATION.merged(newer)
    assert [(rate.kind, rate.of, rate.start) for rate in merged.rates] == [
        ("sample", "a", 7),
        ("sample", "b", 1),
        ("job", "job", 3),
        ("train", "a", 20),
    ]
    rates.write(tmp_path / "c.json", merged)
    assert rates.read(tmp_path / "c.json") == merged
    assert rates.read(tmp_path / "none.json") == NOTHING
    (tmp_path / "c.json").write_text('{"rates": []}')
    with pytest.raises(ValueError, match=r"launcher\.calibration must be a file of"):
        rates.read(tmp_path / "c.json")


def config(**changes: Any) -> dict[str, Any]:
    sampler = {"_target_": "a.B", "seed": 0, "tile_prompts": 16, "tile_samples": 16, "max_tokens": 48}
    dpo = {"dtype": "float32", "beta": 0.1, "epochs": 3, "batch_size": 4}
    parts = {"model": {"name": "m"}, "sampler": sampler, "reward_model": {"_target_": "a.R"}, "dpo": dpo}
    return {**parts, "deepspeed": {}, **changes}


def test_what_changes_no_token_s_time_is_no_part_of_what_was_measured() -> None:
    plain = config()
    other = config(sampler={**plain["sampler"], "seed": 1, "tile_prompts": 4}, dpo={**plain["dpo"], "beta": 1.0})
    longer = config(sampler={**plain["sampler"], "max_tokens": 96}, dpo={**plain["dpo"], "batch_size": 8})
    for kind in ("sample", "reference", "train"):
        assert label(kind, plain) == label(kind, other)
    assert label("sample", plain) != label("sample", longer)
    assert label("train", plain) != label("train", longer)
    assert label("reference", plain) == label("reference", longer)
    assert label("score", plain) != label("score", plain, {"_target_": "a.R", "head": 2})


def test_the_rate_is_read_between_two_events_of_a_worker_that_has_begun() -> None:
    """Three tiles of 4, 4 and 2 responses: those after the first take 6 s. Four steps: three of them take 3 s."""
    tiles = {"a": 4, "b": 4, "c": 2}
    told = [{"tile": "a", "at": 0}, {"progress": {}, "at": 1}, {"tile": "b", "at": 11}, {"tile": "c", "at": 15}]
    assert span("sample", [*told, {"made": "c", "at": 16.5}, {"progress": {}, "at": 17}], tiles) == (0.6, 6)
    assert span("sample", [told[0], {"progress": {}, "at": 9}], {"a": 4}) == (0, 0.0)
    steps = [event for n in range(1, 5) for event in ({"progress": {}, "at": n}, {"metrics": {"step": n}, "at": n})]
    assert span("train", [{"metrics": {"pairs": 8}, "at": 0}, *steps], {}) == (0.75, 3)
    forward = [
        {"metrics": {"forward/batching": "padded"}, "at": 5},
        {"progress": {}, "at": 6},
        {"progress": {}, "at": 8},
    ]
    assert span("reference", forward, {}) == (1.0, 3)


def test_a_calibration_draws_two_tiles_at_least() -> None:
    of = {"tile_prompts": 1024, "tile_samples": 16}
    assert sizes({"sampler": of}, None) == [
        "sampler.tile_prompts=16",
        "sampler.tile_samples=16",
        "n_samples=16",
        "data.limit=32",
    ]
    assert sizes({"sampler": {"tile_prompts": 2, "tile_samples": 1}}, None)[2:] == ["n_samples=2", "data.limit=64"]
    assert sizes({"sampler": of}, 64)[3:] == ["data.limit=64"]


def test_a_calibration_takes_the_overrides_of_a_sweep_as_they_are() -> None:
    left_out = [
        "strategy=a,b",
        "+eval@also.x=ifeval",
        "eval.n_samples=2",
        "n_samples=5,20",
        "reward_model@eval.judge=x",
    ]
    left_out += ["launcher.gpus=8", "also.x.path=p", "hydra.verbose=true", "strategy.chosen=max"]
    kept = ["model=other", "launch.threads=1", "reward_model=armorm", "dpo.beta=1", "data.limit=8", "evaluate=1"]
    assert [one for one in left_out + kept if not OTHERS.match(one)] == kept
    with pytest.raises(ValueError, match="calibrate: Could not override 'no_such_key'"):
        compose(["no_such_key=1"])


def test_each_round_is_counted_and_those_that_two_jobs_share_once(tmp_path: Path) -> None:
    work = Work(tmp_path / "none", NOTHING)
    jobs = [work.of(compose(["size=tiny", f"rounds={count}"])) for count in (1, 2, 3)]
    for stage in ("sample", "score", "reference", "train"):
        first, second, third = ([set(need.parts) for need in needs if need.stage == stage] for needs in jobs)
        assert (len(first), len(second), len(third)) == (1, 2, 3)
        assert (second[:1], third[:2]) == (first, second)
        assert not third[0] & third[1] | third[1] & third[2]
