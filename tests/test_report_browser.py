"""The reports in a real headless browser: whole, quick, legible on a phone and in print, whatever the texts say."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from sweetspot import report
from sweetspot.sweep import collect
from sweetspot.sweep.outcome import Outcome
from tests.reported import make_run, make_sweep

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (390, 1280)  # CSS pixels: a phone and a desktop
OUT = Path(os.environ.get("REPORT_SCREENSHOTS", Path(__file__).parent.parent / ".ci" / "out"))
WORD = "x" * 100_000
HOSTILE = (
    '<script>alert("x")</script><img src=x onerror="alert(1)"><svg onload=alert(2)></style></bdi>--> &amp; &#60;',
    "# Heading\n\n**bold** [link](javascript:alert(3)) ![picture](https://example.com/p.png) | a |\n$x$ {{ 7 * 7 }}",
    "NUL \x00 ESC \x1b[31mred\x1b[0m BEL \x07 DEL \x7f CSI \x9b31m return \r tab \t end",
    "\u202eevil\u202d \u2067right\u2066 \u05e9\u05dc\u05d5\u05dd \u200f \u061c and unclosed \u202e\u2067",
    WORD,
    "&<>\"'" * 20_000,
    "\ufeff\ufffe\uffff\U000e0001 zero\u200bwidth \U0001f468\u200d\U0001f469\u200d\U0001f467 \u0e33" + "\u0301" * 300,
)


@dataclass
class Opened:
    """A page and what the browser said while it was opened."""

    page: Any
    seconds: float
    said: list[str] = field(default_factory=list[str])


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    """A headless browser. In CI, which installs one, its absence is a failure."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None and os.environ.get("CI"):
        pytest.fail(f"CI installs a browser, but there is none of {', '.join(BROWSERS)}")
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_api.sync_playwright() as started:
        running = started.chromium.launch(executable_path=path, args=flags)
        yield running
        running.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Opens a file without a network, and notes all that the browser says and asks for."""
    contexts: list[Any] = []

    def open_page(path: Path, width: int = 1280, scheme: str = "light") -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True)
        contexts.append(context)
        found = Opened(context.new_page(), 0.0)
        address = path.resolve().as_uri()
        found.page.on("console", lambda message: found.said.append(f"{message.type}: {message.text}"))
        found.page.on("pageerror", lambda error: found.said.append(str(error)))
        found.page.on("dialog", lambda dialog: (found.said.append(f"dialog {dialog.message}"), dialog.dismiss()))
        found.page.on(
            "request", lambda asked: found.said.append(f"asks for {asked.url}") if asked.url != address else None
        )
        began = time.monotonic()
        found.page.goto(address, wait_until="load")
        found.seconds = time.monotonic() - began
        return found

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reports of a run, of one of two rounds with hostile texts, of a sweep of the paper's grid, of one of hostile
    texts, and of the study, as it was committed."""
    folder = tmp_path_factory.mktemp("pages")
    sweep = make_sweep(folder / "sweep")
    done = {job.number: Outcome("done", "", "", "") for job in sweep.jobs}
    hostile = make_sweep(folder / "hostile-sweep", [("max", "min"), ("mu", "min")], len(HOSTILE), HOSTILE, HOSTILE)
    return {
        "run": report.write(make_run(folder / "run")),
        "hostile": report.write(make_run(folder / "hostile", rounds=2, n_prompts=len(HOSTILE), texts=HOSTILE)),
        "sweep": collect.write(sweep, done)[-1],
        "hostile sweep": collect.write(hostile, {job.number: done[0] for job in hostile.jobs})[-1],
        "study": STUDY,
    }


STUDY = Path(__file__).parent.parent / "experiments" / "results" / "embedded" / "pair_grid" / "sweep.html"
FIGURES = {"run": 5, "hostile": 9, "sweep": 5}
SECTIONS = ("result", "grid", "pools", "training")  # of a sweep of the paper's grid
NAMES = [*FIGURES, "study"]

# Of each <figure>: the shown cut's width, height, the marks (drawn shapes and letters) and the letters that have an
# extent, and the letters that stick out of the figure by more than a hair.
DRAWN = """() => [...document.querySelectorAll("figure")].map(figure => {
  const shown = [...figure.querySelectorAll("svg[role=img]")].filter(svg => svg.getBoundingClientRect().width > 0);
  return shown.map(svg => {
    const extent = mark => { const box = mark.getBoundingClientRect(); return Math.max(box.width, box.height) > 1; };
    const box = svg.getBoundingClientRect();
    return [box.width, box.height, [...svg.querySelectorAll("path, text")].filter(extent).length,
            [...svg.querySelectorAll("text")].filter(extent).length,
            [...svg.querySelectorAll("text")].map(word => [word.textContent, word.getBoundingClientRect()])
              .filter(([, at]) => at.left < box.left - 4 || at.right > box.right + 4).map(([words]) => words).join()];
  });
})"""

# The contrast (WCAG 2.2) of every text with what lies under it: the nearest shape that is drawn before it around its
# middle, in a figure, and else the nearest background.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = colour => {
    const [r, g, b] = colour.map(part => part / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const over = (top, alpha, below) => below.map((part, place) => top[place] * alpha + part * (1 - alpha));
  const backing = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      layers.push(colour);
      if (colour[3] === 255) break;
    }
    return layers.reverse().reduce((below, top) => over(top, top[3] / 255, below), [255, 255, 255]);
  };
  const found = [];
  const note = (words, front, back) => {
    const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
    found.push([(high + 0.05) / (low + 0.05), words.trim().slice(0, 40)]);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || !parent.checkVisibility({visibilityProperty: true})) continue;
    const svg = parent.closest("svg");
    if (!svg) { note(node.data, rgba(getComputedStyle(parent).color), backing(parent)); continue; }
    const box = parent.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
    let back = backing(svg.parentElement);
    for (const shape of svg.querySelectorAll("path")) {
      if (!(shape.compareDocumentPosition(parent) & Node.DOCUMENT_POSITION_FOLLOWING)) break;
      const style = getComputedStyle(shape), around = shape.getBoundingClientRect();
      if (style.fill === "none" || x < around.left || x > around.right || y < around.top || y > around.bottom) continue;
      back = over(rgba(style.fill), Number(style.fillOpacity) * Number(style.opacity), back);
    }
    note(node.data, rgba(getComputedStyle(parent).fill), back);
  }
  return found;
}"""


def problems(found: Opened) -> list[str]:
    """What the browser said or asked for, a page that is wider than the screen, and figures that are not drawn."""
    scroll, width = found.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    wide = [f"{scroll} px on a screen of {width}"] if scroll > width else []
    figures = found.page.evaluate(DRAWN)
    blank = [
        f"figure {number}: {cuts}"
        for number, cuts in enumerate(figures)
        if len(cuts) != 1 or min(cuts[0][:2]) < 40 or cuts[0][2] < 10 or cuts[0][3] < 3 or cuts[0][4]
    ]
    return [*found.said, *wide, *blank]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_a_report_opens_whole_without_an_error(
    name: str, width: int, scheme: str, pages: dict[str, Path], opened: Open
) -> None:
    found = opened(pages[name], width, scheme)
    assert problems(found) == []
    if name == "study":  # a real sweep of 22 points, as it was committed
        assert [part for part in SECTIONS if not found.page.locator(f"#{part} figure").count()] == []
    else:
        assert found.page.locator("figure").count() == FIGURES[name]
    faint = [(round(ratio, 2), words) for ratio, words in found.page.evaluate(CONTRAST) if ratio < 4.5]
    assert faint == []
    OUT.mkdir(parents=True, exist_ok=True)
    picture = OUT / f"report-{name}-{width}-{scheme}.png"
    found.page.screenshot(path=str(picture), full_page=True)
    assert picture.stat().st_size > 20_000


@pytest.mark.parametrize("name", NAMES)
def test_a_report_opens_within_two_seconds(name: str, pages: dict[str, Path], opened: Open) -> None:
    seconds = min(opened(pages[name]).seconds for _ in range(3))
    print(f"{name}: {seconds:.2f} s, {pages[name].stat().st_size / 1e6:.2f} MB")
    assert seconds < 2


@pytest.mark.parametrize("name", NAMES)
def test_a_report_prints_on_paper_in_light_colours(name: str, pages: dict[str, Path], opened: Open) -> None:
    found = opened(pages[name], scheme="dark")
    printed = OUT / f"report-{name}.pdf"
    OUT.mkdir(parents=True, exist_ok=True)
    found.page.pdf(path=str(printed), format="A4", margin=dict.fromkeys(("top", "bottom", "left", "right"), "12mm"))
    assert printed.read_bytes().startswith(b"%PDF")
    found.page.emulate_media(media="print")
    found.page.set_viewport_size({"width": 700, "height": 990})  # the width of A4 less its margins
    assert found.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(252, 251, 249)"
    assert problems(found) == []
    hidden = "[...document.querySelectorAll('details')].filter(one => !one.lastElementChild.checkVisibility()).length"
    assert found.page.evaluate(hidden) == 0  # what is folded on a screen is open on paper
    cut = "[...document.querySelectorAll('.text')].filter(one => one.scrollHeight > one.clientHeight + 1).length"
    assert found.page.evaluate(cut) == 0  # paper does not scroll
    leaves = len(re.findall(rb"/Type /Page\b", printed.read_bytes()))
    print(f"{name}: {leaves} pages")
    assert 2 < leaves < 200


def test_what_is_wrong_with_a_page_is_found(opened: Open, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<script>console.error('a fault'); alert('hello'); undefined_name()</script><img src='https://example.com/a.png'>"
        "<div style='width: 2000px'>wide</div><figure><svg role='img' width='200' height='100' overflow='visible'>"
        "<text x='190' y='9'>sticks out</text></svg></figure>"
    )
    found = " ".join(problems(opened(page)))
    for words in (
        "error: a fault",
        "dialog hello",
        "undefined_name is not defined",
        "asks for https://example.com/a.png",
    ):
        assert words in found
    assert "2008 px on a screen of 1280" in found
    assert "figure 0: [[200, 100, 1, 1, 'sticks out']]" in found


def test_the_contrast_that_is_measured_is_that_of_the_colours(opened: Open, tmp_path: Path) -> None:
    """#777 on white has 4.48, black on white 21; a white letter on a black shape in a figure 21, one beside it 1."""
    page = tmp_path / "page.html"
    letters = '<text x="20" y="30" fill="white">in</text><text x="70" y="30" fill="white">beside</text>'
    shapes = f'<svg width="99" height="50"><path d="M0 0H50V50H0z"/>{letters}</svg>'
    page.write_text(f'<body style="background: white"><p style="color: #777">a</p><p style="color: #000">b</p>{shapes}')
    found = [(words, round(ratio, 2)) for ratio, words in opened(page).page.evaluate(CONTRAST)]
    assert found == [("a", 4.48), ("b", 21.0), ("in", 21.0), ("beside", 1.0)]


@pytest.mark.parametrize(("name", "many"), [("hostile", 7), ("hostile sweep", 4)])
def test_hostile_texts_are_shown_as_text(name: str, many: int, pages: dict[str, Path], opened: Open) -> None:
    assert pages[name].stat().st_size < 5_000_000
    found = opened(pages[name])
    texts = found.page.locator(".text").all_text_contents()
    shown = [text for text in texts if text.startswith("<script>")]
    assert shown == [HOSTILE[0]] * len(shown)
    assert len(shown) >= (6 if name == "hostile" else 3)  # prompt, chosen and rejected, of two rounds
    assert many < len(HOSTILE) or HOSTILE[1] in texts
    assert r"NUL \x00 ESC \x1b[31mred\x1b[0m BEL \x07 DEL \x7f CSI \x9b31m return \x0d tab" + " \t end" in texts
    word = next(text for text in texts if text.startswith("xxx"))
    assert 1_000 < len(word) < 100_000
    assert "characters" in found.page.locator(".text + .role").first.text_content()
    assert found.page.evaluate("document.querySelectorAll('script, .text *, img, iframe').length") == 0
    assert found.said == []


def test_right_to_left_texts_do_not_turn_the_page_around_them(opened: Open, tmp_path: Path) -> None:
    """What stands around a text stands where it does around a plain one."""
    places: list[list[float]] = []
    for name, text in (("plain", "plain"), ("turned", "\u202e\u2067\u05e9\u05dc\u05d5\u05dd \u202e")):
        path = report.write(make_run(tmp_path / name, "select", n_prompts=2, texts=[text]))
        page = opened(path).page
        boxes = "document.querySelectorAll('.prompt .ordinal, .prompt .measure, .prompt h3, .prompt h3 span')"
        where = f"[...{boxes}].map(one => one.getBoundingClientRect()).flatMap(box => [box.x, box.width])"
        places.append(page.evaluate(where))
    assert len(places[0]) == 2 * 2 * 6  # of two prompts: number, z, and the two headings with their rewards
    assert places[0] == pytest.approx(places[1], abs=0.5)


def test_half_a_surrogate_pair_in_a_manifest_is_shown_as_its_code(opened: Open, tmp_path: Path) -> None:
    manifest = make_run(tmp_path, "select")
    manifest.write_text(manifest.read_text().replace("python run.py", "\\ud83d <b>run.py</b>\\u0000"))
    found = opened(report.write(manifest))
    assert found.page.locator("pre").first.text_content().startswith("\\ud83d <b>run.py</b>\\x00")
    assert problems(found) == []


def test_hostile_names_and_messages_are_shown_as_text(opened: Open, tmp_path: Path) -> None:
    """Of a judge, an override, a command, and a job that failed: markup, control characters, 100 kB of one word."""
    name = HOSTILE[0] + "\u202e\x1b" + WORD
    manifest = make_run(tmp_path / "run")
    facts = json.loads(manifest.read_text())
    facts["evaluations"][0]["judges"][0]["name"] = name
    manifest.write_text(json.dumps({**facts, "command": name, "warnings": [name]}))
    made = make_sweep(tmp_path / "sweep", [("max", "min"), ("random", "random")])
    jobs = [replace(job, overrides=(*job.overrides, f"data.path={name}{job.number}")) for job in made.jobs]
    sweep = replace(made, command=name, jobs=tuple(jobs))
    found = {0: Outcome("failed", name, "", ""), 1: Outcome("done", "", "", "")}
    for path in (report.write(manifest), collect.write(sweep, found)[-1]):
        page = opened(path, width=390)
        assert problems(page) == []
        assert HOSTILE[0] in page.page.locator("pre").first.text_content()
        assert path.stat().st_size < 5_000_000
