"""What studies say of policies: paired over the seeds that both have, of runs that agree in all but their seed."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from experiments import (
    extended_positions,
    lines,
    loss_swap,
    min_of_k,
    output,
    pair_grid,
    reward_model_swap,
    reward_normality,
    rounds,
    runs,
    sample_scaling,
)
from experiments.runs import Point, Settings
from sweetspot.component import deciding
from sweetspot.distribution import length_slope
from sweetspot.eval.alpaca_metrics import write_regulariser
from sweetspot.eval.length_control import Regulariser, length_controlled
from sweetspot.report import effects
from sweetspot.report.rows import points as seven_points
from sweetspot.schema import CHECKED, PAIRS, PROMPTS, REWARDS, SAMPLES, SCORES
from sweetspot.statistics import PERMUTATIONS
from sweetspot.store import write_tile
from sweetspot.strategy import PositionPair, paper_pairs
from sweetspot.sweep import collect
from sweetspot.sweep.outcome import Outcome
from tests.reported import make_run, make_sweep, write_scores
from tests.test_report import Page

SETTINGS = Settings(resamples=200, seed=0)
PROMPT_IDS = [f"{number:016x}" for number in range(24)]
HELD_OUT = {"name": "held_out", "kind": "held_out", "judge_key": "gold", "n_prompts": 24}
ALPACA = {"name": "alpaca_eval_2", "kind": "alpaca_eval_2", "judge_key": "gpt", "judge": "gpt", "baseline": "gpt4"}
Rows = Sequence[Mapping[str, Any]]


class Store:
    """Runs made by hand on one pool: each has the scores that it is given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = json.loads(make_run(folder).read_text())
        self.made = 0

    def run(
        self,
        pair: tuple[str, str],
        seed: int = 0,
        gain: float | np.ndarray = 0.0,
        evaluation: Mapping[str, Any] = HELD_OUT,
        **config: Any,
    ) -> Point:
        """A run whose policy gains so much over the start, for each prompt; `config` is put over its configuration."""
        self.made += 1
        key, manifest = f"run{self.made}", json.loads(json.dumps(self.base))
        gains = np.broadcast_to(np.asarray(gain, dtype=float), len(PROMPT_IDS))
        self.scores(key, gains, rewarded=evaluation["kind"] == "held_out")
        dpo = {"_target_": "sweetspot.dpo.DPO", "loss": "dpo", "beta": 0.1, "gamma": 0.0, "seed": seed, "save_every": 8}
        manifest["config"] |= {"seed": seed, "rounds": 1, "dpo": dpo, "store": "store", "launch": {"threads": 1}}
        manifest["config"] |= {"sampler": {"_target_": "sweetspot.sampler.VllmSampler", "seed": 0, "budget": "uniform"}}
        manifest["config"]["model"] |= {"path": "embedded", "revision": None}
        manifest["config"]["reward_model"] = {"_target_": "sweetspot.reward_model.EmbeddedReward", "head": "select"}
        manifest["config"]["strategy"] |= dict(zip(("chosen", "rejected"), pair, strict=True))
        for name, value in config.items():
            before = manifest["config"].get(name)
            manifest["config"][name] = {**before, **value} if isinstance(before, dict) else value
        manifest["rounds"][0]["policy"]["key"] = key
        manifest["evaluations"] = [{**evaluation, "key": key, "path": f"scores/{key}/scores.parquet"}]
        return Point(self.folder / key, manifest)

    def scores(self, key: str, gains: np.ndarray, rewarded: bool = True) -> None:
        """Two responses a prompt, a little below the gain and a little above it; of a judge without rewards one."""
        rows = [
            {"prompt_id": name, "sample_index": at, "response": "yes" * (number + 1), "baseline": "no" * (number + 2)}
            | {"preference": float(1 / (1 + np.exp(-gain)))}
            | ({"reward": gain + 0.5 * at - 0.25, "baseline_reward": 0.0} if rewarded else {})
            for number, (name, gain) in enumerate(zip(PROMPT_IDS, gains.tolist(), strict=True))
            for at in range(2 if rewarded else 1)
        ]
        path = self.folder / "store" / "scores" / key / "scores.parquet"
        write_tile(path, pa.Table.from_pylist(rows, schema=SCORES), {})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def only(rows: Rows, **wanted: Any) -> Mapping[str, Any]:
    """The one row that has these values."""
    (row,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return row


def noise(seed: int, mean: float = 0.0) -> np.ndarray:
    return mean + np.random.default_rng(seed).normal(0, 0.1, len(PROMPT_IDS))


def test_a_difference_is_paired_over_the_seeds_that_both_have(store: Store) -> None:
    """Seeds 0 and 1 gain 1 and 3, seeds 1 and 2 of the other gain 2 and 100: of seed 1, 3 - 2, and not 2 - 51."""
    first = runs.group([store.run(("max", "min"), seed, gain) for seed, gain in ((0, 1.0), (1, 3.0))], "reward")
    second = runs.group([store.run(("max", "mu"), seed, gain) for seed, gain in ((1, 2.0), (2, 100.0))], "reward")
    found = runs.against(first, second, SETTINGS, "than_")
    assert (found["than_mean"], found["than_seeds"], found["than_prompts"]) == (1.0, "1", 24)
    assert runs.effect(first, SETTINGS)["mean"] == 2.0


def test_two_groups_without_a_common_seed_are_not_compared(store: Store) -> None:
    first, second = (runs.group([store.run(("max", "min"), seed, 1.0)], "reward") for seed in (0, 1))
    assert runs.against(first, second, SETTINGS, "than_") == {}
    pairs = [store.run(("random", "random"), 0), store.run(("max", "min"), 1)]
    assert all("than_random_p" not in row for row in effects.effects(pairs, "reward", SETTINGS))


def test_a_table_is_read_once_for_all_comparisons(store: Store) -> None:
    """Its file is taken away after the group is made."""
    points = [store.run(pair, 0, gain) for pair, gain in ((("max", "min"), 1.0), (("max", "mu"), 3.0))]
    first, second = (runs.group([point], "reward") for point in points)
    for point in points:
        (point.store / runs.judged(point)["path"]).unlink()
    assert runs.against(second, first, SETTINGS, "than_")["than_mean"] == 2.0
    assert runs.effect(second, SETTINGS)["mean"] == 3.0


def of_effects(points: list[Point], settings: Settings, measure: str) -> Rows:
    return pair_grid.grid(points, settings, measure)


UNEQUAL: list[tuple[Callable[..., Rows], str, tuple[str, str], dict[str, Any], tuple[str, str], dict[str, Any]]] = [
    # the study, the prefix of its columns, pair and configuration of the policy, and of what it is compared with
    (of_effects, "than_random_", ("max", "mu"), {}, ("random", "random"), {}),
    (of_effects, "than_max_min_", ("max", "mu"), {}, ("max", "min"), {}),
    (sample_scaling.policies, "than_max_min_", ("max", "min_of_5"), {}, ("max", "min"), {}),
    (sample_scaling.policies, "than_smallest_n_", ("max", "mu"), {"n_samples": 16}, ("max", "mu"), {"n_samples": 8}),
    (min_of_k.policies, "than_5_", ("max", "min_of_2"), {}, ("max", "min_of_5"), {}),
    (extended_positions.policies, "than_max_min_", ("max", "mu-3sigma"), {}, ("max", "min"), {}),
    (loss_swap.by_loss, "than_dpo_", ("max", "mu"), {"dpo": {"loss": "ipo"}}, ("max", "mu"), {}),
    (rounds.policies, "than_one_", ("max", "mu"), {"rounds": 2}, ("max", "mu"), {}),
]


@pytest.mark.parametrize(("study", "prefix", "pair", "config", "other", "base"), UNEQUAL)
def test_every_study_compares_over_common_seeds_and_adjusts_its_tests(
    store: Store,
    study: Callable[..., Rows],
    prefix: str,
    pair: tuple[str, str],
    config: dict[str, Any],
    other: tuple[str, str],
    base: dict[str, Any],
) -> None:
    own = [store.run(pair, seed, gain, **config) for seed, gain in ((0, 5.0), (1, 3.0))]
    rows = study([*own, store.run(other, 1, 2.0, **base)], SETTINGS, "reward")
    tested = [row for row in rows if f"{prefix}p" in row]
    assert [(row[f"{prefix}mean"], row[f"{prefix}seeds"], row["seeds"]) for row in tested] == [(1.0, "1", "0, 1")]
    assert tested[0][f"{prefix}p_holm"] == tested[0][f"{prefix}p"]
    assert tested[0]["seed_sd"] == pytest.approx(2**0.5)  # of 5 and 3
    assert "seeds 0, 1 (sd of their means 1.414)" in lines.policy(tested[0])
    assert lines.difference(tested[0], prefix).endswith("seeds 1")


def test_policies_that_are_compared_must_be_judged_alike_and_on_the_same_prompts(store: Store) -> None:
    first = runs.group([store.run(("max", "min"))], "win_rate")
    other = runs.group([store.run(("max", "mu"), evaluation={**HELD_OUT, "judge_key": "armo"})], "win_rate")
    with pytest.raises(ValueError, match=r"must be judged alike, got judge\.judge_key gold or armo for"):
        runs.against(first, other, SETTINGS, "than_")
    warm = runs.group([store.run(("max", "mu"), sampler={"temperature": 1.0})], "win_rate")
    with pytest.raises(ValueError, match=r"must be judged alike, got sampler.temperature null or 1.0 for"):
        runs.against(first, warm, SETTINGS, "than_")
    fewer = runs.Group(first.points, "win_rate", {0: {PROMPT_IDS[0]: 1.0}}, first.settings)
    with pytest.raises(ValueError, match="must be judged on the same prompts"):
        runs.against(first, fewer, SETTINGS, "than_")


OTHER: list[tuple[dict[str, Any], str]] = [
    ({"dpo": {"beta": 0.3}}, "dpo.beta 0.1 or 0.3"),
    ({"reward_model": {"head": "gold"}}, "reward_model.head select or gold"),
    ({"model": {"path": "elsewhere"}}, "model.path embedded or elsewhere"),
    ({"sampler": {"temperature": 1.0}}, "sampler.temperature null or 1.0"),
    ({"sampler": {"budget": "adaptive", "mean_samples": 8}}, "sampler.budget uniform or adaptive"),
    ({"n_samples": 8}, "n_samples 16 or 8"),
    ({"evaluation": {**HELD_OUT, "judge_key": "armo"}}, "judge.judge_key gold or armo"),
    ({"eval": {"_target_": "sweetspot.eval.HeldOut", "n_samples": 4}}, "eval.n_samples null or 4"),
]


@pytest.mark.parametrize(("change", "named"), OTHER)
def test_runs_that_differ_in_more_than_their_seed_are_not_averaged(
    store: Store, change: dict[str, Any], named: str
) -> None:
    points = [store.run(("max", "min"), 0), store.run(("max", "min"), 1, **change)]
    with pytest.raises(ValueError, match="must differ in their seed alone, got") as error:
        runs.group(points, "reward")
    assert named in str(error.value)
    assert "\n" not in str(error.value)


SAME: list[dict[str, Any]] = [
    {"launch": {"threads": 8}},
    {"dpo": {"save_every": 99, "device_batch_size": 2}},
    {"sampler": {"seed": 7, "pilot_samples": 32, "max_num_seqs": 4}},
    {"model": {"name": "another name"}},
    {"eval": {"_target_": "sweetspot.eval.HeldOut", "resamples": 5000, "kl_samples": 0}},
    {"until": "evaluate", "store": "elsewhere", "logger": {"none": {}}},
]


@pytest.mark.parametrize("change", SAME)
def test_what_changes_speed_names_or_a_seed_alone_is_averaged(store: Store, change: dict[str, Any]) -> None:
    evaluated = {"eval": {"_target_": "sweetspot.eval.HeldOut"}}
    points = [
        store.run(("max", "min"), 0, 1.0, **evaluated),
        store.run(("max", "min"), 1, 2.0, **{**evaluated, **change}),
    ]
    assert runs.effect(runs.group(points, "reward"), SETTINGS)["mean"] == 1.5


def test_fields_of_a_class_of_somebody_s_own_all_count_and_it_is_not_imported() -> None:
    given = {
        "_target_": "nowhere.Judge",
        "seed": 1,
        "part": {"_target_": "sweetspot.model.Model", "name": "a", "path": "b"},
    }
    assert deciding(given) == {**given, "part": {"_target_": "sweetspot.model.Model", "path": "b"}}
    assert deciding({"_target_": "sweetspot.gone.Away", "speed": 1}) == {"_target_": "sweetspot.gone.Away", "speed": 1}


def test_two_models_of_one_name_have_a_grid_each(store: Store) -> None:
    points = [
        store.run(("max", "min"), 0, gain, model={"name": "other", "path": path})
        for path, gain in (("org/first", 1.0), ("org/second", 3.0))
    ]
    found = pair_grid.study(points, SETTINGS, "reward")
    told = [(row["model"], row["mean"]) for row in found.tables["pair_grid"]]
    assert told == [("other 1 (org/first)", 1.0), ("other 2 (org/second)", 3.0)]
    assert sorted(found.figures) == ["pair_grid_other-1-(org-first)_16", "pair_grid_other-2-(org-second)_16"]
    (row,) = pair_grid.study(points[:1], SETTINGS, "reward").tables["pair_grid"]
    assert row["model"] == "other"


def test_a_loss_is_compared_with_dpo_of_its_beta_and_else_with_the_only_one(store: Store) -> None:
    pair = ("max", "mu")
    points = [store.run(pair, 0, gain, dpo={"beta": beta}) for beta, gain in ((0.3, 7.0), (0.1, 1.0))]
    points += [
        store.run(pair, 0, 3.0, dpo={"loss": "ipo"}),
        store.run(pair, 0, 9.0, dpo={"loss": "simpo", "beta": 2.0}),
    ]
    rows = loss_swap.by_loss(points, SETTINGS, "reward")
    ipo = only(rows, loss="ipo")
    assert (ipo["than_dpo_mean"], ipo["than_dpo_beta"]) == (2.0, 0.1)
    assert "than_dpo_mean" not in only(rows, loss="simpo"), "two of dpo, none with its beta"
    simpo = only(loss_swap.by_loss(points[1:], SETTINGS, "reward"), loss="simpo")
    assert (simpo["than_dpo_mean"], simpo["than_dpo_beta"]) == (8.0, 0.1)
    told = loss_swap.study(points[1:], SETTINGS, "reward").beside
    assert any("than dpo (beta 0.1) +8.000" in line.found for line in told)


def test_the_number_of_sign_flips_is_that_of_no_bootstrap(store: Store) -> None:
    """24 equal signs: with the flips of `--resamples 50` no p-value of 21 could be below 21 / 51."""
    points = [store.run(pair, 0, 0.0 if pair == ("max", "min") else 1.0) for pair in paper_pairs()]
    rows = effects.effects([*points, store.run(("random", "random"), 0, 0.0)], "reward", Settings(50, 0))
    best = only(rows, strategy="(max, mu)")
    assert best["than_random_p"] == pytest.approx(1 / (PERMUTATIONS + 1))
    assert best["than_random_p_holm"] == pytest.approx(21 / (PERMUTATIONS + 1))


def test_every_pair_is_compared_with_max_min_in_a_family_of_its_own(store: Store) -> None:
    pairs = [("random", "random"), ("max", "min"), ("max", "mu"), ("max", "mu-2sigma")]
    gains = [noise(0), noise(1, 0.5), noise(2, 0.5), noise(3, 0.6)]
    points = [store.run(pair, 0, gain) for pair, gain in zip(pairs, gains, strict=True)]
    found = pair_grid.study(points, SETTINGS, "reward")
    rows = found.tables["pair_grid"]
    tested = [row for row in rows if "than_max_min_p" in row]
    assert [row["strategy"] for row in tested] == ["(max, mu)", "(max, mu-2sigma)"]
    for row, gain in zip(tested, gains[2:], strict=True):
        assert row["than_max_min_mean"] == pytest.approx((gain - gains[1]).mean())
    smaller, larger = sorted(tested, key=lambda row: row["than_max_min_p"])
    assert smaller["than_max_min_p_holm"] == pytest.approx(2 * smaller["than_max_min_p"])
    assert larger["than_max_min_p_holm"] == pytest.approx(max(larger["than_max_min_p"], 2 * smaller["than_max_min_p"]))
    told = {line.what: line.found for line in found.beside}
    assert "than (max, min) +" in told["(max, mu-2sigma), n = 16, reward"]
    assert told["pairs that differ from (max, min)"].endswith("of 2 tested")


def test_the_default_measure_is_the_one_that_all_judges_give(store: Store) -> None:
    held_out, judged = store.run(("max", "min")), store.run(("max", "mu"), evaluation=ALPACA)
    assert [runs.measure_of(points) for points in ([held_out], [judged], [held_out, judged])] == [
        "reward",
        "win_rate",
        "win_rate",
    ]
    found = pair_grid.study([judged], SETTINGS, None).tables["pair_grid"]
    assert (found[0]["measure"], found[0]["mean"]) == ("win_rate", 50.0)
    for study in (sample_scaling, min_of_k, extended_positions, loss_swap, rounds):
        assert study.study([judged], SETTINGS, None).tables
    with pytest.raises(ValueError, match="needs runs of two reward models on the same samples, got embedded"):
        reward_model_swap.study([judged], SETTINGS, None)


def test_ifeval_alone_is_a_measure_for_every_study(store: Store) -> None:
    point = store.run(("max", "min"))
    for name, followed in (("own", True), ("start", False)):
        rows = [
            {"prompt_id": one, "response": "", "instructions": ["a"], "strict": [followed], "loose": [followed]}
            for one in PROMPT_IDS
        ]
        table = pa.Table.from_pylist(rows, schema=CHECKED)
        write_tile(store.folder / "store" / "checked" / f"{name}.parquet", table, {})
    checked = {"name": "ifeval", "kind": "ifeval", "key": "c"}
    places = {"path": "checked/own.parquet", "start_path": "checked/start.parquet"}
    point.manifest["evaluations"][:] = [{**checked, **places}]
    assert runs.measure_of([point]) == "instructions"
    for study, table in (
        (pair_grid, "pair_grid"),
        (sample_scaling, "trained_by_n"),
        (min_of_k, "trained"),
        (extended_positions, "trained"),
        (loss_swap, "loss_swap"),
        (rounds, "trained"),
    ):
        (row,) = study.study([point], SETTINGS, None).tables[table]
        assert (row["measure"], row["baseline"], row["mean"]) == ("instructions", "the start", 100.0)
    (row,) = reward_model_swap.policies([point], SETTINGS, "instructions")
    assert (row["reward_model"], row["mean"]) == ("embedded", 100.0)


def test_a_strategy_of_one_s_own_with_a_chosen_field_has_no_expected_position(store: Store) -> None:
    point = store.run(("max", "min"))
    point.manifest["config"]["strategy"] = {"_target_": "mine.Closest", "chosen": "max", "k": 3}
    (row,) = pair_grid.study([point], SETTINGS, None).tables["pair_grid"]
    assert row["strategy"] == "Closest(chosen='max', k=3)"
    assert row["chosen_normal_z"] is None


def test_a_normal_pool_lies_where_the_table_says_that_a_normal_pool_would(tmp_path: Path) -> None:
    """Of 30 normal rewards mu + 2 sigma is the maximum for three of four prompts, which give no pair."""
    rewards = np.random.default_rng(5).normal(size=(2000, 30))
    pair = PositionPair(chosen="max", rejected="mu+2sigma")
    row = pair_grid.realised([selected(pool(tmp_path, rewards), pair, rewards)], SETTINGS)
    assert 400 < row["kept"] < 600
    for side in ("chosen", "rejected"):
        assert row[f"{side}_normal_z"] == pytest.approx(row[f"{side}_z_mean"], abs=0.05)
    assert row["chosen_normal_z"] > 2.3  # of all prompts 2.06


def test_positions_and_moments_of_a_run_that_ignores_copies_are_those_that_its_selection_saw(tmp_path: Path) -> None:
    """Rewards 0, 4, 2, 4, 4, of which the last two repeat the second: without them mu is 2 and sigma 2, so that min, mu
    and max lie at -1, 0 and 1 and mu - sigma is the minimum; with them mu is 2.8, and mu - sigma nearest to 2."""
    rewards = np.array([[0.0, 4.0, 2.0, 4.0, 4.0]] * 3)
    seen = np.array([[0.0, 4.0, 2.0, np.nan, np.nan]] * 3)
    point = pool(tmp_path, rewards, texts="abcbb")
    point.manifest["config"]["ignore_duplicates"] = True
    point = selected(point, PositionPair(chosen="max", rejected="mu-sigma"), seen)
    assert np.isfinite(runs.scored(point).rewards).all()
    np.testing.assert_array_equal(runs.selectable(point).rewards, seen)
    row = pair_grid.realised([point], SETTINGS)
    assert (row["chosen_z_mean"], row["rejected_z_mean"]) == (1.0, -1.0)
    best = 0.8462843753 / (np.sqrt(np.pi) / 2)  # E[max] over E[sd] of 3
    assert row["chosen_normal_z"] == pytest.approx(best, abs=0.01)
    assert only(pair_grid.collided([point], SETTINGS), first="mu-sigma", second="min")["share"] == 1.0
    assert only(extended_positions.far(point, SETTINGS), position="mu-2sigma")["z_mean"] == -1.0
    places = {place.point: place for place in seven_points(runs.selectable(point))}
    assert [places[name].z for name in ("min", "mu", "max")] == [-1.0, 0.0, 1.0]
    assert places["mu-sigma"].share_min == 1.0
    assert places["max"].normal_z == pytest.approx(row["chosen_normal_z"], abs=0.01)
    point.manifest["config"]["ignore_duplicates"] = False
    assert only(pair_grid.collided([point], SETTINGS), first="mu-sigma", second="min")["share"] == 0.0


def test_a_command_reads_an_api_judge_without_being_told_the_measure(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point = store.run(("max", "min"), evaluation=ALPACA)
    point.folder.mkdir()
    (point.folder / "manifest.json").write_text(json.dumps(point.manifest))
    monkeypatch.setattr(sys, "argv", ["loss_swap", str(point.folder), "--resamples", "50"])
    output.run(loss_swap.study, "loss_swap", "")
    assert "win_rate" in capsys.readouterr().out


def test_none_below_the_start_stands_beside_a_comparison_with_the_start_alone(store: Store) -> None:
    of_start, of_gpt = (
        {line.what: line.paper for line in pair_grid.study([point], SETTINGS, None).beside}
        for point in (store.run(("max", "min")), store.run(("max", "min"), evaluation=ALPACA))
    )
    assert of_start["pairs below the start"] == "none of the 21 below the start (LC)"
    assert of_gpt["pairs below gpt4"] == output.UNKNOWN


def test_a_win_rate_stands_with_its_length_controlled_one_and_an_interval_from_refitted_draws(store: Store) -> None:
    """The regulariser's file has the prompts in an order of its own; here all is in that order."""
    rng, order = np.random.default_rng(3), list(reversed(PROMPT_IDS))
    difficulty = rng.normal(size=24)
    regular = Regulariser(difficulty, np.column_stack([rng.uniform(-1, 1, 24), difficulty]), rng.uniform(size=24))
    write_regulariser(store.folder / "store" / "regulariser" / "r.parquet", regular, order)
    gain = rng.normal(0.8, 1.5, size=24)
    shorter = np.array([2 * (at + 2) - 3 * (at + 1) for at in range(24)])
    preference, shorter = 1 / (1 + np.exp(-gain[::-1])), shorter[::-1].astype(float)
    rate = float(length_controlled(preference[None], shorter[None], np.ones((1, 24)), regular, 2.78)[0][0])
    counts = np.random.default_rng(0).multinomial(24, np.full(24, 1 / 24), size=200)[:, ::-1].astype(float)
    wide = (np.broadcast_to(one, (200, 24)) for one in (preference, shorter))
    limits = np.quantile(length_controlled(*wide, counts, regular, 2.78)[0], (0.025, 0.975), method="weibull")
    facts = {**ALPACA, "regulariser": "regulariser/r.parquet", "lc_strength": 2.78, "length_controlled_winrate": rate}
    points = [store.run(pair, 0, gain, evaluation=facts) for pair in (("max", "min"), ("max", "min_of_5"))]
    (found, _) = sample_scaling.policies(points, SETTINGS, "win_rate")
    assert found["lc"] == rate > 51
    assert (found["lc_low"], found["lc_high"]) == pytest.approx(tuple(limits))
    assert limits[0] < rate < limits[1]
    (line, _) = sample_scaling.study(points, SETTINGS, None).beside[-2:]
    assert f"LC {rate:.1f} (95%: {found['lc_low']:.1f} to {found['lc_high']:.1f})" in line.found
    without = sample_scaling.policies([store.run(("max", "min"), evaluation=ALPACA)], SETTINGS, "win_rate")
    assert "lc" not in without[0]
    assert "no length-controlled rate (LC)" in lines.policy(without[0])
    assert "LC" not in lines.policy(sample_scaling.policies([store.run(("max", "min"))], SETTINGS, "reward")[0])


def test_the_selecting_reward_model_has_its_interval_beside_the_judge_s(store: Store) -> None:
    judges = [{"role": "judge", "difference": 9.0}, {"role": "selecting", "difference": 0.5, "low": 0.4, "high": 0.7}]
    more = [judges[0], {"role": "selecting", "difference": 0.7, "low": 0.6, "high": 0.8}]
    points = [
        store.run(("max", "min"), seed, evaluation={**HELD_OUT, "judges": of}) for seed, of in ((0, judges), (1, more))
    ]
    (one,), (both,) = (sample_scaling.policies(some, SETTINGS, "reward") for some in (points[:1], points))
    assert (one["selecting"], one["selecting_low"], one["selecting_high"]) == (0.5, 0.4, 0.7)
    assert (both["selecting"], both["selecting_low"], both["selecting_high"]) == pytest.approx((0.6, 0.5, 0.75))
    line = sample_scaling.study(points, SETTINGS, "reward").beside[-1]
    assert "by the selecting reward model +0.60 (95%: +0.50 to +0.75)" in line.found
    (without,) = sample_scaling.policies([store.run(("max", "min"))], SETTINGS, "reward")
    assert "selecting" not in without


def pool(folder: Path, rewards: np.ndarray, tokens: np.ndarray | None = None, texts: str = "") -> Point:
    """A run that was scored, with these rewards [prompts, n], NaN = not scored, lengths, and responses of a letter for
    each column; else all are "a"."""
    prompts, n = rewards.shape
    lengths = np.full(rewards.shape, 2) if tokens is None else tokens
    places = [(row, at) for row in range(prompts) for at in range(n)]
    messages = [{"role": "user", "content": "?"}]
    asked = [{"prompt_id": f"{row:016x}", "messages": messages, "source": "toy"} for row in range(prompts)]
    samples = [
        {"prompt_id": f"{row:016x}", "sample_index": at, "response": texts[at] if texts else "a", "token_ids": [1]}
        | {"n_tokens": int(lengths[row, at]), "finish_reason": "stop", "seed": at, "logprob": -1.0}
        for row, at in places
    ]
    scored = [
        {"prompt_id": f"{row:016x}", "sample_index": at, "reward": rewards[row, at], "heads": None}
        for row, at in places
        if np.isfinite(rewards[row, at])
    ]
    for path, rows, schema in (
        ("prompts/p.parquet", asked, PROMPTS),
        ("samples/s/t-00000.parquet", samples, SAMPLES),
        ("rewards/r/t-00000.parquet", scored, REWARDS),
    ):
        write_tile(folder / path, pa.Table.from_pylist(rows, schema=schema), {})
    parts = {
        "samples": {"key": "s", "folder": "samples/s", "prompts": "prompts/p.parquet", "tiles": ["t-00000"]},
        "rewards": {"key": "r", "folder": "rewards/r", "tiles": ["t-00000"], "reward_model": "toy"},
    }
    parts["samples"]["n_samples"] = n
    config = {"n_samples": n, "seed": 0, "sampler": {"budget": "uniform"}}
    return Point(folder, {"config": config, "store": str(folder), "rounds": [parts], "evaluations": []})


def selected(point: Point, pair: PositionPair, rewards: np.ndarray) -> Point:
    """The run of a pool, that selected by the pair from these rewards."""
    found = pair(rewards)
    rows = [
        {"prompt_id": f"{row:016x}", "pair_index": 0, "messages": [{"role": "user", "content": "?"}]}
        | {"chosen": "a", "rejected": "b", "chosen_index": high, "rejected_index": low}
        | {
            "chosen_reward": rewards[row, high],
            "rejected_reward": rewards[row, low],
            "chosen_z": 0.0,
            "rejected_z": 0.0,
        }
        for row, high, low in zip(found.prompt, found.chosen, found.rejected, strict=True)
    ]
    write_tile(point.store / "pairs/q.parquet", pa.Table.from_pylist(rows, schema=PAIRS), {})
    parts = {**point.manifest["rounds"][0], "pairs": {"key": "q", "path": "pairs/q.parquet", "kept": len(rows)}}
    fields = {"chosen": pair.chosen, "rejected": pair.rejected, "ddof": pair.ddof}
    config = {**point.config, "strategy": {"_target_": "sweetspot.strategy.PositionPair", **fields}}
    return Point(point.folder, {**point.manifest, "rounds": [parts], "config": config})


@pytest.fixture
def uneven(tmp_path: Path) -> Point:
    """Ten prompts of 8 rewards, of which one is constant, one was not scored, and one scored six times."""
    rewards = np.random.default_rng(0).normal(size=(10, 8))
    rewards[0], rewards[1], rewards[2, 6:] = 1.0, np.nan, np.nan
    return pool(tmp_path / "uneven", rewards, np.random.default_rng(1).integers(5, 50, size=(10, 8)))


def test_figures_over_n_tell_the_prompts_that_they_are_of(uneven: Point) -> None:
    rows = effects.by_n(uneven, ["max", "mu-2sigma"], SETTINGS)
    assert [(row["n"], row["prompts"]) for row in rows] == [(5, 8), (8, 7)] * 2


def test_an_extended_position_tells_its_share_with_an_interval_and_the_prompts_that_it_is_of(uneven: Point) -> None:
    row = only(extended_positions.far(uneven, SETTINGS), position="mu-4sigma")
    assert (row["prompts"], row["z_prompts"]) == (9, 8)  # a constant prompt has a response there, and no z
    assert row["share"] == 1.0 == row["share_low"]
    inner = only(extended_positions.far(uneven, SETTINGS), position="mu-2sigma")
    assert inner["share_low"] <= inner["share"] <= inner["share_high"]


def test_shares_of_normal_prompts_tell_the_prompts_that_were_tested(uneven: Point) -> None:
    found = reward_normality.study([uneven], SETTINGS, "reward")
    (row,) = (row for row in found.tables["shape_by_n"] if row["n"] == 8)
    assert (row["shapiro_prompts"], row["skew_prompts"]) == (8, 8)
    assert "; 8 prompts, seed 0" in found.beside[0].found


def test_the_slope_of_length_has_its_interval_in_the_table_and_in_the_comparison(uneven: Point) -> None:
    found = min_of_k.study([uneven], SETTINGS, "reward")
    row = found.tables["worst_of_k"][0]
    slope = length_slope(runs.scored(uneven).z, runs.tokens(uneven), 200, 0)
    names = ("z_per_token", "z_per_token_low", "z_per_token_high", "z_per_token_prompts")
    assert tuple(row[name] for name in names) == (slope.mean, slope.low, slope.high, slope.n)
    told = {line.what: line.found for line in found.beside}
    assert f"{slope.mean:+.4f} sd a token (95%: {slope.low:+.4f}" in told["reward of a longer response (toy)"]


def test_a_pool_is_told_by_the_seed_of_its_samples_whatever_seed_its_policies_had(store: Store) -> None:
    points = [store.run(("max", "min"), seed, sampler={"seed": 7}) for seed in (0, 1)]
    tables = pair_grid.study(points, SETTINGS, "reward").tables
    assert {row["seed"] for row in tables["collisions"]} == {7}
    assert {row["seeds"] for row in tables["pair_grid"]} == {"0, 1"}
    assert {row["seed"] for row in sample_scaling.study(points, SETTINGS, "reward").tables["selection_by_n"]} == {7}


def test_collisions_have_intervals_over_the_prompts_that_have_both(uneven: Point) -> None:
    row = only(pair_grid.collided([uneven], SETTINGS), first="mu-2sigma", second="min")
    assert row["prompts"] == 9
    assert 0 <= row["share_low"] <= row["share"] <= row["share_high"] <= 1
    share = row["share"]
    assert share in [hits / 9 for hits in range(10)]


def test_a_prompt_s_shared_pairs_are_averaged_over_seeds_before_the_interval() -> None:
    """Two seeds of four prompts: chosen equal in (1 of 2, 2 of 2, 0 of 1, none), rejected always where there is one."""
    none = -1
    first = np.array([[[0, 1, 2, none], [0, 1, none, none]], [[5, 5, 5, none], [5, 5, none, none]]])
    second = np.array([[[0, 1, 3, 1], [7, 1, 4, 1]], [[5, 5, 5, 5], [5, 5, 5, 5]]])
    found = pair_grid._alike(first, second)
    np.testing.assert_array_equal(found["chosen"], [0.5, 1.0, 0.0, np.nan])
    np.testing.assert_array_equal(found["pair"], [0.5, 1.0, 0.0, np.nan])
    np.testing.assert_array_equal(found["rejected"], [1.0, 1.0, 1.0, np.nan])
    (share,) = pair_grid._shares([found["chosen"]], "same_chosen", SETTINGS)
    assert (share["same_chosen"], share["prompts"]) == (0.5, 3)
    assert share["same_chosen_low"] < 0.5 < share["same_chosen_high"]


def test_overlaps_of_strategies_have_intervals(store: Store) -> None:
    rows = pair_grid.overlap([store.run(("max", "min")), store.run(("max", "mu"))], SETTINGS)
    assert [(row["same_pair"], row["same_pair_low"], row["same_pair_high"]) for row in rows] == [(1, 1, 1)]


def test_pairs_that_two_reward_models_share_have_an_interval(store: Store) -> None:
    points = [store.run(("max", "min")), store.run(("max", "min"), reward_model={"head": "gold"})]
    points[1].manifest["rounds"][0]["rewards"]["reward_model"] = "gold"
    found = reward_model_swap.overlaps(points, SETTINGS)
    names = ("first", "second", "same_pair", "same_pair_low", "same_pair_high")
    assert [tuple(row[name] for name in names) for row in found] == [("embedded", "gold", 1, 1, 1)]


@pytest.mark.parametrize("other", [{"key": "elsewhere"}, {"prompts": "prompts/others.parquet"}])
def test_reward_models_that_scored_other_samples_share_no_pairs(store: Store, other: dict[str, str]) -> None:
    points = [store.run(("max", "min")), store.run(("max", "min"), reward_model={"head": "gold"})]
    points[1].manifest["rounds"][0]["rewards"]["reward_model"] = "gold"
    points[1].manifest["rounds"][0]["samples"] |= other
    assert reward_model_swap.overlaps(points, SETTINGS) == []


def test_under_the_paper_stands_what_the_paper_says(uneven: Point, store: Store, tmp_path: Path) -> None:
    assert "normal pool" not in " ".join(line.paper for line in min_of_k.study([uneven], SETTINGS, "reward").beside)
    told = pair_grid.study([store.run(("mu+2sigma", "mu+sigma"))], SETTINGS, "reward").beside
    assert [line.paper for line in told if line.what.startswith("(mu+2sigma")] == ["34.63 LC, n not told"]
    assert sample_scaling.reported("(max, min)", 5) == ("45 LC, read off a figure; by SimPO's recipe 48.2 (start 26.0)")
    assert sample_scaling.reported("(max, min)", 400) == "42.0 LC (start 26.0)"
    assert sample_scaling.reported("(max, min)", 64) == output.UNKNOWN
    wide = pool(tmp_path / "wide", np.random.default_rng(0).normal(size=(4, 101)))
    ladder = [line.what for line in sample_scaling.study([wide], Settings(50, 0), "reward").beside]
    assert "max less min at n = 100 (toy)" in ladder


def test_a_sweep_keeps_policies_of_one_setting_that_were_judged_on_other_prompts_apart(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [("max", "min"), ("random", "random"), ("max", "mu"), ("random", "random")])
    for job in sweep.jobs[2:]:
        path = sweep.path(job) / "manifest.json"
        manifest = json.loads(path.read_text())
        write_scores(tmp_path / "store", f"more{job.number}", (), 0.1 * job.number, n_prompts=12)
        manifest["evaluations"][0] |= {"key": f"more{job.number}", "path": f"scores/more{job.number}/scores.parquet"}
        path.write_text(json.dumps(manifest))
    page = Page(collect.write(sweep, {job.number: Outcome("done", "", "", "") for job in sweep.jobs})[-1].read_text())
    told = next(words for words in page.values("aria-label") if words.startswith("gain of the judge's reward of"))
    assert told.startswith("gain of the judge's reward of 4 policies")
    assert [word in told for word in ("prompts=1", "prompts=2")] == [True, True]


def test_a_sweep_s_captions_say_what_the_intervals_are_over(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [("max", "min"), ("max", "min")])
    path = sweep.path(sweep.jobs[1]) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "config": {**manifest["config"], "seed": 1}}))
    page = collect.write(sweep, {job.number: Outcome("done", "", "", "") for job in sweep.jobs})[-1].read_text()
    assert "prompts, for these seeds of training" in page
    assert "sd of seeds' means" in page
