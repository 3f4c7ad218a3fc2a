"""The report of a sweep: what its points are worth side by side, with nothing claimed that was not tested."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from experiments.kept import without_texts
from sweetspot import manifest as manifests
from sweetspot import report
from sweetspot.logger import Logs
from sweetspot.report import sweep_figures
from sweetspot.report.cost import cost
from sweetspot.report.page import TEXTS, fitting, with_codes
from sweetspot.report.runs import Point, changes
from sweetspot.report.words import pretty
from sweetspot.schema import CHECKED, SCORES
from sweetspot.stages import Run
from sweetspot.statistics import PERMUTATIONS, sign_flip_p
from sweetspot.store import Store, read_tile, write_tile
from sweetspot.strategy import POINTS
from sweetspot.sweep import collect
from sweetspot.sweep.command import main
from sweetspot.sweep.folder import Sweep
from sweetspot.sweep.outcome import Outcome
from tests import tiny
from tests.reported import EVIL, make_run, make_sweep, write_scores
from tests.test_report import Page

DONE = Outcome("done", "", "", "")
IFEVAL = {"n_prompts": 4, "prompt_strict": 50.0, "partial": False, "difference": 50.0, "low": 0.0, "high": 100.0}
SMALL = [gain for row in range(24) for gain in [0.25 if row < 18 else -0.3] * 2]  # two responses each of 24 prompts
POOL = ["Reward distribution", "Selection by n"]
TEXTS_OF = ["Answers before and after", "Prompts with their pairs"]


def written(sweep: Sweep, **standing: Outcome) -> str:
    """The page of a sweep whose jobs are done but those named here."""
    found = {job.number: standing.get(job.name, DONE) for job in sweep.jobs}
    return collect.write(sweep, found)[-1].read_text()


def edit(sweep: Sweep, number: int, **changes: Any) -> None:
    """Change a point's manifest."""
    path = sweep.path(sweep.jobs[number]) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a sweep of the paper's 21 pairs and the random one."""
    return written(make_sweep(tmp_path_factory.mktemp("grid")))


def test_a_pair_grid_has_all_sections(grid: str) -> None:
    assert Page(grid).headings == [
        *("Result", "Pair grid", *POOL, "Training", *TEXTS_OF, "Points", "Cost", "Lineage"),
    ]


def test_the_page_of_a_sweep_stands_alone(grid: str) -> None:
    page = Page(grid)
    outside = [value for value in page.values("href") if not value.startswith("#")]
    assert outside == [f"job-{number}/report.html" for number in range(22)]
    assert page.values("src") == []
    assert len(page.values("id")) == len(set(page.values("id")))
    drawn = "".join(re.findall(r"<svg viewBox.*?</svg>", grid, flags=re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) == set()
    assert len(grid.encode()) < 5_000_000


def test_pairs_that_differ_from_random_are_marked(grid: str) -> None:
    """The six pairs that reject the minimum gain 0.8, the others and the random one about 0.2; sd over prompts 0.3."""
    told = next(words for words in Page(grid).values("aria-label") if words.startswith("Heat map of 21 pairs"))
    starred = re.findall(r"(\(\S+, \S+\)) \S+\*", told)
    assert sorted(starred) == sorted(
        f"({one}, min)" for one in ("mu-2sigma", "mu-sigma", "mu", "mu+sigma", "mu+2sigma", "max")
    )
    assert "6 of 21 can be told from the random pair." in grid


def test_the_heat_map_has_all_seven_points_down_and_across(grid: str) -> None:
    drawn = grid[grid.index("Heat map of 21 pairs") :].split("</svg>")[0]
    for point in POINTS:
        assert len(re.findall(rf">{re.escape(pretty(point))}</text>", drawn)) == 2, point


def test_texts_of_a_sweep_are_escaped(grid: str) -> None:
    assert "<script" not in grid and "<b>bold" not in grid
    assert ("div", EVIL) in Page(grid).words


def test_a_sweep_of_few_pairs_has_no_heat_map_and_one_without_random_no_test(tmp_path: Path) -> None:
    page = written(make_sweep(tmp_path, [("max", "min"), ("max", "mu-2sigma")]))
    assert Page(page).headings == [
        *("Result", *POOL, "Training", *TEXTS_OF, "Points", "Cost", "Lineage"),
    ]
    assert "random pair" not in page.split("</header>")[0]
    assert "than random" not in page


def test_a_sweep_of_which_nothing_is_there_has_a_report(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [("max", "min")])
    (sweep.path(sweep.jobs[0]) / "manifest.json").unlink()
    page = written(sweep, **{"job-0": Outcome("failed", "<b>boom</b> \x1b[31m", "", "")})
    assert Page(page).headings == ["Points", "What is not done", "Cost", "Lineage"]
    assert "0 of 1 points are done" in page
    assert "&lt;b&gt;boom&lt;/b&gt; \\x1b[31m" in page


def test_a_sweep_whose_store_is_gone_still_tells_what_its_manifests_say(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [("max", "min"), ("random", "random")])
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    page = Page(written(sweep))
    assert page.headings == ["Points", "Cost", "Lineage"]
    assert ("td", "+0.220 (95%: +0.110 to +0.330)") in page.words


def test_points_of_other_settings_are_compared_apart(tmp_path: Path) -> None:
    """With dpo.beta=0.1 there is a random pair, with 0.3 there is none."""
    sweep = make_sweep(tmp_path, [("max", "min"), ("random", "random"), ("max", "min")])
    betas = ("0.1", "0.1", "0.3")
    jobs = [
        replace(job, overrides=(*job.overrides, f"dpo.beta={beta}"))
        for job, beta in zip(sweep.jobs, betas, strict=True)
    ]
    page = Page(written(replace(sweep, jobs=tuple(jobs))))
    told = next(words for words in page.values("aria-label") if words.startswith("gain of the judge's reward of 3"))
    assert [f"dpo.beta={beta}" in told for beta in ("0.1", "0.3")] == [True, True]
    heading = next(words for tag, words in page.words if tag == "h1")
    assert heading.endswith("1 of 1 can be told from the random pair.")


def test_all_tests_of_the_table_are_one_family_whatever_their_settings(tmp_path: Path) -> None:
    """Two settings, each a policy that is better for 18 of 24 prompts (p 0.04) beside its random pair: of both, 2 p."""
    sweep = make_sweep(tmp_path, [("max", "mu"), ("random", "random")] * 2)
    for job in sweep.jobs:
        write_scores(tmp_path / "store", f"e{job.number}", ())
        path = tmp_path / "store" / "scores" / f"e{job.number}" / "scores.parquet"
        table = read_tile(path, SCORES)[0].to_pylist()
        for row, gain in zip(table, SMALL, strict=True):
            row["reward"] = row["baseline_reward"] + (gain if job.number % 2 == 0 else 0.0)
        path.unlink()
        write_tile(path, pa.Table.from_pylist(table, schema=SCORES), {})
    jobs = [
        replace(job, overrides=(*job.overrides, f"dpo.beta={0.1 if job.number < 2 else 0.3}")) for job in sweep.jobs
    ]
    page = Page(written(replace(sweep, jobs=tuple(jobs))))
    alone = sign_flip_p(np.reshape(SMALL, (24, 2)).mean(axis=1), PERMUTATIONS, 0)
    assert 0.025 < alone < 0.05
    assert [words for tag, words in page.words if tag == "td"].count(f"{2 * alone:.3f}") == 2
    assert next(words for tag, words in page.words if tag == "h1").endswith("none can be told from the random pair.")


def test_a_win_rate_is_written_as_a_rate_in_table_and_figures(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [("max", "min"), ("max", "mu")])
    facts = {"kind": "alpaca_eval_2", "baseline": "gpt4", "judge": "gpt", "n_prompts": 24, "win_rate": 60.0}
    facts |= {"length_controlled_winrate": None, "n_benchmark": 24, "partial": False}
    for job in sweep.jobs:
        found = {"name": "eval", "key": f"e{job.number}", "path": f"scores/e{job.number}/scores.parquet", **facts}
        config = json.loads((sweep.path(job) / "manifest.json").read_text())["config"]
        config["n_samples"] = 8 * (job.number + 1)
        edit(sweep, job.number, evaluations=[found], config=config)
    page = Page(written(sweep))
    assert [words for tag, words in page.words if tag == "td"].count("60.0%") == 2
    told = [words for words in page.values("aria-label") if words.startswith("win rate (%)")]
    assert len(told) == 2
    assert all(words.count("60.0%") == 2 and "+60" not in words for words in told)
    assert "is highest of 2: 60.0% (95%: 60.0% to 60.0%) against gpt4" in next(
        words for tag, words in page.words if tag == "h1"
    )


def test_a_heat_map_of_win_rates_is_told_in_rates() -> None:
    row = {"strategy": "(max, min)", "chosen": "max", "rejected": "min", "measure": "win_rate", "mean": 47.93}
    drawn = sweep_figures.heat("grid", [row], 50.0)
    assert "(max, min) 47.9%." in drawn
    assert "(max, min) +0.100." in sweep_figures.heat("grid", [{**row, "measure": "reward", "mean": 0.1}], 0.0)


def test_policies_of_several_n_are_drawn_over_n(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [("max", "min"), ("max", "min")])
    jobs = [replace(job, overrides=(f"n_samples={n}",)) for job, n in zip(sweep.jobs, (8, 16), strict=True)]
    config = json.loads((sweep.path(sweep.jobs[0]) / "manifest.json").read_text())["config"]
    edit(sweep, 0, config={**config, "n_samples": 8})
    page = Page(written(replace(sweep, jobs=tuple(jobs))))
    assert "Policies by n" in page.headings
    assert any(
        words.startswith("gain of the judge's reward over n: (max, min) n = 8") for words in page.values("aria-label")
    )


def test_seeds_of_one_strategy_are_averaged(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [("max", "min"), ("max", "min")])
    config = json.loads((sweep.path(sweep.jobs[1]) / "manifest.json").read_text())["config"]
    edit(sweep, 1, config={**config, "seed": 1})
    page = Page(written(sweep))
    assert ("td", "0, 1") in page.words
    assert any(words.startswith("gain of the judge's reward of 1 policies") for words in page.values("aria-label"))


def test_strategies_that_differ_in_another_field_than_their_positions_are_apart(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [("max", "mu-2sigma")] * 4)
    pair = json.loads((sweep.path(sweep.jobs[0]) / "manifest.json").read_text())["config"]
    edit(sweep, 1, config={**pair, "strategy": {**pair["strategy"], "ddof": 0}})
    edit(sweep, 2, config={**pair, "strategy": {**pair["strategy"], "_target_": "own.Scaled"}})
    edit(sweep, 3, config={**pair, "strategy": {"_target_": "own.Third", "chosen": "third", "rejected": 2}})
    page = Page(written(sweep))
    told = next(words for words in page.values("aria-label") if words.startswith("gain of the judge's reward of 4"))
    names = ["(max, mu-2sigma)", "(max, mu-2sigma; ddof=0)"]
    names += ["Scaled(chosen='max', rejected='mu-2sigma')", "Third(chosen='third', rejected=2)"]
    assert [pretty(name) in told or name in told for name in names] == [True] * 4


def test_policies_that_differ_in_more_than_they_should_are_not_compared_and_the_page_says_why(tmp_path: Path) -> None:
    page = written(make_sweep(tmp_path, [("max", "min"), ("max", "min")]))  # no figure is for two runs of one seed
    assert "Not compared: runs that are averaged must differ in their seed alone, got (max, min)" in page
    assert "2 of 2 points are done" in page
    assert 'id="result"' not in page


def test_a_page_that_cannot_be_made_is_one_warning_beside_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = make_sweep(tmp_path, [("max", "min")])
    edit(sweep, 0, evaluations=[{"name": "eval"}])
    found = {job.number: DONE for job in sweep.jobs}
    assert [path.name for path in collect.write(sweep, found)] == ["sweep.parquet", "sweep.md"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the report could not be written: KeyError: 'k")


def test_policies_that_only_ifeval_judged_are_shown(tmp_path: Path) -> None:
    """Four prompts: the start follows none of their instructions, the policy those of two or of one."""
    sweep = make_sweep(tmp_path, [("max", "min"), ("random", "random")])
    for number, follows in ((0, 2), (1, 1)):
        for side, count in (("policy", follows), ("start", 0)):
            rows = [
                {"prompt_id": f"i{row}", "response": "", "instructions": ["x"]}
                | {"strict": [row < count], "loose": [row < count]}
                for row in range(4)
            ]
            write_tile(
                tmp_path / "store" / "ifeval" / f"{side}{number}.parquet", pa.Table.from_pylist(rows, CHECKED), {}
            )
        place = {"path": f"ifeval/policy{number}.parquet", "start_path": f"ifeval/start{number}.parquet"}
        edit(sweep, number, evaluations=[{"name": "eval", "kind": "ifeval", "key": f"i{number}", **place, **IFEVAL}])
    page = Page(written(sweep))
    assert any(words.startswith("gain of followed instructions (points) of 2") for words in page.values("aria-label"))
    assert ("th", "gain (points)") in page.words
    assert ("td", "+50.0") in page.words


def test_a_manifest_without_the_start_s_ifeval_says_to_run_the_command_again(tmp_path: Path) -> None:
    manifest = {"store": str(tmp_path), "evaluations": [{"kind": "ifeval", "path": "ifeval/k/checked.parquet"}]}
    with pytest.raises(ValueError, match=r"old: its manifest is of an earlier version .* run its command again"):
        changes(Point(Path("old"), manifest), "instructions")


def test_cost_is_added_up_over_runs_by_stage_devices_and_price() -> None:
    """Two runs on 4 GPUs: 0.5 and 1 h of training, 0.5 h between, all of them 8 device-hours; at 3 an hour, 24."""
    stage = {"name": "train", "unit": "policies", "made": 1, "reused": 0}
    spent = {"name": "alpaca", "key": "k", "spent": {"price_of_answers": 1.25}}
    runs = [
        {"devices": 4, "seconds": seconds + 900, "stages": [{**stage, "seconds": seconds}], "evaluations": [spent]}
        for seconds in (1800, 3600)
    ]
    found = cost(runs, 3.0)
    assert [(one.stage, one.made, one.seconds, one.device_hours) for one in found.stages] == [
        ("train", 2, 5400, 6.0),
        ("start and end", 0, 1800, 2.0),
    ]
    assert (found.device_hours, found.of(found.device_hours), found.judging) == (8.0, 24.0, 1.25)
    assert cost(runs, None).of(1.0) is None


@pytest.mark.parametrize(
    ("visible", "devices", "nodes", "counted"), [("0,1", None, 1, 2), ("0,1", 1, 3, 3), ("", 4, 2, 2)]
)
def test_a_manifest_counts_the_gpus_of_all_nodes_or_the_machines_without(
    visible: str, devices: int | None, nodes: int, counted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    launch = tiny.launch(devices=devices, nodes=nodes)
    run = Run(Store(tmp_path), tmp_path, launch, Logs({}), remake_corrupt=False)
    found = manifests.of_run(run, {"until": "score"}, "python run.py", datetime.now(UTC))
    assert found["devices"] == counted


def test_a_price_is_shown(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [("max", "min"), ("random", "random")])
    page = written(replace(sweep, launcher={"price_per_device_hour": 2.0}))
    assert "0.256 device-hours, 0.51 at 2 a device-hour." in page  # 2 x 461.3 s


def test_answers_before_and_after_are_those_of_the_scores_with_their_prompt(tmp_path: Path) -> None:
    page = Page(report.write(make_run(tmp_path)).read_text())
    words = [text for tag, text in page.words if tag == "div"]
    assert words.count("Blue, 0.") == words.count("Green, 0.") >= 7  # the eighth may be the first prompt, of markup
    assert len([text for text in words if text.startswith("Name a colour that goes with ")]) == words.count("Blue, 0.")
    headings = [text for tag, text in page.words if tag == "h3"]
    assert headings.count("Before: start") == headings.count("After: policy") == 8


def test_a_sweep_shows_answers_of_its_highest_policy_and_of_the_convention(grid: str) -> None:
    """Four prompts of each, with the answer of the start and of the policy."""
    page = Page(grid)
    headings = [text for tag, text in page.words if tag == "h3"]
    best = next(words for tag, words in page.words if tag == "h1").split(" is highest")[0]
    assert [one for one in headings if one.endswith((", the highest", ", the convention"))] == [
        f"{best}, the highest",
        "(max, min), the convention",
    ]
    assert headings.count("Before: start") == headings.count("After: policy") == 8
    texts = [text for tag, text in page.words if tag == "div"]
    assert texts.count("Blue, 0.") == texts.count("Green, 0.") == 8
    assert len([text for text in texts if text.startswith("Name a colour that goes with ")]) == 8


def test_answers_of_a_sweep_without_the_convention_are_of_its_highest_and_lowest_policy(tmp_path: Path) -> None:
    page = Page(written(make_sweep(tmp_path, [("mu", "min"), ("max", "mu-2sigma"), ("random", "random")])))
    ends = [text.partition(", the ")[2] for tag, text in page.words if tag == "h3" and ", the " in text]
    assert ends == ["highest", "lowest"]


def test_answers_that_were_kept_without_texts_are_left_out_of_both_reports(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [("max", "min"), ("random", "random")])
    run = make_run(tmp_path / "run")
    for path in [*tmp_path.glob("store/scores/*/scores.parquet"), *tmp_path.glob("run/store/scores/*/scores.parquet")]:
        without_texts(path, path.with_name("kept"))
        path.with_name("kept").replace(path)
    for page in (Page(written(sweep)), Page(report.write(run).read_text())):
        assert "Answers before and after" not in [text for tag, text in page.words if tag in ("h2", "h3")]
        assert "empty" not in [text for tag, text in page.words if tag == "div"]
        assert "Result" in page.headings or "Held-out result" in page.headings


def test_a_page_that_shall_stand_alone_has_no_links_to_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = make_sweep(tmp_path, [("max", "min"), ("random", "random")])
    main(["collect", str(tmp_path), "--page", str(tmp_path / "alone.html")])
    assert capsys.readouterr().out == f"{tmp_path / 'alone.html'}\n"
    page = Page((tmp_path / "alone.html").read_text())
    assert [value for value in page.values("href") if not value.startswith("#")] == []
    assert page.headings[0] == "Result"
    assert not (sweep.folder / "sweep.html").exists()


def test_a_character_that_nobody_would_see_is_shown_as_its_code() -> None:
    assert with_codes("a\x00b\x1bc\x7fd\x85e\r\nf\rg\th\n") == "a\\x00b\\x1bc\\x7fd\\x85e\nf\\x0dg\th\n"
    assert with_codes("\ud83d \ude00\ufffe") == "\\ud83d \\ude00\\ufffe"
    assert with_codes("\U0001f600 \u05e9\u200f é") == "\U0001f600 \u05e9\u200f é"
    assert with_codes("\u202egnp\u202c \u2067a\u2069\u2028\ufeff") == r"\u202egnp\u202c \u2067a\u2069\u2028\ufeff"


def test_texts_are_cut_so_that_all_together_fit() -> None:
    assert fitting(["short"] * 100) == 20_000
    limit = fitting(["&" * 100_000] * 100)  # five bytes each once escaped
    assert 5 * 100 * limit <= TEXTS < 5 * 100 * 2 * limit
    assert fitting([]) == 20_000


def test_positions_are_printed_in_greek_and_other_names_as_they_are() -> None:
    assert pretty("(mu+2sigma, mu-1.5sigma)") == "(μ+2σ, μ−1.5σ)"  # noqa: RUF001
    assert pretty("(mu, mu-sigma)") == "(μ, μ−σ)"  # noqa: RUF001
    assert pretty("Maximum-likelihood, mini") == "Maximum-likelihood, mini"
