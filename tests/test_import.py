"""Importing responses that were made elsewhere: the known shapes, what is refused, and what a pool of them holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweetspot.component import key
from sweetspot.data import Imported
from sweetspot.exchange import command
from sweetspot.exchange.importing import RefusedRowsError, Request, import_pool
from sweetspot.exchange.rows import BadRow, Fields, Row, fields_of, rows_of
from sweetspot.exchange.tokens import load
from sweetspot.logger import Logs
from sweetspot.model import Model, load_tokenizer, prompt_ids
from sweetspot.reward_model import ImportedReward
from sweetspot.schema import PROMPTS, SAMPLES, prompt_id
from sweetspot.stages import Rewards, Run, Samples, imported, score
from sweetspot.store import Store, read_tile
from tests import tiny

ANY: dict[str, str | None] = {"prompt": None, "responses": None, "rewards": None}
WHY = [{"role": "user", "content": "Why?"}]


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def user(value: Any, _: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def found(file: Path, asked: dict[str, str | None] = ANY) -> list[Row | BadRow]:
    return list(rows_of([file], fields_of([file], asked), user))


@pytest.fixture
def request_for(tiny_model: Model) -> Callable[..., Request]:
    def make(*files: Path, seed: int = 0, rendered: bool = False, skip_bad_rows: bool = False) -> Request:
        return Request(list(files), ANY, tiny_model, seed, rendered, skip_bad_rows)

    return make


def run_on(store: Store, folder: Path) -> Run:
    return Run(store, folder, tiny.launch(threads=1, devices=None, lease_seconds=60), Logs({}), remake_corrupt=False)


def pool_of(store: Store, pool: str, n: int, model: Model, folder: Path) -> tuple[Samples, Rewards]:
    data = Imported(
        store=str(store.root), pool=pool, held_out_path=None, held_out_share=0.0, limit=None, held_out_limit=1
    )
    prompts = data.load()
    assert prompts.pool == pool
    samples = imported(pool, prompts.train, model, n, run_on(store, folder))
    return samples, score(samples, ImportedReward(), run_on(store, folder))


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        (
            {"prompt": "Why?", "all_generated_responses": ["a", "b"], "all_rm_scores": [0.1, 0.2], "chosen": []},
            Fields("prompt", "all_generated_responses", "all_rm_scores"),
        ),
        (
            {"instruction": "Why?", "output": ["a", "b"], "scores": [0.1, 0.2]},
            Fields("instruction", "output", "scores"),
        ),
        (
            {"instruction": "Why?", "generations": ["a", "b"], "ratings": [0.1, 0.2], "model_names": ["x", "y"]},
            Fields("instruction", "generations", "ratings"),
        ),
        ({"messages": WHY, "responses": ["a", "b"], "scores": [0.1, 0.2]}, Fields("messages", "responses", "scores")),
        ({"prompt": WHY, "responses": ["a", "b"], "rewards": [0.1, 0.2]}, Fields("prompt", "responses", "rewards")),
    ],
    ids=["SimPO", "the authors", "distilabel", "messages", "plain"],
)
def test_the_known_shapes_are_found(tmp_path: Path, row: dict[str, Any], fields: Fields) -> None:
    file = jsonl(tmp_path / "a.jsonl", row)
    assert fields_of([file], ANY) == fields
    assert found(file) == [Row("a.jsonl row 1", prompt_id(WHY), WHY, ["a", "b"], [0.1, 0.2])]


def test_rows_of_one_response_each_are_joined_while_they_follow_one_another(tmp_path: Path) -> None:
    rows = [
        {"messages": [*WHY, {"role": "assistant", "content": text}], "score": {"a/rm": number}}
        for text, number in (("a", 0.5), ("b", 1.5))
    ]
    other = {
        "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "c"}],
        "score": {"a/rm": 2},
    }
    first, second, again = found(jsonl(tmp_path / "a.jsonl", *rows, other, rows[0]))
    assert isinstance(first, Row)
    assert (first.responses, first.rewards) == (["a", "b"], [0.5, 1.5])
    assert isinstance(second, Row)
    assert (second.responses, second.rewards) == (["c"], [2.0])
    assert again == BadRow("a.jsonl row 4: its prompt is that of a.jsonl row 1; a prompt must come once")


def test_one_of_several_scores_is_chosen_by_name(tmp_path: Path) -> None:
    row = {"messages": [*WHY, {"role": "assistant", "content": "a"}], "score": {"a/rm-1.0": 1, "b": 2}}
    file = jsonl(tmp_path / "a.jsonl", row)
    assert "holds 2 scores; choose one: --rewards-field score.NAME" in found(file)[0].line  # pyright: ignore
    chosen = found(file, {**ANY, "rewards": "score.a/rm-1.0"})
    assert chosen[0].rewards == [1.0]  # pyright: ignore


def test_fields_are_named_where_no_shape_is_known(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"question": "Why?", "answers": ["a"]})
    with pytest.raises(ValueError, match=r"fields question, answers are of no known shape.*--prompt-field"):
        fields_of([file], ANY)
    named = {"prompt": "question", "responses": "answers", "rewards": None}
    assert found(file, named) == [Row("a.jsonl row 1", prompt_id(WHY), WHY, ["a"], None)]


GOOD = {"prompt": "Who?", "responses": ["a", "b"], "rewards": [1, 2]}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({**GOOD, "responses": []}, "responses must hold a response, got an empty list"),
        ({**GOOD, "responses": "a"}, "responses must be a list of texts, got 'a'"),
        ({**GOOD, "responses": ["a", None]}, "responses[1] must be text, got None"),
        ({**GOOD, "rewards": [1]}, "rewards must be as many as the 2 responses, got 1"),
        ({**GOOD, "rewards": None}, "rewards must be a list of numbers, got None"),
        ({**GOOD, "rewards": [1, float("nan")]}, "rewards[1] must be a finite number, got nan"),
        ({**GOOD, "rewards": [float("-inf"), 1]}, "rewards[0] must be a finite number, got -inf"),
        ({**GOOD, "rewards": [10**400, 1]}, "rewards[0] must be a finite number, got 1000"),
        ({**GOOD, "rewards": [1e39, 1]}, "rewards[0] must be a finite number, got 1e+39"),  # infinite as float32
        ({**GOOD, "rewards": [True, 1]}, "rewards[0] must be a finite number, got True"),
        ({**GOOD, "rewards": ["1", 1]}, "rewards[0] must be a finite number, got '1'"),
        ({**GOOD, "prompt": ""}, "the last message must be the user's and not empty"),
        ({**GOOD, "prompt": 7}, "the prompt must be text or a list of messages, got 7"),
        ({**GOOD, "prompt": [{"role": "assistant", "content": "x"}]}, "the last message must be the user's"),
        ("text", "a row must be an object with named fields, got 'text'"),
        (None, "a row must be an object with named fields, got None"),
        ({**GOOD, "prompt": "Why?"}, "its prompt is that of a.jsonl row 1; a prompt must come once"),
    ],
)
def test_a_bad_row_is_named_with_its_number_and_the_rule(
    tmp_path: Path, tiny_model: Model, row: Any, line: str
) -> None:
    file = jsonl(tmp_path / "a.jsonl", {**GOOD, "prompt": "Why?"}, row, {**GOOD, "prompt": "When?"})
    rows = list(rows_of([file], fields_of([file], ANY), load(tiny_model).plain_prompt))
    bad = [row.line for row in rows if isinstance(row, BadRow)]
    assert len(bad) == 1
    assert bad[0].startswith("a.jsonl row 2: ")
    assert line in bad[0]
    assert "\n" not in bad[0]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b"{", "is not JSON"),
        ("a.json", b'{"prompt": 1}', "must hold a list of objects"),
        ("a.parquet", b"PAR1", "is not a Parquet file"),
        ("a.csv", b"a,b", "must end in .json, .jsonl, .parquet"),
        ("a.jsonl", b"\n", "is an object with named fields"),
    ],
)
def test_a_file_that_is_not_of_its_kind_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        found(tmp_path / name)


def test_a_line_that_is_not_json_is_a_bad_row_and_an_empty_line_none(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b"\n\n{cut\n\xff\n")
    good, cut, bytes_ = found(file)
    assert isinstance(good, Row)
    assert "a.jsonl row 3: the line is not JSON" in cut.line  # pyright: ignore
    assert "a.jsonl row 4: the line is not JSON" in bytes_.line  # pyright: ignore


def test_json_and_parquet_files_hold_the_same_rows(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "prompt": "Why?"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = [
        [(row.messages, row.responses, row.rewards) for row in found(tmp_path / name)]
        for name in ("a.json", "a.parquet")
    ]  # pyright: ignore
    assert read[0] == read[1]


def test_bad_rows_import_nothing_and_are_counted_to_the_last(
    tmp_path: Path, request_for: Callable[..., Request]
) -> None:
    store = Store(tmp_path / "store")
    bad = [{**GOOD, "prompt": f"{n}?", "rewards": [n]} for n in range(30)]
    with pytest.raises(RefusedRowsError, match="30 of 31 rows cannot be imported, and nothing was written") as refused:
        import_pool(store, request_for(jsonl(tmp_path / "a.jsonl", GOOD, *bad)))
    assert len(refused.value.lines) == 21
    assert refused.value.lines[0].startswith("a.jsonl row 2: ")
    assert refused.value.lines[-1] == "... and 10 more"
    assert [path.name for path in store.root.iterdir()] == ["meta.json"]


def test_bad_rows_are_left_out_and_counted_on_request(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    file = jsonl(tmp_path / "a.jsonl", GOOD, GOOD)
    pool, facts = import_pool(Store(tmp_path / "store"), request_for(file, skip_bad_rows=True))
    assert (facts["prompts"], facts["left_out"]) == (1, 1)
    assert facts["left_out_rows"] == ["a.jsonl row 2: its prompt is that of a.jsonl row 1; a prompt must come once"]
    assert pool != import_pool(Store(tmp_path / "store"), request_for(jsonl(tmp_path / "b.jsonl", GOOD)))[0]


def test_responses_and_their_rewards_are_shuffled_together_once_a_prompt(
    tmp_path: Path, tiny_model: Model, request_for: Callable[..., Request]
) -> None:
    store = Store(tmp_path / "store")
    rows = [
        {"prompt": f"Prompt {p}?", "responses": [f"r{p}-{i}" for i in range(100)], "rewards": list(range(100))}
        for p in range(3)
    ]
    pool, facts = import_pool(store, request_for(jsonl(tmp_path / "a.jsonl", *rows)))
    assert (facts["prompts"], facts["least"], facts["most"]) == (3, 100, 100)
    samples, rewards = pool_of(store, pool, 100, tiny_model, tmp_path / "run")
    assert len(samples.tiles) == 2  # blocks of 64
    matrix = rewards.matrix()
    for row in samples.read().to_pylist():
        prompt = samples.prompt_ids.index(row["prompt_id"])
        assert row["response"] == f"r{prompt}-{int(matrix[prompt, row['sample_index']])}"
    assert sorted(matrix[0].tolist()) == list(range(100))
    assert not np.array_equal(matrix[0], matrix[1])  # each prompt has its own permutation
    # a sorted file has rank correlation 1 of place and reward; a random permutation of 100 has sd 1 / sqrt(99)
    assert abs(np.corrcoef(np.arange(100), matrix.mean(axis=0))[0, 1]) < 0.4
    other, _ = import_pool(store, request_for(tmp_path / "a.jsonl", seed=1))
    assert other != pool


def test_token_ids_are_the_text_s_and_one_end_of_turn_and_logprob_is_unknown(
    tmp_path: Path, tiny_model: Model, request_for: Callable[..., Request]
) -> None:
    store = Store(tmp_path / "store")
    rows = {"prompt": "Why?", "responses": ["It rains.", "a <|im_start|> b", ""]}
    pool, facts = import_pool(store, request_for(jsonl(tmp_path / "a.jsonl", rows)))
    assert facts["rewards"] is None
    (tile,) = store.folder("samples", pool).glob("*-00000.parquet")
    table = read_tile(tile, SAMPLES)[0].to_pylist()
    tokenizer = load_tokenizer(tiny_model)
    by_text = {row["response"]: row for row in table}
    assert by_text["It rains."]["token_ids"] == [*tokenizer.encode("It rains.", add_special_tokens=False), 2]
    assert by_text[""]["token_ids"] == [2]
    assert 1 not in by_text["a <|im_start|> b"]["token_ids"]  # control tokens in a text are text
    assert tokenizer.decode(by_text["a <|im_start|> b"]["token_ids"][:-1]) == "a <|im_start|> b"
    assert {(row["seed"], row["logprob"], row["finish_reason"]) for row in table} == {(None, None, "stop")}
    assert all(row["n_tokens"] == len(row["token_ids"]) for row in table)


def test_a_response_that_spells_out_the_end_token_is_refused(
    tmp_path: Path, request_for: Callable[..., Request]
) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"prompt": "Why?", "responses": ["Rain.<|im_end|>\n"]})
    with pytest.raises(RefusedRowsError) as refused:
        import_pool(Store(tmp_path / "store"), request_for(file))
    assert refused.value.lines == [
        "a.jsonl row 1: a response must be plain text, got one that ends with <|im_end|>",
    ]


def test_rendered_prompts_come_back_as_their_messages(
    tmp_path: Path, tiny_model: Model, request_for: Callable[..., Request]
) -> None:
    """The authors' files hold prompts as the chat template rendered them, with an empty system turn or without."""
    store, tokenizer = Store(tmp_path / "store"), load_tokenizer(tiny_model)
    turns = [[{"role": "system", "content": ""}, *WHY], [{"role": "user", "content": "Who?\nMe?"}]]
    texts = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]
    two_turns = [*WHY, {"role": "assistant", "content": "So."}, *WHY]
    texts.append(tokenizer.apply_chat_template(two_turns, add_generation_prompt=True, tokenize=False))
    file = jsonl(tmp_path / "a.jsonl", *({"instruction": text, "output": ["a"], "scores": [1]} for text in texts))
    with pytest.raises(RefusedRowsError) as plain:
        import_pool(store, request_for(file))
    assert plain.value.lines[0] == (
        "a.jsonl row 1: the prompt is rendered by the chat template already; say so with --rendered"
    )
    with pytest.raises(RefusedRowsError) as refused:
        import_pool(store, request_for(file, rendered=True))
    assert len(refused.value.lines) == 1
    assert "a.jsonl row 3: the prompt must be one turn of the user" in refused.value.lines[0]
    pool, _ = import_pool(store, request_for(file, rendered=True, skip_bad_rows=True))
    prompts = pq.read_table(store.folder("samples", pool) / "prompts.parquet", schema=PROMPTS)["messages"].to_pylist()
    assert prompts == turns
    assert tokenizer.decode(prompt_ids(tiny_model, tokenizer, prompts[0])) == texts[0]


def test_uneven_n_is_nan_and_more_than_there_are_is_refused(
    tmp_path: Path, tiny_model: Model, request_for: Callable[..., Request]
) -> None:
    store = Store(tmp_path / "store")
    rows = [
        {"prompt": "Why?", "responses": ["a", "b", "c"], "rewards": [1, 2, 3]},
        {"prompt": "Who?", "responses": ["d"], "rewards": [4]},
    ]
    pool, facts = import_pool(store, request_for(jsonl(tmp_path / "a.jsonl", *rows)))
    assert (facts["least"], facts["most"]) == (1, 3)
    samples, rewards = pool_of(store, pool, 3, tiny_model, tmp_path / "run")
    matrix = rewards.matrix()
    assert sorted(matrix[0].tolist()) == [1, 2, 3]
    assert matrix[1, 0] == 4
    assert np.isnan(matrix[1, 1:]).all()
    assert samples.read().num_rows == 4
    with pytest.raises(ValueError, match=r"n_samples must be <= 3, the most .* never sampled further\), got 4"):
        pool_of(store, pool, 4, tiny_model, tmp_path / "run")


def test_a_pool_is_refused_for_another_model_than_it_has_token_ids_of(
    tmp_path: Path, tiny_model: Model, tiny_reward: Path, request_for: Callable[..., Request]
) -> None:
    store = Store(tmp_path / "store")
    pool, _ = import_pool(store, request_for(jsonl(tmp_path / "a.jsonl", GOOD)))
    with pytest.raises(ValueError, match=r"data\.pool: .* was imported with the token ids of .*import the files again"):
        pool_of(store, pool, 2, tiny_model.at(tiny_reward), tmp_path / "run")


def test_held_out_prompts_and_those_beyond_the_limit_are_not_read_from_shared_tiles(
    tmp_path: Path, tiny_model: Model, request_for: Callable[..., Request]
) -> None:
    store = Store(tmp_path / "store")
    rows = [{"prompt": f"{n}?", "responses": ["a", "b"], "rewards": [n, n + 0.5]} for n in range(20)]
    pool, _ = import_pool(store, request_for(jsonl(tmp_path / "a.jsonl", *rows)))
    data = Imported(
        store=str(store.root), pool=pool, held_out_path=None, held_out_share=0.3, limit=5, held_out_limit=None
    )
    prompts = data.load()
    assert prompts.train.num_rows == 5
    assert 0 < prompts.held_out.num_rows < 15
    assert not set(prompts.train["prompt_id"].to_pylist()) & set(prompts.held_out["prompt_id"].to_pylist())
    samples = imported(pool, prompts.train, tiny_model, 2, run_on(store, tmp_path))
    rewards = score(samples, ImportedReward(), run_on(store, tmp_path))
    assert samples.read().num_rows == 10
    expected = [float(messages[0]["content"].strip("?")) for messages in prompts.train["messages"].to_pylist()]
    assert np.floor(rewards.matrix()).tolist() == [[value, value] for value in expected]


def test_the_same_import_is_there_already_and_an_interrupted_one_goes_on(
    tmp_path: Path, request_for: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    request = request_for(jsonl(tmp_path / "a.jsonl", GOOD))
    with monkeypatch.context() as broken:
        broken.setattr("sweetspot.exchange.importing.IMPORTED_PROMPTS", "no/such\0name")
        with pytest.raises(ValueError, match="null byte"):
            import_pool(store, request)
    assert [path for path in store.root.glob("*/*") if not path.name.startswith(".")] == []
    pool, facts = import_pool(store, request)
    (tile,) = store.folder("samples", pool).glob("*-00000.parquet")
    made = tile.stat().st_mtime_ns
    assert import_pool(store, request) == (pool, facts)
    assert tile.stat().st_mtime_ns == made
    assert facts["rewards"] == key(ImportedReward(), pool)
    assert facts["sources"][0]["name"] == "a.jsonl"


def test_the_command_imports_and_refuses_in_lines(
    tmp_path: Path, tiny_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = jsonl(tmp_path / "a.jsonl", GOOD), jsonl(tmp_path / "b.jsonl", GOOD, {**GOOD, "rewards": [1]})
    store = ["--store", str(tmp_path / "store")]
    assert command.main([*store, "import", str(good), "--model", str(tiny_policy), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["prompts"], facts["most"]) == (1, 2)
    assert command.main([*store, "import", str(bad), "--model", str(tiny_policy)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: import: 1 of 2 rows cannot be imported, and nothing was written")
    assert lines[1] == "  b.jsonl row 2: rewards must be as many as the 2 responses, got 1"
    assert command.main([*store, "import", str(tmp_path / "c.jsonl"), "--model", str(tiny_policy)]) == 1
    assert "FILE must be an existing file" in capsys.readouterr().err


@pytest.mark.slow
def test_responses_of_the_embedded_model_are_imported_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "Hi?", "responses": ["a", "b"]}) + "\n")
    store = str(tmp_path / "store")
    assert command.main(["--store", store, "import", str(tmp_path / "a.jsonl"), "--model", "embedded"]) == 0
    assert "1 prompts, 2 responses each" in capsys.readouterr().out
