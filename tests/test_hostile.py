"""Hostile text stays text: on the terminal, in Markdown, CSV, Parquet, data cards and W&B. Half a surrogate pair, which
UTF-8 cannot hold, becomes its escape where it is read."""

import html
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from experiments import output
from sweetspot import manifest as manifests
from sweetspot import progress, report
from sweetspot.component import key
from sweetspot.data import LocalFile
from sweetspot.eval import alpaca, ifeval, reward_bench, worker
from sweetspot.eval.answers import Answers
from sweetspot.eval.ifeval import IFEval
from sweetspot.exchange import command
from sweetspot.report import summary
from sweetspot.report.runs import Point
from sweetspot.schema import prompt_id
from sweetspot.sft import Conversations
from sweetspot.stages.cautions import cautions
from sweetspot.stages.evaluation import check
from sweetspot.store import Store
from sweetspot.sweep import collect
from sweetspot.sweep import folder as folders
from sweetspot.sweep.command import main as sweep_command
from sweetspot.sweep.outcome import Outcome
from sweetspot.visible import in_markdown, one_line, visible
from tests import tiny
from tests.hostile import ESCAPED, HALF, HOSTILE, STEERING
from tests.judge_server import JudgeServer
from tests.judging import job, judge, pairs, scores
from tests.reported import make_run, make_sweep
from tests.test_alpaca import evaluation as alpaca_eval
from tests.test_logger import ROOT, opened
from tests.test_sweep_command import status, sweep_of

EACH = pytest.mark.parametrize("text", [*HOSTILE.values(), HALF], ids=[*HOSTILE, "half a pair"])
SHORT = {name: text for name, text in HOSTILE.items() if name != "one word"}


def is_plain(text: str) -> bool:
    """Whether nothing in the text steers a terminal or cannot be encoded."""
    text.encode()
    return not [one for one in STEERING if one in text]


def rendered(markdown: str) -> str:
    """Markdown as HTML, with tables and HTML of one's own, as GitHub takes it."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)


def local(path: Path, *texts: str) -> LocalFile:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return LocalFile(path=str(path), held_out_path=None, held_out_share=0.0, limit=None, held_out_limit=None)


@EACH
def test_visible_text_is_plain_and_ordinary_text_stays(text: str) -> None:
    assert is_plain(visible(text))
    assert visible("Zoë, 東京, \U0001f600 e\u0301\n\tמה") == "Zoë, 東京, \U0001f600 e\u0301\n\tמה"
    assert visible("\x1b[1m\u202e\ud83d") == "\\x1b[1m\\u202e\\ud83d"


@EACH
def test_markdown_shows_a_text_as_it_is(text: str) -> None:
    page = rendered(f"| a | b |\n|---|---|\n| {in_markdown(text)} | end |\n\n- {in_markdown(text)}\n")
    assert re.findall(r"<(?!/)([a-z]+)", page) == [
        "table",
        "thead",
        "tr",
        "th",
        "th",
        "tbody",
        "tr",
        "td",
        "td",
        "ul",
        "li",
    ]
    shown = re.search(r"<td>(.*)</td>\n<td>end</td>", page)
    assert shown and html.unescape(shown[1]) == one_line(text)


@pytest.mark.parametrize(
    "text", ["# x", "## x", "###### x", "#", "- x", "- - -", "+ x", "+", "-", "---", "=", "===", "1. x", "12) x", "3."]
)
def test_markdown_of_a_line_of_its_own_is_no_heading_list_or_rule(text: str) -> None:
    for before in ("", "words\n"):
        assert rendered(before + in_markdown(text)) == f"<p>{before}{text}</p>\n"


@pytest.mark.parametrize("text", ["https://x.example/a", "see WWW.x.example", "FTP://x", "(_www.x.example"])
def test_markdown_of_an_address_is_no_link(text: str) -> None:
    """GitHub links an address by these signs, and no address in which they are escaped."""
    shown = in_markdown(text)
    assert not re.search(r"[a-z]://|www\.", shown, re.IGNORECASE)
    assert rendered(shown) == f"<p>{text}</p>\n"


def test_ordinary_words_of_a_table_have_no_escapes() -> None:
    words = "n_samples=8,strategy=mu_minus_2sigma (max, mu-2sigma) +0.25 -1.5 runs/a-b_c/log.txt"
    assert in_markdown(words) == words


@EACH
def test_a_comparison_with_the_paper_shows_the_names_of_others_as_they_are(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = output.Found({}, beside=[output.Beside(text, "not reported", f"0.5 {text}")])
    page = rendered(output.comparison(found))
    assert page.count("<td>") == 3
    assert html.unescape(re.findall(r"<td>(.*?)</td>", page)[0]) == one_line(text)
    output.show(found, "a study")
    assert is_plain(capsys.readouterr().out)


def test_prompts_are_stored_as_they_are(tmp_path: Path) -> None:
    loaded = local(tmp_path / "p.jsonl", *HOSTILE.values()).load().train
    pq.write_table(loaded, tmp_path / "prompts.parquet")
    read = pq.read_table(tmp_path / "prompts.parquet").to_pylist()
    assert [row["messages"][0]["content"] for row in read] == list(HOSTILE.values())


def test_half_a_surrogate_pair_in_a_prompt_stands_there_as_its_escape_and_is_told_of(tmp_path: Path) -> None:
    loaded = local(tmp_path / "p.jsonl", "fine", HALF, HOSTILE["emoji"], ESCAPED[:-1]).load()
    texts = [row["messages"][0]["content"] for row in loaded.train.to_pylist()]
    assert texts == ["fine", ESCAPED, HOSTILE["emoji"], ESCAPED[:-1]]
    assert loaded.train["prompt_id"][0].as_py() == prompt_id([{"role": "user", "content": "fine"}])
    words = (
        "data: 1 text held half of a surrogate pair, which UTF-8 cannot hold; it stands there as its escape, such as "
    )
    assert cautions(None, 16, loaded) == [words + "\\ud83d"]
    assert local(tmp_path / "p.jsonl", *HOSTILE.values()).load().halves == 0


def test_half_a_surrogate_pair_in_a_conversation_of_sft_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"role": "user", "content": HALF}, {"role": "assistant", "content": HALF}]
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    (loaded,) = Conversations(path=str(tmp_path / "c.jsonl"), revision=None, split="train", limit=None).load()
    assert [turn["content"] for turn in loaded] == [ESCAPED, ESCAPED]
    assert "warning: model.sft.data: 2 texts held half of a surrogate pair" in capsys.readouterr().err


def test_half_a_surrogate_pair_in_a_benchmark_stands_there_as_its_escape_and_is_counted(tmp_path: Path) -> None:
    rows = [{"instruction": f"Question {row}", "output": "a"} for row in range(804)]
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": HALF, "output": HALF, "generator": "g"}, *rows]))
    baseline = alpaca.read_baseline(tmp_path / "a.json", 2)
    assert (baseline.instructions, baseline.outputs) == ([ESCAPED, "Question 0"], [ESCAPED, "a"])
    assert baseline.halves == 2
    pairs = [{"prompt": HALF, "chosen": "b", "rejected": HALF}]
    (tmp_path / "r.jsonl").write_text(json.dumps(pairs[0]) + "\n")
    listed = reward_bench.rows("mine", tmp_path / "r.jsonl")
    assert list(reward_bench.of_rows("mine", listed)) == [reward_bench.Pair("mine", ESCAPED, "b", ESCAPED)]


def test_half_a_surrogate_pair_in_an_instruction_that_is_checked_is_told_of(tmp_path: Path) -> None:
    row = {"prompt": HALF, "instruction_id_list": ["x"], "kwargs": [{}]}
    (tmp_path / "i.jsonl").write_text(json.dumps(row) + "\n")
    evaluation = IFEval(
        sampler=alpaca_eval(tmp_path).sampler, path=str(tmp_path / "i.jsonl"), limit=None, resamples=1000
    )
    assert ifeval.read(evaluation)[0] == [{**row, "prompt": ESCAPED}]
    (line,) = check({"followed": evaluation})
    assert line.startswith("followed: 1 text held half of a surrogate pair")


def test_half_a_surrogate_pair_in_an_answer_of_a_judge_stands_there_as_its_escape_and_is_told_of(
    tmp_path: Path,
) -> None:
    """In the name that it says it is served by, and in what it says."""

    class Half(JudgeServer):
        def completion(self, body: dict[str, Any], kind: str) -> dict[str, Any]:
            found = super().completion(body, kind)
            found["choices"][0]["message"]["content"] += HALF
            return {**found, "model": HALF}

    with Half() as server:
        worker.main(job(pairs(3), judge(server.url), tmp_path), lambda _: None)
    _, metrics = scores(tmp_path)
    assert metrics["spent"]["served_by"] == [ESCAPED]
    assert metrics["text_warning"].startswith("judge loopback: 9 texts held half of a surrogate pair")  # 3 of an answer
    kept = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert {row["model"] for row in kept} == {ESCAPED}


def test_a_manifest_and_its_report_show_half_a_surrogate_pair_as_its_escape(tmp_path: Path) -> None:
    """Of a judge, a warning and a key, whoever wrote the manifest."""
    path = make_run(tmp_path)
    facts = json.loads(path.read_text())
    facts["evaluations"][0]["judges"][0]["name"] = HALF
    facts |= {"warnings": [HALF], HALF: 1}
    manifests.write(path, facts)
    assert manifests.read(path)["evaluations"][0]["judges"][0]["name"] == ESCAPED
    assert is_plain(path.read_text(encoding="utf-8"))
    assert json.loads(path.read_text())[ESCAPED] == 1
    ours = report.write(path).read_text(encoding="utf-8")
    path.write_text(json.dumps(facts))
    assert report.write(path).read_text(encoding="utf-8") == ours
    assert f"{ESCAPED}</text>" in ours  # in the figure


def test_a_sweep_shows_half_a_surrogate_pair_as_its_escape(tmp_path: Path) -> None:
    """In the overrides by which its points are named, and in the name of an evaluation, which is one of columns."""
    sweep = make_sweep(tmp_path, [("max", "min"), ("random", "random")])
    jobs = [replace(one, overrides=(*one.overrides, f"eval.name={HALF}{one.number}")) for one in sweep.jobs]
    for own in jobs:
        path = sweep.path(own) / "manifest.json"
        facts = json.loads(path.read_text())
        facts["evaluations"][0]["name"] = HALF
        path.write_text(json.dumps(facts))
    done = {own.number: Outcome("done", "", "", "") for own in jobs}
    table, _, page = collect.write(replace(sweep, jobs=tuple(jobs)), done)
    assert f"evaluations/{ESCAPED}/n_prompts" in pq.read_table(table).column_names
    assert ESCAPED in page.read_text(encoding="utf-8")


def test_a_study_writes_half_a_surrogate_pair_as_its_escape(tmp_path: Path) -> None:
    """In tables, in the manifests and in every kind of word of a figure."""
    figure = output.figure()
    axes = figure.subplots()
    output.heat(axes, np.zeros((1, 1)), [HALF], [HALF], 0.0)
    axes.plot([0], [0], label=HALF)
    axes.set(title=HALF, xlabel=HALF)
    axes.legend()
    point = Point(tmp_path, {"config": {"store": HALF}, "warnings": [HALF]})
    output.write(output.Found({"t": [{HALF: HALF, "number": 1}]}, {"f": figure}), [point], tmp_path)
    assert pq.read_table(tmp_path / "t.parquet").to_pylist() == [{ESCAPED: ESCAPED, "number": 1}]
    assert csv.read_csv(tmp_path / "t.csv").to_pylist() == [{ESCAPED: ESCAPED, "number": 1}]
    (line,) = (tmp_path / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    assert (json.loads(line)["store"], json.loads(line)["warnings"]) == (ESCAPED, [ESCAPED])
    assert (tmp_path / "f.svg").read_text(encoding="utf-8").count(f"{ESCAPED}</text>") == 5


def test_a_setting_with_half_a_surrogate_pair_has_a_key_and_a_place_in_the_store(tmp_path: Path) -> None:
    assert len({key(HALF), key(ESCAPED), key("Rosebud \ud83e")}) == 3
    folder = Store(tmp_path).artefact("scores", "k", {"judge": HALF})
    assert json.loads((folder / "meta.json").read_text(encoding="utf-8"))["judge"] == HALF


@EACH
def test_what_a_judge_says_is_kept_as_it_is(text: str, tmp_path: Path) -> None:
    answers = Answers(tmp_path / "answers.jsonl")
    answers.add("k", {"text": text})
    answers.close()
    assert Answers(tmp_path / "answers.jsonl").by_key["k"]["text"] == text


def test_an_error_line_is_plain(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"\x1b[31m\u202e[/]": "x"}) + "\n", encoding="utf-8")
    words = ["data=jsonl", f"data.path={tmp_path}/p.jsonl", f"hydra.run.dir={tmp_path}/run", f"store={tmp_path}/store"]
    ended = subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert is_plain(ended.stderr)
    assert len(ended.stderr.splitlines()) == 1
    assert "line 1 must be an object with `messages` or `prompt`" in ended.stderr


def test_a_store_is_listed_and_exported_plainly_whatever_its_parts_are_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_policy: Path
) -> None:
    """An import of hostile responses, by a model and from a file of hostile names."""
    model = tmp_path / "m[bold]x[[]]\x1b[31m\u202e`**a** <b>"
    model.symlink_to(tiny_policy)
    file = tmp_path / "f`[bold]<script>\u202e.jsonl"
    texts = list(SHORT.values())
    file.write_text("".join(json.dumps({"prompt": text, "responses": texts}) + "\n" for text in texts))
    place = str(tmp_path / "store")
    assert command.main(["--store", place, "import", str(file), "--model", str(model)]) == 0
    for words in (["ls"], ["ls", "--json"], ["du"], ["verify"]):
        assert command.main(["--store", place, *words]) == 0
    (pool,) = (path.name for path in (tmp_path / "store" / "samples").iterdir())
    assert command.main(["--store", place, "export", "samples", pool, str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert is_plain(said.out + said.err)
    assert "m[bold]x[[]]\\x1b[31m\\u202e`**a** <b>" in said.out
    rows = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    assert {row["response"] for row in rows} == set(texts)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert is_plain(card)
    page = rendered(card.split("---\n", 2)[2])
    assert set(re.findall(r"<(?!/)([a-z0-9]+)", page)) <= {"h1", "h2", "p", "ul", "li", "code", "pre"}
    assert html.escape("f`[bold]<script>\\u202e.jsonl", quote=False) in page


@EACH
def test_the_card_of_a_model_shows_names_and_values_as_text(text: str) -> None:
    pytest.importorskip("torch")
    from sweetspot.trainer.history import model_card

    history = [{"step": 1, "loss": 0.7, "rewards/margin": 0.0, "rewards/accuracy": 0.5}]
    facts = {"title": text, "strategy": f"a|b {text}", f"| {text}": "<script>alert(1)</script>", "reward_model": "rm_1"}
    card = model_card(facts, tiny.dpo(), {"pairs": 10}, history)
    assert is_plain(card)
    page = rendered(card.split("---\n", 2)[2])
    assert set(re.findall(r"<(?!/)([a-z0-9]+)", page)) <= {"h1", "h2", "table", "thead", "tbody", "tr", "th", "td"}
    cells = [line.count("<td>") for line in page.split("<tr>")[1:] if "<td>" in line]
    assert set(cells) == {2}
    assert "| reward_model | rm_1 |\n| pairs | 10 |\n" in card


def test_half_a_surrogate_pair_in_an_import_stands_there_as_its_escape_and_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_policy: Path
) -> None:
    file, place = tmp_path / "rows.jsonl", str(tmp_path / "store")
    file.write_text("".join(json.dumps({"prompt": p, "responses": ["a", p]}) + "\n" for p in ("fine", HALF)))
    for _ in ("made", "there already"):
        assert command.main(["--store", place, "import", str(file), "--model", str(tiny_policy)]) == 0
        assert "warning: import: 2 texts held half of a surrogate pair" in capsys.readouterr().err
    assert command.main(["--store", place, "verify"]) == 0
    (tile,) = (tmp_path / "store" / "samples").glob("*/*-00000.parquet")
    assert {*pq.read_table(tile)["response"].to_pylist()} == {"a", "fine", ESCAPED}
    (prompts,) = (tmp_path / "store" / "samples").glob("*/prompts.parquet")
    assert [row[0]["content"] for row in pq.read_table(prompts)["messages"].to_pylist()] == ["fine", ESCAPED]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_sweep_tells_plainly_why_a_job_failed(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of(tmp_path, ["a=1", "a=2"])
    folders.write_status(sweep.path(sweep.jobs[0]), status("failed", text))
    folders.write_status(sweep.path(sweep.jobs[1]), status("done"))
    sweep_command(["collect", str(tmp_path)])
    sweep_command(["status", str(tmp_path)])
    assert is_plain(capsys.readouterr().out)
    page = rendered((tmp_path / "sweep.md").read_text(encoding="utf-8"))
    assert page.count("<tr>") == 3
    assert set(re.findall(r"<(?!/)([a-z0-9]+)", page)) == {"table", "thead", "tbody", "tr", "th", "td"}
    (found,) = pq.read_table(tmp_path / "sweep.parquet").filter(pa.compute.field("number") == 0).to_pylist()
    assert found["reason"] == visible(text)


@pytest.mark.parametrize("terminal", [True, False])
@EACH
def test_progress_is_plain(
    text: str, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", -1.0)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.bar(text) as show:
        show({0: {"done": 1, "total": 2, "unit": "tiles", "note": text}})
    said = capsys.readouterr().err
    said.encode()
    assert "\x1b]0" not in said and "\x9b" not in said and "\u202e" not in said
    assert terminal or is_plain(said)


@EACH
def test_the_summary_on_the_terminal_is_plain(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    stage = {"name": text, "made": 1, "reused": 0, "seconds": 1.0, "unit": "tiles"}
    Console().print(summary({"stages": [stage], "rounds": [], "evaluations": [], "warnings": [text]}))
    said = capsys.readouterr().out
    assert is_plain(said)
    assert "Rosebud" in said


def test_a_csv_gives_every_text_back(tmp_path: Path) -> None:
    rows = [{"text": text, "number": 1.5} for text in HOSTILE.values()]
    output.write(output.Found({"t": rows}), [], tmp_path)
    options = csv.ParseOptions(newlines_in_values=True)
    read = csv.read_csv(tmp_path / "t.csv", parse_options=options, read_options=csv.ReadOptions(block_size=1 << 20))
    assert read["text"].to_pylist() == list(HOSTILE.values())
    assert pq.read_table(tmp_path / "t.parquet")["text"].to_pylist() == list(HOSTILE.values())


@pytest.mark.slow
def test_wandb_shows_hostile_texts_as_text(tmp_path: Path) -> None:
    """With `text` on: a table of all of them as they are (of half a pair there is none, see below), a name, a metric
    and a configuration too."""
    texts = list(HOSTILE.values())
    rows = [{"prompt_id": "p", "messages": [{"role": "user", "content": t}], "chosen": t} for t in texts]
    logs, sink = opened(tmp_path, {"note": HALF, "more": SHORT}, text=True, table_rows=100)
    sink.log({"note": HALF, "stage/x": 1})
    logs.table("pairs", pa.Table.from_pylist(rows))
    logs.close({}, [])
    assert logs.warnings == []
    (path,) = (tmp_path / "wandb").glob("offline-run-*/files/**/*.table.json")
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert [row[-1] for row in table["data"]] == [visible(text) for text in texts]
    assert [row[1] for row in table["data"]] == [f"user: {visible(text)}" for text in texts]
    assert visible(HOSTILE["escapes"]) != HOSTILE["escapes"]
    assert all(is_plain(cell) for row in table["data"] for cell in row)


def test_a_store_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    """The last line of defence: no table of ours takes half a surrogate pair."""
    with pytest.raises(UnicodeEncodeError):
        pa.Table.from_pylist([{"response": HALF}])
    assert Store(tmp_path / "store").root.exists()
