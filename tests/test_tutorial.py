"""The commands of docs/tutorial.md that can run here, typed at small models; a sweep at the first of its values."""

import json
import shutil
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sweetspot.eval import compare
from sweetspot.sweep import command
from tests import study
from tests.pages import DOCS, commands, files

TINY = ["size=tiny", "n_samples=8", "data.limit=6", "data.held_out_limit=3", "dpo.epochs=1", "eval.resamples=1000"]
pytestmark = pytest.mark.slow


def here() -> list[list[str]]:
    """The overrides of the run.py commands before the first that needs GPUs, dry runs left out."""
    text = (DOCS / "tutorial.md").read_text()
    there = text.partition("## 5.")[0]
    found = [words[2:] for words in commands("tutorial.md") if words[:2] == ["python", "run.py"]]
    return [
        words
        for words in found
        if " ".join(["python run.py", *words]).strip() in there and "launcher" not in str(words)
    ]


def first_of(words: list[str]) -> list[str]:
    """The overrides with the first value of each axis."""
    given = OverridesParser.create().parse_overrides([word for word in words if word != "-m"])
    return [
        f"{one.get_key_element()}={next(one.sweep_string_iterator())}"
        if one.is_sweep_override()
        else str(one.input_line)
        for one in given
    ]


def test_the_runs_and_sweeps_of_the_tutorial_go_from_prompts_to_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study.workers_here(monkeypatch, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree("tiny/policy", "my_model")
    Path("brevity.py").write_text(files("how-to/reward-model.md")["brevity.py"])
    rows = [
        {"prompt": f"Explain {thing}."} for thing in ("tides", "rain", "tea", "snow", "bread", "owls", "boats", "jam")
    ]
    Path("my_prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    typed = here()
    assert len(typed) == 10
    manifests = []
    for number, words in enumerate(typed):
        own = [word for word in first_of(words) if not word.startswith(("n_samples", "size", "experiment=pair_grid"))]
        chosen = {word.partition("=")[0] for word in own}
        rest = [word for word in TINY if word != "data.limit=6" or "experiment" not in chosen]
        manifests.append(study.run_point([*rest, *own], Path("runs", str(number))))
    for path in manifests:
        found = json.loads(path.read_text())
        assert found["rounds"][0]["policy"]["steps"] > 0
        assert len(found["evaluations"]) == 1

    study.sweep("tutorial", [[*TINY, f"strategy={name}"] for name in ("max_min", "random")])
    command.main(["status", "runs/tutorial"])
    command.main(["collect", "runs/tutorial"])
    assert "max_min" in Path("runs/tutorial/sweep.md").read_text()
    compare.main([str(manifests[0]), str(manifests[2]), "--out", "out"])
    assert list(Path("out").glob("*.md"))
    capsys.readouterr()
