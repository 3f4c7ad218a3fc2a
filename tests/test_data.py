"""Prompts: identity by content, a held-out part that is never trained on, bad rows named by line."""

import json
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweetspot.data import Embedded, LocalFile
from sweetspot.schema import prompt_id


def local(path: Path | str, **changes: object) -> LocalFile:
    fields = {"held_out_path": None, "held_out_share": 0.0, "limit": None, "held_out_limit": None, **changes}
    return LocalFile(path=str(path), **fields)  # pyright: ignore


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_a_prompt_id_is_16_hex_digits_of_the_content_whatever_the_key_order() -> None:
    one = prompt_id([{"role": "user", "content": "Hé"}])
    # sha256 of [{"content":"Hé","role":"user"}] in UTF-8
    assert one == prompt_id([{"content": "Hé", "role": "user"}])
    assert len(one) == 16
    assert one != prompt_id([{"role": "user", "content": "He"}])


def test_the_embedded_prompts_are_many_different_and_held_out_apart() -> None:
    prompts = Embedded(limit=None, held_out_limit=None).load()
    train, held_out = set(prompts.train["prompt_id"].to_pylist()), set(prompts.held_out["prompt_id"].to_pylist())
    assert len(train) >= 320
    assert len(held_out) >= 64
    assert prompts.duplicates == 0
    assert not train & held_out


def test_no_two_embedded_prompts_are_near_duplicates() -> None:
    prompts = Embedded(limit=None, held_out_limit=None).load()
    tables = pa.concat_tables([prompts.train, prompts.held_out])["messages"].to_pylist()
    words = [set(messages[0]["content"].lower().split()) for messages in tables]
    worst = max(len(a & b) / len(a | b) for at, a in enumerate(words) for b in words[:at])
    assert worst < 0.6


def test_a_limit_takes_a_prefix() -> None:
    whole = Embedded(limit=None, held_out_limit=None).load().train["prompt_id"].to_pylist()
    assert Embedded(limit=5, held_out_limit=2).load().train["prompt_id"].to_pylist() == whole[:5]


def test_a_row_is_text_or_messages_under_either_name(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    path = write(tmp_path / "p.jsonl", {"prompt": "Hello"}, {"prompt": turns}, {"messages": turns[1:]})
    messages = local(path).load().train["messages"].to_pylist()
    assert [len(each) for each in messages] == [1, 2, 1]
    assert messages[0] == [{"role": "user", "content": "Hello"}]


def test_a_prompt_counts_where_the_messages_are_null(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "Hello", "messages": None})
    assert local(path).load().train["messages"].to_pylist() == [[{"role": "user", "content": "Hello"}]]


def test_a_byte_order_mark_windows_lines_and_blank_lines_change_nothing(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.jsonl", {"prompt": "One"}, {"prompt": "Two"})
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b'\xef\xbb\xbf{"prompt": "One"}\r\n\r\n  \r\n{"prompt": "Two"}')
    assert local(marked).load().train["prompt_id"].equals(local(plain).load().train["prompt_id"])


def test_a_row_in_another_encoding_is_named_by_its_key_file_and_line(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", {"prompt": "fine"})
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_bytes(b'{"prompt": "fine too"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"data\.held_out_path: \S*held_out\.jsonl line 2 must be JSON in UTF-8"):
        local(train, held_out_path=str(held_out)).load()


def test_a_set_that_is_held_out_whole_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"})
    with pytest.raises(ValueError, match="got 4 rows, 2 of them held out"):
        local(path, held_out_path=str(path)).load()


def test_parquet_rows_read_like_jsonl_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["One", "Two"]}), tmp_path / "p.parquet")
    jsonl = write(tmp_path / "p.jsonl", {"prompt": "One"}, {"prompt": "Two"})
    ids = [local(path).load().train["prompt_id"].to_pylist() for path in (tmp_path / "p.parquet", jsonl)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ("{not json", "line 2 must be JSON in UTF-8"),
        ("[" * 100_000, "line 2 must be JSON in UTF-8"),
        ('["a"]', "line 2 must be an object with `messages` or `prompt`"),
        ('{"text": "a"}', "line 2 must be an object with `messages` or `prompt`"),
        ('{"prompt": 3}', "line 2: the prompt must be text or a list"),
        ('{"messages": []}', "line 2: the prompt must be text or a list"),
        ('{"messages": [{"role": "judge", "content": "a"}]}', "line 2: a message must have a role"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "line 2: the last message must be the user's"),
        ('{"prompt": "  "}', "line 2: the last message must be the user's and not empty"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, bad: str, rule: str) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "fine"}, bad)
    with pytest.raises(ValueError, match=rule):
        local(path).load()


def test_a_missing_file_an_unknown_ending_and_an_empty_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.path must be an existing file, got nowhere\.jsonl"):
        local("nowhere.jsonl").load()
    with pytest.raises(ValueError, match=r"data\.path must end in \.jsonl or \.parquet"):
        local(write(tmp_path / "p.txt", "a")).load()
    with pytest.raises(ValueError, match="must hold a prompt to train on, got 0 rows"):
        local(write(tmp_path / "p.jsonl", "")).load()
    (tmp_path / "p.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        local(tmp_path / "p.parquet").load()


def test_duplicates_are_counted_and_the_held_out_part_has_the_first_right(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", {"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"})
    held_out = write(tmp_path / "h.jsonl", {"prompt": "b"})
    prompts = local(train, held_out_path=str(held_out)).load()
    assert prompts.train.num_rows == 1
    assert prompts.held_out.num_rows == 1
    assert prompts.duplicates == 2


def test_the_held_out_share_is_stable_when_rows_are_added(tmp_path: Path) -> None:
    rows = [{"prompt": f"prompt {number}"} for number in range(200)]
    few = local(write(tmp_path / "few.jsonl", *rows[:100]), held_out_share=0.3).load()
    more = local(write(tmp_path / "more.jsonl", *rows), held_out_share=0.3).load()
    assert set(few.held_out["prompt_id"].to_pylist()) <= set(more.held_out["prompt_id"].to_pylist())
    assert 40 <= more.held_out.num_rows <= 80
    assert all(a != b for a, b in pairwise(sorted(more.held_out["prompt_id"].to_pylist())))
