"""The report of a run: a whole page for whatever the run reached, that needs nothing but itself."""

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sweetspot import report
from sweetspot.logger import Logs
from sweetspot.logger.jsonl import JsonLines
from sweetspot.report.figures import moving_mean, smoothing_window
from sweetspot.report.rows import Scored, points, read_scored
from sweetspot.report.summary import count, duration, in_sd, number, percent, signed, verdict
from sweetspot.schema import PAIRS, REWARDS, SAMPLES
from sweetspot.store import write_tile
from tests.reported import EVIL, STAGES, make_run
from tests.test_logger import wandb_logger

POOL = ["Reward distributions", "Selection by n"]


class Page(HTMLParser):
    """The page's elements, ids, references and text; refuses tags that are not closed in order."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note and open an element."""
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element that closes itself."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close the element that was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note a text and the element around it."""
        self.words.append((self.open[-1] if self.open else "", data))

    def values(self, name: str) -> list[str]:
        """The values of an attribute, wherever it stands."""
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]

    @property
    def headings(self) -> list[str]:
        """The texts of the h2 elements."""
        return [text for tag, text in self.words if tag == "h2"]


RunOf = Callable[..., Path]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> RunOf:
    """The manifest of a run with its report written, made once for the same arguments."""

    @cache
    def written(until: str = "evaluate", **sizes: int) -> Path:
        manifest = make_run(tmp_path_factory.mktemp(until), until, **sizes)
        report.write(manifest)
        return manifest

    return written


def page_of(manifest: Path) -> tuple[Page, str]:
    text = manifest.with_name("report.html").read_text()
    return Page(text), text


def terminal(manifest: Path, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(report.summary(json.loads(manifest.read_text())))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ("sample", ["Prompts with their samples"]),
        ("score", [*POOL, "Prompts with their samples"]),
        ("select", [*POOL, "Prompts with their pairs"]),
        ("train", [*POOL, "Training", "Prompts with their pairs"]),
        ("evaluate", ["Held-out result", *POOL, "Training", "Prompts with their pairs"]),
    ],
)
def test_a_run_has_the_sections_that_it_reached(until: str, expected: list[str], run_of: RunOf) -> None:
    page, _ = page_of(run_of(until))
    assert page.headings == [*expected, "Cost", "Lineage"]


def test_each_round_has_its_own_sections(run_of: RunOf) -> None:
    page, _ = page_of(run_of(rounds=2))
    assert [heading for heading in page.headings if heading.startswith("Round")] == [
        f"Round {turn}: {part}" for turn in (1, 2) for part in (*POOL, "Training", "Prompts with their pairs")
    ]


def test_a_run_that_made_nothing_has_a_report(tmp_path: Path) -> None:
    path = make_run(tmp_path, "sample")
    path.write_text(json.dumps({**json.loads(path.read_text()), "rounds": [{}], "stages": []}))
    report.write(path)
    page, text = page_of(path)
    assert page.headings == ["Cost", "Lineage"]
    assert "The run made nothing." in text


@pytest.mark.parametrize("until", ["sample", "score", "select"])
def test_a_run_whose_prompts_were_all_set_aside_has_a_report(until: str, tmp_path: Path) -> None:
    path = make_run(tmp_path, until)
    for kind, schema in (("samples", SAMPLES), ("rewards", REWARDS), ("pairs", PAIRS)):
        for tile in list((tmp_path / "store" / kind).glob("*/*.parquet")):
            tile.unlink()
            write_tile(tile, schema.empty_table(), {})
    report.write(path)
    page, _ = page_of(path)
    assert page.headings[-2:] == ["Cost", "Lineage"]


def test_the_page_refers_to_nothing_outside_itself(run_of: RunOf) -> None:
    page, text = page_of(run_of(rounds=2))
    for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
        assert [value for value in page.values(name) if not value.startswith("#")] == []
    assert {target[1:] for name in ("href", "xlink:href") for target in page.values(name)} <= set(page.values("id"))
    assert re.findall(r"@import|url\((?!#)", text) == []
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "default-src 'none'" in text


def test_ids_are_unique_and_every_figure_has_a_text(run_of: RunOf) -> None:
    page, _ = page_of(run_of(rounds=2))
    assert len(page.values("id")) == len(set(page.values("id")))
    figures = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(figures) == 2 * (2 * 4 + 1)  # two cuts of four figures a round and one of the evaluation
    assert all(attributes["aria-label"] for attributes in figures)


def test_colours_are_those_of_the_page_so_that_light_and_dark_both_work(run_of: RunOf) -> None:
    _, text = page_of(run_of())
    drawn = "".join(re.findall(r"<svg viewBox.*?</svg>", text, flags=re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) == set()
    assert {"var(--ink)", "var(--chosen)", "var(--rejected)"} <= set(re.findall(r"var\(--\w+\)", drawn))


def test_texts_are_escaped_and_their_white_space_is_kept(run_of: RunOf) -> None:
    page, text = page_of(run_of())
    assert "<script" not in text
    assert "<b>bold" not in text
    assert [words for tag, words in page.words if tag == "div" and words == EVIL] == [
        EVIL
    ] * 3  # prompt, chosen, rejected
    assert ".text { white-space: pre-wrap" in text


def test_a_page_without_texts_has_the_figures_and_nothing_private(tmp_path: Path, run_of: RunOf) -> None:
    secret = "Answer in the manner of Rosebud"
    manifest = make_run(tmp_path / "strategy=max_min", rounds=2)
    facts = json.loads(manifest.read_text())
    facts["config"]["model"]["system_prompt"] = secret
    manifest.write_text(json.dumps({**facts, "command": f"python run.py model.system_prompt={secret}"}))
    path = report.write_without_texts(manifest, tmp_path)
    page, text = Page(path.read_text()), path.read_text()
    assert path != manifest.with_name("report.html")
    whole, _ = page_of(run_of(rounds=2))
    assert page.headings == [one for one in whole.headings if "Prompts with" not in one]
    assert not {"article"} & {tag for tag, _ in page.tags}
    for word in ("alert(", "bold", "tomato", "sky is blue", "litres", "a colour", "Blue", "Rosebud", str(tmp_path)):
        assert word not in text, word
    assert ("pre", "strategy=max_min") in page.words  # the run's name in place of its command
    assert ("code", "…/store") in page.words


def test_the_configuration_of_a_report_shows_no_secret_that_was_typed(tmp_path: Path) -> None:
    manifest = make_run(tmp_path, "sample")
    facts = json.loads(manifest.read_text())
    facts["config"]["judge"] = {"api_key": "short", "base_url": "https://me:pass@a.org/v1?key=s3cr3t", "max_tokens": 7}
    manifest.write_text(json.dumps(facts))
    for path in (report.write(manifest), report.write_without_texts(manifest, tmp_path)):
        (shown,) = (text for tag, text in Page(path.read_text()).words if tag == "pre" and "max_tokens: 7" in text)
        assert "api_key: …" in shown and "base_url: https://a.org/v1?key=…\n" in shown


def test_the_command_of_a_report_shows_no_secret_that_was_typed(tmp_path: Path) -> None:
    manifest = make_run(tmp_path, "sample")
    facts = json.loads(manifest.read_text())
    for typed, told in {
        "+judge.api_key=short seed=1": "+judge.api_key=… seed=1",
        "+x={'Authorization': 'Bearer a,b', max_tokens: 7}": "+x={'Authorization': …, max_tokens: 7}",
        "url=https://me:pass@a.org/v1?key=s3cr3t": "url=https://a.org/v1?key=…",
        "key_variable=OPENAI_API_KEY sampler.max_tokens=7": "key_variable=OPENAI_API_KEY sampler.max_tokens=7",
    }.items():
        manifest.write_text(json.dumps({**facts, "command": f"python run.py {typed}"}))
        words = Page(report.write(manifest).read_text()).words
        assert [text for tag, text in words if "run.py" in text and tag in ("code", "pre")] == [
            f"python run.py {told}"
        ] * 2
        assert ("title", f"sweetspot: python run.py {told}") in words


class Taken(JsonLines):
    """A log that notes the names and beginnings of the files that it is given."""

    def close(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:  # noqa: ARG002 - as a Sink's
        """Note them."""
        self.files = {path.name: path.read_text()[:15] for path in files}


@pytest.mark.parametrize("text", [True, False])
def test_a_log_that_takes_no_texts_gets_a_report_without_them(text: bool, tmp_path: Path) -> None:
    manifest = make_run(tmp_path, "sample")
    for files in ([manifest], [manifest, report.write(manifest)]):
        log = Taken(tmp_path / "log.jsonl")
        report.close(Logs({"log": log}), {"log": wandb_logger(text=text)}, {}, files)
        more = {"report-without-texts.html": "<!doctype html>"} if len(files) == 2 and not text else {}
        assert log.files == {path.name: path.read_text()[:15] for path in files} | more
    assert not (tmp_path / "report-without-texts.html").exists()


def test_at_most_eight_prompts_are_shown_from_the_first_to_the_last(run_of: RunOf) -> None:
    page, text = page_of(run_of("select", n_prompts=30))
    assert [attributes["class"] for tag, attributes in page.tags if tag == "article"] == ["prompt"] * 8
    assert "(No. 29)" in text


def test_rewards_and_z_of_a_pair_are_those_of_its_row(run_of: RunOf) -> None:
    page, _ = page_of(run_of("select", n_prompts=1))
    matrix = np.random.default_rng(0)
    rewards = matrix.normal(matrix.normal(0, 2, (1, 1)), matrix.uniform(0.4, 1.2, (1, 1)), (1, 16))[0]
    z = (rewards.max() - rewards.mean()) / rewards.std(ddof=1)
    assert ("span", f"reward {signed(rewards.max())}, z {in_sd(z)}") in page.words


@pytest.mark.slow
def test_the_page_is_small_at_400_samples_a_prompt(run_of: RunOf) -> None:
    _, text = page_of(run_of(n_prompts=60, n=400))
    assert len(text.encode()) < 5_000_000


def test_the_same_run_gives_the_same_page(run_of: RunOf) -> None:
    path = run_of(rounds=2)
    before = path.with_name("report.html").read_bytes()
    assert report.write(path).read_bytes() == before


def test_points_of_a_hand_worked_pool() -> None:
    # rewards -2 .. 2: mu 0, sigma (ddof 1) sqrt(2.5) = 1.58; mu + sigma is nearest to 2, as max is
    row = np.array([[2.0, -2.0, 0.0, 1.0, -1.0]])
    found = {place.point: place for place in points(Scored(["p"], row, row / math.sqrt(2.5)))}
    assert found["mu"].z == 0
    assert found["mu+sigma"].z == found["max"].z == pytest.approx(2 / math.sqrt(2.5))
    assert (found["mu-2sigma"].share_min, found["mu-2sigma"].share_max, found["mu"].share_min) == (1, 0, 0)


def test_the_normal_pool_beside_the_points_is_in_sample_standard_deviations() -> None:
    # of two rewards the larger is 1/sqrt(2) sample standard deviations (ddof 1) above their mean, always
    rewards = np.array([[0.0, 1.0], [5.0, 9.0]])
    z = np.array([[-1.0, 1.0], [-1.0, 1.0]]) / math.sqrt(2)
    best = points(Scored(["p", "q"], rewards, z))[-1]
    assert best.normal_z == pytest.approx(best.z) == pytest.approx(1 / math.sqrt(2))


def test_prompts_that_lack_rewards_or_spread_are_left_out_of_the_points() -> None:
    rewards = np.array([[0.0, 1.0], [3.0, 3.0], [np.nan, 1.0]])
    z = np.array([[-1.0, 1.0], [np.nan, np.nan], [np.nan, np.nan]]) / math.sqrt(2)
    assert points(Scored(["p", "q", "r"], rewards, z))[-1].z == pytest.approx(1 / math.sqrt(2))
    assert points(Scored(["q"], rewards[1:2], z[1:2])) == []


def test_the_moving_mean_covers_what_there_is_at_the_ends_and_skips_nan() -> None:
    assert moving_mean(np.array([1.0, 2.0, 6.0, 4.0]), 3).tolist() == [1.5, 3.0, 4.0, 5.0]
    assert moving_mean(np.array([1.0, np.nan, 5.0]), 3).tolist() == [1.0, 3.0, 5.0]
    assert np.isnan(moving_mean(np.array([np.nan, np.nan]), 1)).all()


def test_a_short_curve_is_not_smoothed() -> None:
    assert [smoothing_window(steps) for steps in (1, 29, 30, 110, 1000)] == [1, 1, 3, 11, 101]


def test_the_summary_fits_80_columns_and_says_what_was_found(run_of: RunOf) -> None:
    text = terminal(run_of())
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    for part in (
        "sample 4 0 88 s tiles",
        "192, 16 a prompt, 0.4% duplicates",
        "15.2 of 16 a prompt in effect, 3.1% near-duplicates",
        "42.3 tokens, 12% cut at the limit",
        "look normal 88% of prompts by Shapiro, 90% by Lilliefors; 94% of prompts by Shapiro, 92% by Lilliefors, "
        "adjusted over prompts (Benjamini-Hochberg)",
        "4 (same response 3, no margin 1)",
        "ignored 7 copies of earlier responses",
        "chosen +1.77, rejected −1.74",  # noqa: RUF001
        "47, without 1 too long",
        "0.693 → 0.331 in 110 steps",
        "embedded_gold +0.220 (95%: +0.110 to +0.330), +0.27 sd",
        "wins 58% (95%: 54% to 62%)",
        "41.2 → 44.9 tokens",
        "3.21 nats a response (95%: 2.84 to 3.60)",
        "warning: strategy: mu-2sigma is the minimum",
        "The mean reward by embedded_gold rose: +0.220",
    ):
        assert part in flat
    assert "policies/o0" in text.replace("\n", "").replace(" ", "")


@pytest.mark.parametrize("until", STAGES)
def test_the_summary_of_a_partial_run_has_no_more_than_it_reached(until: str, run_of: RunOf) -> None:
    text = terminal(run_of(until))
    shown = [word in text for word in ("Samples", "Rewards by", "Pairs", "Training", "Held out")]
    assert shown == [number <= STAGES.index(until) for number in range(5)]


def test_a_sampled_reference_is_told_with_its_error(run_of: RunOf) -> None:
    path = run_of("train")
    assert "off by" not in terminal(path)
    manifest = json.loads(path.read_text())
    error = {"responses": 64, "mean": -0.01, "mean_absolute": 0.25, "largest": 0.5}
    manifest["rounds"][0]["policy"]["reference_error"] = error
    path.write_text(json.dumps(manifest))
    assert "off by 0.250 nats a response (0.500 at most, of 64 compared)" in terminal(path, width=160)


def test_an_older_manifest_has_the_adjusted_share_that_looks_normal_and_says_so(tmp_path: Path) -> None:
    path = make_run(tmp_path, "score")
    manifest = json.loads(path.read_text())
    for test in ("shapiro", "lilliefors"):
        del manifest["rounds"][0]["rewards"][f"normal_share_{test}_single"]
    path.write_text(json.dumps(manifest))
    flat = " ".join(terminal(path).split())
    assert "look normal 94% of prompts by Shapiro, 92% by Lilliefors, adjusted over prompts (Benjamini" in flat


@pytest.mark.parametrize("blank", [None, math.nan])
def test_missing_numbers_show_as_a_dash(blank: float | None, run_of: RunOf) -> None:
    manifest = json.loads(run_of("score").read_text())
    manifest["rounds"][0]["rewards"] |= {"mean": blank, "mean_sd": blank, "normal_share_shapiro": blank}
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(report.summary(manifest))
    assert isinstance(console.file, io.StringIO)
    assert "–, sd within a prompt –" in console.file.getvalue()  # noqa: RUF001


@pytest.mark.parametrize(
    ("low", "high", "difference", "expected"),
    [
        (0.1, 0.3, 0.2, "The mean reward by embedded_gold rose: +0.200"),
        (-0.3, -0.1, -0.2, "The mean reward by embedded_gold fell: −0.200"),  # noqa: RUF001
        (-0.1, 0.3, 0.1, "No change of the mean reward by embedded_gold that can be told from chance: +0.100"),
        (None, None, 0.1, "No change of the mean reward by embedded_gold that can be told from chance: +0.100"),
    ],
)
def test_the_verdict_claims_no_more_than_the_interval(
    low: float | None, high: float | None, difference: float, expected: str, run_of: RunOf
) -> None:
    manifest = json.loads(run_of().read_text())
    manifest["evaluations"][0]["judges"][0] |= {"low": low, "high": high, "difference": difference}
    assert verdict(manifest).startswith(expected)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.0499, "The mean reward by embedded_gold rose: +0.220 (95%: +0.110 to +0.330) over 64 held-out prompts."),
        (
            0.0625,
            "No change of the mean reward by embedded_gold that can be told from chance by random signs (p 0.062): "
            "+0.220 (95%: +0.110 to +0.330) over 64 held-out prompts.",
        ),
        (None, "The mean reward by embedded_gold changed by +0.220 (95%: +0.110 to +0.330) over 64 held-out prompts, "),
    ],
)
def test_the_verdict_claims_no_more_than_the_test_of_random_signs(
    p: float | None, expected: str, run_of: RunOf
) -> None:
    manifest = json.loads(run_of().read_text())
    judge = manifest["evaluations"][0]["judges"][0]
    manifest["evaluations"][0]["judges"][0] = {key: value for key, value in judge.items() if key != "p"} | (
        {} if p is None else {"p": p}
    )
    assert verdict(manifest).startswith(expected)


def test_the_report_of_a_run_that_ignores_copies_shows_the_rewards_that_selection_saw(tmp_path: Path) -> None:
    """All responses of the first of 12 prompts are one text, so that it has one reward; the others differ."""
    path = make_run(tmp_path)
    manifest = json.loads(path.read_text())
    places = [manifest["rounds"][0][part] for part in ("samples", "rewards")]
    found = read_scored(tmp_path / "store", *places, True)
    assert np.isfinite(found.rewards).sum(axis=1).tolist() == [1] + [16] * 11
    assert np.isnan(found.z[0]).all()
    whole = read_scored(tmp_path / "store", *places)
    np.testing.assert_array_equal(found.z[1:], whole.z[1:])
    assert points(found) == points(Scored(whole.prompt_ids[1:], whole.rewards[1:], whole.z[1:]))
    path.write_text(json.dumps({**manifest, "config": {**manifest["config"], "ignore_duplicates": True}}))
    report.write(path)
    assert "Selection by n" in page_of(path)[0].headings[2]


def test_numbers_are_short_and_true() -> None:
    assert [number(value) for value in (0.69315, 12.34, 1234.5, -0.05, 0, 1e-6, None)] == [
        *("0.693", "12.3", "1,234", "−0.050", "0.00", "1.00e−06", "–"),  # noqa: RUF001
    ]
    assert [percent(value) for value in (0.0042, 0, 0.5, 0.0999, 1)] == ["0.4%", "0%", "50%", "10%", "100%"]
    assert [duration(value) for value in (0.04, 9.97, 88.1, 125, 3000, 9000)] == [
        *("0.0 s", "10 s", "88 s", "2 min 05 s", "50 min", "2.5 h"),
    ]
    assert [in_sd(value) for value in (1.768, -0.5, -0.001, 0, None)] == [
        *("+1.77", "−0.50", "+0.00", "+0.00", "–"),  # noqa: RUF001
    ]
    assert (count(4992), signed(0.5), signed(None)) == ("4,992", "+0.500", "–")  # noqa: RUF001
