"""What the reports show of a pool: what fewer samples would give, and what the strategies of a sweep took of it."""

import json
import re
from pathlib import Path

import pytest

from sweetspot import report
from sweetspot.report import pool
from sweetspot.report.words import in_sd, signed
from sweetspot.schema import PAIRS
from sweetspot.store import read_tile
from sweetspot.strategy import POINTS
from tests.reported import make_run, make_sweep
from tests.test_report import Page
from tests.test_report_sweep import edit, written


def test_curves_over_n_are_of_the_strategy_s_positions_and_of_both_ends(tmp_path: Path) -> None:
    """Of 16 samples: 5, 10 and 16. At 16 the best of 16 is the pool's maximum itself."""
    text = report.write(make_run(tmp_path, "select")).read_text()
    page = Page(text)
    (told,) = {words for words in page.values("aria-label") if words.startswith("z of positions over n from 5 to 16")}
    assert [part.split()[0] for part in told.split(": ", 1)[1].split(", ")] == ["max", "mu-2sigma", "min"]
    best = next(words for words in page.values("aria-label") if words.startswith("Histogram of"))
    assert re.findall(r"max (\S+?)[.,]?$", best) == re.findall(r": max ([^,]+),", told)
    assert "from the pool of 16 of embedded, seed 0" in text


def test_a_pool_of_few_or_of_unequal_samples_has_no_curve_over_n(tmp_path: Path) -> None:
    few = Page(report.write(make_run(tmp_path / "few", "score", n=5)).read_text())
    manifest = make_run(tmp_path / "adaptive", "score")
    facts = json.loads(manifest.read_text())
    facts["config"]["sampler"]["budget"] = "adaptive"
    manifest.write_text(json.dumps(facts))
    for page in (few, Page(report.write(manifest).read_text())):
        assert page.headings[:2] == ["Reward distributions", "Prompts with their samples"]


def test_curves_over_n_of_many_prompts_are_those_of_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MOST_PROMPTS", 5)
    assert "bands over 5 prompts" in report.write(make_run(tmp_path, "score")).read_text()


def test_the_first_pool_of_a_sweep_is_shown_with_the_seven_points(tmp_path: Path) -> None:
    grid = written(make_sweep(tmp_path, [("max", "min")]))
    told = next(words for words in Page(grid).values("aria-label") if words.startswith("Histogram of 192 rewards"))
    assert [part.split()[0] for part in told.split("points: ")[1].split(", ")] == list(POINTS)


def test_prompts_are_shown_with_what_the_strategies_took(tmp_path: Path) -> None:
    """By (max, min), (mu, min) and (max, mu) of one pool: max chosen twice, mu chosen and rejected, min rejected."""
    sweep = make_sweep(tmp_path, [("max", "min"), ("mu", "min"), ("max", "mu")])
    whole = written(sweep)
    page = Page(whole[whole.index('<section id="prompts">') : whole.index('<section id="points">')])
    assert [at["class"] for tag, at in page.tags if tag == "article"] == ["prompt"] * 4
    assert [text for tag, text in page.words if tag == "h3" and text != "Forecast"] == [
        *("Chosen", "Chosen and rejected", "Rejected")
    ] * 4
    assert [text for tag, text in page.words if tag == "div" and " by (" in text] == [
        *("chosen by (max, min), (max, μ)", "chosen by (μ, min); rejected by (max, μ)"),
        "rejected by (max, min), (μ, min)",
    ] * 4
    pairs = read_tile(tmp_path / "store" / "pairs" / "q-0" / "pairs.parquet", PAIRS)[0].to_pylist()
    for row in (pairs[0], pairs[-1]):
        assert ("div", row["messages"][0]["content"]) in page.words
        for side in ("chosen", "rejected"):
            shown = f"reward {signed(row[f'{side}_reward'])}, z {in_sd(row[f'{side}_z'])}"
            assert ("div", row[side]) in page.words and ("span", shown) in page.words


def test_only_strategies_of_one_pool_and_n_share_their_prompts(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [("max", "min"), ("mu", "min"), ("max", "mu")])
    config = json.loads((sweep.path(sweep.jobs[1]) / "manifest.json").read_text())["config"]
    edit(sweep, 1, config={**config, "n_samples": 8})
    page = Page(written(sweep))
    told = [text for tag, text in page.words if tag == "div" and " by (" in text]
    assert told == ["chosen by (max, min), (max, μ)", "rejected by (max, μ)", "rejected by (max, min)"] * 4
