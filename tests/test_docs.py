"""The documentation: the site builds without a warning, its links resolve, and what it says of the code is so."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import run
from sweetspot.distribution import expected_position
from sweetspot.exchange.command import parser as store_parser
from sweetspot.losses import LOSSES
from tests.pages import DOCS, ROOT, commands, files

CONF = ROOT / "conf"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if "configuration/" not in str(path))
pytestmark = pytest.mark.xdist_group("docs")  # one build of the site


class Page(HTMLParser):
    """What a page refers to, and the places in it that can be referred to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.parts: list[str] = []  # what the browser loads by itself
        self.ids: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(  # noqa: D102 - HTMLParser's
        self, tag: str, attrs: list[tuple[str, str | None]]
    ) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given["id"]} if "id" in given else set()
        if "href" in given:
            (self.parts if tag == "link" else self.links).append(given["href"])
        if "src" in given:
            self.parts.append(given["src"])

    def handle_data(self, data: str) -> None:  # noqa: D102
        self.words.append(data)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """The pages of the site, built from nothing with warnings as errors."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(out / "doctrees"), "docs"]
    built = subprocess.run([*command, str(out / "html")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    html = out / "html"
    return {str(path.relative_to(html)): Page(path.read_text()) for path in sorted(html.rglob("*.html"))} | {
        str(path.relative_to(html)): Page("") for path in html.rglob("*") if path.is_file() and path.suffix != ".html"
    }


def target(page: str, link: str) -> tuple[str, str]:
    """The page and the place in it that a link of a page leads to."""
    parts = urlsplit(link)
    path = (Path(page).parent / unquote(parts.path)) if parts.path else Path(page)
    return str(Path("/", path).resolve().relative_to("/")), unquote(parts.fragment)


def test_every_link_resolves_and_nothing_is_loaded_from_elsewhere(site: dict[str, Page]) -> None:
    broken = []
    for name, page in site.items():
        assert not [part for part in page.parts if urlsplit(part).netloc]
        inner = [link for link in [*page.links, *page.parts] if not urlsplit(link).scheme and link != "#"]
        for link in inner:
            there, place = target(name, link)
            if there not in site or (place and place not in site[there].ids):
                broken.append((name, link))
    assert broken == []


def test_every_page_is_reached_from_the_first(site: dict[str, Page]) -> None:
    reached, waiting = set[str](), ["index.html"]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting += [
            there
            for link in site[name].links
            if not urlsplit(link).netloc and (there := target(name, link)[0]) in site and there not in reached
        ]
    written = {page.removesuffix(".md") + ".html" for page in PAGES}
    written |= {f"configuration/{group.name}.html" for group in CONF.iterdir() if group.is_dir()}
    assert written - reached == set()


def keys(part: Any, at: str = "") -> Iterator[str]:
    """The dotted paths of all keys."""
    for name, value in part.items():
        yield f"{at}{name}"
        if isinstance(value, dict):
            yield from keys(value, f"{at}{name}.")


@pytest.mark.parametrize("group", ["config", *sorted(path.name for path in CONF.iterdir() if path.is_dir())])
def test_the_configuration_reference_has_every_choice_and_key_with_its_comment(
    site: dict[str, Page], group: str
) -> None:
    words = site[f"configuration/{group}.html"].words
    text = "".join(words)
    for path in [CONF / "config.yaml"] if group == "config" else sorted((CONF / group).glob("*.yaml")):
        lines = path.read_text().splitlines()
        place = {"judge": "judge@eval.judge", "config": ""}.get(group, group)
        assert group == "config" or f"{place}={path.stem}" in words
        package = re.match("# @package (.+)", lines[0])
        prefix = f"{package[1] if package else place.rpartition('@')[2]}.".removeprefix("_global_.").lstrip(".")
        plain = yaml.safe_load("\n".join(lines)) or {}
        plain.pop("defaults", None)
        missing = [key for key in keys(plain) if f"{prefix}{key}" not in (text if " " in key else words)]
        assert missing == []
        for line in lines:
            if found := re.match(r"\s*[\w.]+:\s.*\s#\s(\w[\w ]*)", line):
                assert found[1] in text


@pytest.fixture(scope="module")
def reference() -> Any:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference"] = module
    spec.loader.exec_module(module)
    return module


def test_a_key_has_the_comment_above_it_beside_it_and_below_it(reference: Any) -> None:
    text = """# Opening.
defaults:
  - other                               # a parent
  - /judge@judge: gpt
                                        # on the next line
_target_: a.B
# Above it.
rate: 0.5 # beside it,
                                        # and below it (unit)
inner:                                  # the mapping
  name: "a # b"                         # (text)
  many: >-                              # (values)
    one,
    two
last: [1, 2]
"""
    found = {key.path: (key.value, key.comment) for key in reference.keys_of(text)}
    assert found == {
        "defaults[0]": ("other", "a parent"),
        "defaults[1]": ("/judge@judge: gpt", "on the next line"),
        "_target_": ("a.B", ""),
        "rate": ("0.5", "Above it. beside it, and below it (unit)"),
        "inner": ("", "the mapping"),
        "inner.name": ('"a # b"', "(text)"),
        "inner.many": ("one, two", "(values)"),
        "last": ("[1, 2]", ""),
    }


def test_a_page_of_the_reference_goes_when_its_group_is_gone_and_stays_untouched_when_nothing_changed(
    reference: Any, tmp_path: Path
) -> None:
    (tmp_path / "conf" / "speed").mkdir(parents=True)
    (tmp_path / "conf" / "config.yaml").write_text("# All.\ndefaults:\n  - speed: fast # how *fast*\nn: 1 # (count)\n")
    (tmp_path / "conf" / "speed" / "fast.yaml").write_text("# Fast.\n# python run.py speed=fast\nrate: ??? # (Hz)\n")
    reference.write(tmp_path / "conf", tmp_path / "out")
    page = (tmp_path / "out" / "speed.md").read_text()
    assert page.startswith(
        "# `speed`\n\nHow \\*fast\\*. Without a choice: `fast`.\n\n## `speed=fast`\n\nFast.\n\n```text"
    )
    assert "`speed.rate` = `???`\n: **must be given**: (Hz)" in page
    before = (tmp_path / "out" / "speed.md").stat().st_mtime_ns
    (tmp_path / "out" / "gone.md").write_text("")
    reference.write(tmp_path / "conf", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.md", "speed.md"]
    assert (tmp_path / "out" / "speed.md").stat().st_mtime_ns == before


def shown() -> list[tuple[str, str]]:
    """Every run.py command of the pages and the README, with where it stands."""
    found = [(page, shlex.join(words)) for page in PAGES for words in commands(page)]
    found += [("reproduction.md", line) for line in re.findall(r"`(python run.py [^`]+)`", read("reproduction.md"))]
    readme = (ROOT / "README.md").read_text()
    found += [
        ("README.md", shlex.join(shlex.split(line, comments=True)))
        for line in re.findall("^    (python run.*)", readme, re.M)
    ]
    return [(page, line) for page, line in dict.fromkeys(found) if "python run.py" in line]


def read(page: str) -> str:
    return (DOCS / page).read_text()


@pytest.mark.parametrize(("page", "line"), shown(), ids=lambda part: part)
def test_every_run_py_command_that_is_shown_composes_and_builds(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert page
    if {"--help", "..."} & set(words := line.partition("run.py")[2].split()):
        return
    for name, text in [one for how_to in PAGES if how_to.startswith("how-to") for one in files(how_to).items()]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "conf" / "launcher").mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "slurm" / "my_cluster.yaml", tmp_path / "conf" / "launcher")  # as the tutorial says
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    given = OverridesParser.create().parse_overrides([word for word in shlex.split(" ".join(words)) if word != "-m"])
    first = [
        f"{one.get_key_element()}={next(one.sweep_string_iterator())}" if one.is_sweep_override() else one.input_line
        for one in given
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain: Any = OmegaConf.to_container(compose("config", first), resolve=True, throw_on_missing=True)
    assert isinstance(run.settings_of(plain), run.Settings)


def test_every_file_and_test_that_a_page_names_is_there() -> None:
    missing = []
    for page in PAGES:
        for path, test in re.findall(r"`((?:tests|sweetspot|experiments|conf|slurm)/[\w./]*)(?:::(\w+))?`", read(page)):
            there = ROOT / path
            own = page.startswith("how-to") and path in {name for other in PAGES for name in files(other)}
            if own or path == "conf/launcher/my_cluster.yaml":
                continue
            if not there.exists() or (test and f"def {test}(" not in there.read_text()):
                missing.append((page, path, test))
    assert missing == []


def test_the_commands_page_names_every_command_and_option() -> None:
    page = read("commands.md")
    helps = [store_parser().format_help()]
    actions = store_parser()._subparsers._group_actions[0].choices  # pyright: ignore
    helps += [one.format_help() for one in actions.values()]
    for words in (
        "sweetspot.sweep",
        "sweetspot.sweep status",
        "sweetspot.sweep calibrate",
        "sweetspot.eval compare",
        "experiments.pair_grid",
    ):
        command = [sys.executable, "-m", *words.split(), "--help"]
        helps.append(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert sorted(actions) == sorted(re.findall(r"^\| `(\w+)`", page, re.M))
    for text in helps:
        usage = text.partition("\n\n")[0]
        for option in set(re.findall(r"--[a-z-]+", usage)) - {"--help"}:
            assert f"`{option}" in page, option


def test_the_table_of_a_normal_pool_is_that_of_the_code() -> None:
    rows = re.findall(
        r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+)% \|$", read("method.md"), re.M
    )
    assert [int(row[0]) for row in rows] == [5, 20, 50, 100, 200, 400]
    for size, highest, spread, to_five, bound, share in rows:
        n = int(size)
        best = expected_position("max", n).z
        assert float(highest) == round(best, len(highest.partition(".")[2]))
        assert spread == f"{2 * best:.2f}"
        assert to_five == f"{best - expected_position('min_of_5', n).z:.2f}"
        assert float(bound) == pytest.approx((n - 1) / n**0.5, abs=0.0051)
        assert float(share) == pytest.approx(100 * expected_position("mu-2sigma", n).share_min, abs=0.6)


def test_the_method_has_every_loss() -> None:
    assert re.findall(r"^\| `(\w+)` \| \$", read("method.md"), re.M) == list(LOSSES)


def test_the_readme_names_every_strategy_and_evaluation_and_its_tree_is_the_tree() -> None:
    readme = (ROOT / "README.md").read_text()
    named = re.findall(r"^\| `(\w+)` \| (\S+), (\S+) \|", readme, re.M)
    plain = {name: yaml.safe_load((CONF / "strategy" / f"{name}.yaml").read_text()) for name, *_ in named}
    assert [(one["chosen"], one["rejected"]) for one in plain.values()] == [tuple(pair) for _, *pair in named]
    assert {"random", "max_min", "scalable", "mu_minus_2sigma"} <= plain.keys()
    tree = readme.partition("## The tree")[2]
    top = re.findall(r"^    ([\w./]+) ", tree, re.M)
    assert [name for name in top if not (ROOT / name).exists()] == []
    inside = re.findall(r"^      ([\w./]+) ", tree, re.M)
    assert [name for name in inside if not (ROOT / "sweetspot" / name).exists()] == []
    for path in (ROOT / "sweetspot").iterdir():
        if path.is_dir() or (path.suffix == ".py" and path.stem != "__init__"):
            assert path.name == "__pycache__" or re.search(rf"\b{path.stem}\b", tree), path
    links = re.findall(r"\]\(([^)#]+)\)", readme)
    assert [link for link in links if not (ROOT / link).exists()] == []
    rooms = {path.stem for path in (CONF / "eval").glob("*.yaml")} - {"held_out_study", "held_out_tiny"}
    assert [name for name in rooms if f"`{name}`" not in read("evaluating.md")] == []
