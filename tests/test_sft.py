"""SFT: which tokens are learned, the loss over them, what is saved, and how bad input is refused."""

# ruff: noqa: E402 - the imports wait for importorskip

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from sweetspot.component import build, key, to_config
from sweetspot.logprob import attention
from sweetspot.logprob.forward import PLAIN, Forward, response_logprobs
from sweetspot.model import Model, TemplateError, end_ids, load_causal, load_tokenizer, read_tokenizer
from sweetspot.schema import MESSAGES
from sweetspot.sft import SFT, Conversations, SftModel
from sweetspot.trainer import sft as worker
from sweetspot.trainer.conversations import Conversation, chat_tokenizer, lay_out, tokens_of, training_conversations
from sweetspot.trainer.pairs import regroup
from tests import tiny

END = 2
TALK = [("Why do cats sleep?", "Because hunting is hard."), ("Name a pet.", "A cat.")]
SPEED = {"speed/conversations_per_second", "speed/tokens_per_second", "speed/flops_use", "memory/peak_gb"}
TOY = (  # <s> U question A answer </s> U question A answer </s>
    "{{ bos_token }}{% for message in messages %}{{ {'user': ' U ', 'assistant': ' A '}[message['role']] }}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %} {{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} A{% endif %}"
)


# --- which tokens are learned ----------------------------------------------------------------------------------------


def test_the_answers_and_their_ends_are_learned_and_nothing_else() -> None:
    """<s> U a A b c </s> U d A e </s>, one id a word: b c </s> stand at 4 to 6, e </s> at 10 and 11."""
    turns = _turns([("a", "b c"), ("d", "e")])
    ids, answers = tokens_of(_toy(), turns, [1])
    assert ids == [0, 2, 4, 3, 5, 6, 1, 2, 7, 3, 8, 1]
    assert answers == [(4, 7), (10, 12)]


def test_what_the_template_puts_behind_an_end_is_read_and_not_learned(tiny_base: Model, tmp_path: Path) -> None:
    """ChatML ends a turn by <|im_end|> and a line break, of which sampling never sees the second."""
    tokenizer = chat_tokenizer(tiny_base, tiny.sft(tmp_path / "talk"))
    ids, answers = tokens_of(tokenizer, _turns(TALK), [0, END])
    assert [tokenizer.decode(ids[slice(*answer)]) for answer in answers] == [f"{text}<|im_end|>" for _, text in TALK]
    assert ids[answers[0][1]] == tokenizer("\n")["input_ids"][0]
    assert answers[1][1] == len(ids), "what follows the last answer is left out"


def test_a_system_prompt_stands_before_conversations_that_have_none(tiny_base: Model, tmp_path: Path) -> None:
    polite = dataclasses.replace(tiny_base, system_prompt="Be brief.")
    tokenizer = chat_tokenizer(polite, tiny.sft(tmp_path / "talk"))
    (found,), _ = training_conversations([_turns(TALK)], polite, tokenizer, tiny.sft(tmp_path / "talk"))
    assert tokenizer.decode(found.ids).startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_a_long_conversation_loses_its_last_turns_and_one_whose_answer_does_not_fit_is_dropped(
    tiny_base: Model, tmp_path: Path
) -> None:
    """The first answer ends at token 48, the second behind it: with 60 tokens the second goes, with 20 both."""
    settings = tiny.sft(tmp_path / "talk")
    tokenizer = chat_tokenizer(tiny_base, settings)
    whole, answers = tokens_of(tokenizer, _turns(TALK), [END])
    first, second = (stop for _, stop in answers)
    rows = [_turns(TALK), _turns(TALK[:1]), _turns([("Say it. " * 40, "No.")])]
    cut = dataclasses.replace(settings, max_tokens=second - 1)
    kept, counts = training_conversations(rows, tiny_base, tokenizer, cut)
    assert [one.ids for one in kept] == [whole[:first]] * 2
    assert [one.answers for one in kept] == [answers[:1]] * 2
    assert counts == {"shortened": 1, "too_long": 1, "unclear": 0}
    with pytest.raises(ValueError, match=r"none of the 3 conversations can be learned \(3 have a first answer beyond"):
        training_conversations(rows, tiny_base, tokenizer, dataclasses.replace(settings, max_tokens=first - 1))


def test_both_layouts_predict_the_answers_from_what_stands_before_them() -> None:
    """1 2 3 4 5 6 with the answers 3 4 and 6, and 7 8 with the answer 8; the last id of each is no input."""
    rows = [Conversation([1, 2, 3, 4, 5, 6], [(2, 4), (5, 6)]), Conversation([7, 8], [(1, 2)])]
    padded, packed = (lay_out(rows, batching) for batching in ("padded", "packed"))
    assert padded.token_ids.tolist() == [[1, 2, 3, 4, 5], [7, 0, 0, 0, 0]]
    assert padded.predicting.tolist() == [1, 2, 4, 5]
    assert packed.token_ids.tolist() == [[1, 2, 3, 4, 5, 7]]
    assert packed.predicting.tolist() == [1, 2, 4, 5]
    assert packed.position_ids is not None
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 0]]
    assert packed.spans == ((5, ()), (1, ()))
    for layout in (padded, packed):
        assert layout.targets.tolist() == [3, 4, 6, 8]
        assert layout.owner.tolist() == [0, 0, 0, 1]
        assert layout.lengths.tolist() == [3, 1]


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_the_loss_of_a_conversation_is_its_answers_nll_given_all_before(batching: str, tiny_base: Model) -> None:
    """Against log softmax of the whole logits, conversation by conversation."""
    rows = [Conversation([5, 6, 7, 8, 9, 10], [(2, 4), (5, 6)]), Conversation([11, 12, 13], [(1, 3)])]
    network = load_causal(tiny_base, "float64")
    expected = []
    for row in rows:
        logprobs = network(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        places = [place for start, stop in row.answers for place in range(start, stop)]
        expected.append(sum(logprobs[place - 1, row.ids[place]].item() for place in places))
    if batching == "packed":
        attention.install(network)
    found = response_logprobs(network, lay_out(rows, batching), Forward(batching, True, None))
    assert found.tolist() == pytest.approx(expected, abs=1e-10)


def test_a_step_is_cut_by_the_tokens_of_its_conversations() -> None:
    rows = [Conversation([1] * length, [(1, 2)]) for length in (2, 10, 4, 8)]
    assert [[row.tokens() for row in part] for part in regroup(rows, [2, 2], "padded")] == [[10, 8], [4, 2]]
    assert [[row.tokens() for row in part] for part in regroup(rows, [2, 2], "packed")] == [[10, 2], [8, 4]]
    assert (rows[1].targets(), rows[1].lengths()) == (1, (10, ()))


# --- the template doctor ---------------------------------------------------------------------------------------------

ASSISTANT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"chat_template": None}, "model.sft.chat_template must be given for base, whose tokenizer has none"),
        ({"chat_template": "{% for x in messages %}"}, "model.sft.chat_template must be a Jinja text, got "),
        ({"eos_token": "<|eot|>"}, r"model.sft.eos_token must be a token of base, got '<\|eot\|>'"),
        ({"eos_token": None}, r"sampling ends at \[0\], which the template never puts after an answer"),
        (
            {"chat_template": tiny.CHATML.replace("<|im_end|>", "<|endoftext|>")},
            r"an answer must end in the tokenizer's EOS \(id 2\), it is closed by .* model.sft.eos_token names",
        ),
        ({"chat_template": "<|im_start|>" + tiny.CHATML}, "starts with two BOS"),
        (
            {"chat_template": "{{ messages | length }}" + tiny.CHATML},
            "does not start with the prompt that a response continues",
        ),
        (
            {
                "chat_template": "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
                "{% if loop.index0 >= (messages | length) - 2 %}{{ message['content'] }}{% endif %}<|im_end|>\n"
                "{% endfor %}" + ASSISTANT
            },
            "the assistant's tokens cannot be found, because a conversation does not begin as it did before its turn 2",
        ),
    ],
)
def test_a_template_that_cannot_be_learned_is_refused_in_one_line(
    changes: dict[str, Any], text: str, tiny_base: Model, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=text) as refused:
        chat_tokenizer(tiny_base, tiny.sft(tmp_path / "talk", **changes))
    assert "\n" not in str(refused.value)


def test_a_base_that_begins_every_text_with_bos_wants_one_from_the_template(tiny_base: Model, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    for file in Path(tiny_base.path).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    tokenizer.save_pretrained(tmp_path)
    base, turns = tiny_base.at(tmp_path), "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    without = turns + "<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    assert read_tokenizer(base)("a")["input_ids"][0] == 1
    with pytest.raises(TemplateError, match=r"begins every text with BOS \(id 1\), and the template does not"):
        chat_tokenizer(base, tiny.sft(tmp_path / "talk", chat_template=without))
    assert (
        chat_tokenizer(base, tiny.sft(tmp_path / "talk", chat_template="{{ bos_token }}" + without)).eos_token_id == END
    )


# --- data and settings -----------------------------------------------------------------------------------------------


def test_conversations_are_read_up_to_their_last_answer(tmp_path: Path) -> None:
    rows = [[*_turns(TALK), {"role": "user", "content": "Bye."}], _turns(TALK[:1])]
    _write(tmp_path / "talk.jsonl", rows)
    pq.write_table(pa.table({"messages": pa.array(rows, type=MESSAGES)}), tmp_path / "talk.parquet")
    for name in ("talk.jsonl", "talk.parquet"):
        data = Conversations(path=str(tmp_path / name), revision=None, split="train", limit=None)
        assert data.load() == [_turns(TALK), _turns(TALK[:1])]
        assert dataclasses.replace(data, limit=1).load() == [_turns(TALK)]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": "hello"}, "line 2 must be an object with `messages`"),
        ({"messages": [{"role": "user", "content": "Why?"}]}, "line 2 must have an assistant's turn after another's"),
        (
            {"messages": [{"role": "assistant", "content": "So."}]},
            "line 2 must have an assistant's turn after another's",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "line 2: a message must have a role of system, user, assis"),
        ({"messages": []}, "line 2: the prompt must be text or a list of messages"),
    ],
)
def test_a_bad_row_is_named_in_one_line(row: dict[str, Any], text: str, tmp_path: Path) -> None:
    _write(tmp_path / "talk.jsonl", [_turns(TALK)])
    with (tmp_path / "talk.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=text) as refused:
        Conversations(path=str(tmp_path / "talk.jsonl"), revision=None, split="train", limit=None).load()
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("model.sft.data.path: ")


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    empty = Conversations(path=str(tmp_path / "empty.jsonl"), revision=None, split="train", limit=None)
    with pytest.raises(ValueError, match=r"model.sft.data.path must hold a conversation to learn from, .* has no row"):
        empty.load()
    missing = dataclasses.replace(empty, path="nowhere.jsonl")
    with pytest.raises(ValueError, match=r"model.sft.data.path must be an existing file or a hub id, got nowhere"):
        key(missing)
    (tmp_path / "talk.json").write_text("[]")
    for other in (tmp_path, tmp_path / "talk.json"):
        with pytest.raises(ValueError, match=r"must be a file ending in .jsonl or .parquet, or a hub id, got /"):
            key(dataclasses.replace(empty, path=str(other)))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"device_batch_size": 3}, "model.sft: batch_size must be a multiple of device_batch_size, got 4 and 3"),
        ({"autocast": "bfloat16"}, "model.sft: autocast must be null unless dtype is float32"),
        ({"chat_template": "nowhere.jinja"}, "model.sft: chat_template must be a Jinja text or an existing file"),
        ({"batching": "shared_prefix"}, "model.sft.batching: must be 'auto', 'padded' or 'packed'"),
        ({"epochs": 0}, "model.sft.epochs: must be greater than or equal to 1, got 0"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text):
        build({**to_config(tiny.sft(tmp_path / "talk.jsonl")), **changes}, at="model.sft")


def test_a_key_holds_the_content_of_data_and_template_and_not_their_places(tiny_base: Model, tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", [_turns(TALK)])
    _write(tmp_path / "b.jsonl", [_turns(TALK)])
    _write(tmp_path / "c.jsonl", [_turns(TALK[:1])])
    (tmp_path / "chatml.jinja").write_text(tiny.CHATML)
    settings = tiny.sft(tmp_path / "a.jsonl")
    model = _model(tiny_base, settings)
    same = [
        tiny.sft(tmp_path / "b.jsonl"),
        tiny.sft(tmp_path / "a.jsonl", chat_template=str(tmp_path / "chatml.jinja")),
        tiny.sft(tmp_path / "a.jsonl", device_batch_size=1, save_every=9),
    ]
    other = [
        tiny.sft(tmp_path / "c.jsonl"),
        tiny.sft(tmp_path / "a.jsonl", chat_template="{# #}" + tiny.CHATML),
        tiny.sft(tmp_path / "a.jsonl", learning_rate=2e-3),
    ]
    assert {key(_model(tiny_base, one)) for one in same} == {key(model)}
    assert len({key(model), key(tiny_base), *(key(_model(tiny_base, one)) for one in other)}) == 5
    assert type(model.at(tmp_path)) is Model


# --- training --------------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_the_model_has_template_and_end_of_turn(tiny_base: Model, tmp_path: Path) -> None:
    settings = tiny.sft(tmp_path / "talk", dtype="float32", epochs=3, learning_rate=3e-3)
    history, events = _train(tmp_path, tiny_base, settings)
    assert [row["step"] for row in history] == list(range(1, 10))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["epoch"] == 3
    folder = tmp_path / "model"
    made = tiny_base.at(folder)
    assert load_tokenizer(made).chat_template == tiny.CHATML
    assert load_tokenizer(made).eos_token_id == END
    assert end_ids(made, load_tokenizer(made)) == [0, END], "the base's own end stays one"
    network = AutoModelForCausalLM.from_pretrained(folder)
    assert network.config.eos_token_id == END
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "fingerprint.json", "history.jsonl", "conversations.json", "chat_template.jinja"} <= names
    assert "checkpoints" not in names
    counts = json.loads((folder / "conversations.json").read_text())
    assert counts == events[1]["metrics"]
    assert counts | {"answer_tokens": 0} == {
        "conversations": 10,
        "shortened": 0,
        "too_long": 0,
        "unclear": 0,
        "answer_tokens": 0,
    }
    progress = [event["progress"] for event in events if "progress" in event]
    assert progress[0]["note"] == "to token ids"
    assert progress[1]["note"].startswith("packed, tiles of the vocabulary")
    steps = [event["metrics"] for event in events if "step" in event.get("metrics", {})]
    assert steps[0].keys() - history[0].keys() == SPEED
    card = (folder / "README.md").read_text()
    assert "tags: [sft, sweetspot]" in card
    assert "| conversations | 10 |" in card


@pytest.mark.usefixtures("exact_norms")
def test_the_first_loss_is_the_mean_over_the_tokens_of_the_step(tiny_base: Model, tmp_path: Path) -> None:
    """All 10 conversations in one step: the sum of their answers' NLL over the number of their answer tokens."""
    settings = tiny.sft(tmp_path / "talk", batch_size=10, device_batch_size=5, epochs=1)
    history, _ = _train(tmp_path, tiny_base, settings)
    rows, _ = training_conversations(_talks(), tiny_base, chat_tokenizer(tiny_base, settings), settings)
    network = load_causal(tiny_base, "float64")
    total = sum(response_logprobs(network, lay_out([row], "padded"), PLAIN).item() for row in rows)
    assert history[0]["loss"] == pytest.approx(-total / sum(row.targets() for row in rows), abs=1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize(
    "changes",
    [{"device_batch_size": 1}, {"device_batch_size": 2, "batching": "padded"}, {"gradient_checkpointing": True}],
)
def test_how_a_step_is_cut_into_forward_passes_changes_nothing(
    changes: dict[str, Any], tiny_base: Model, tmp_path: Path
) -> None:
    """Conversations of unlike length in steps of 4, 4 and 2: a mean of means would weigh tokens unequally."""
    whole, _ = _train(tmp_path / "whole", tiny_base, tiny.sft(tmp_path / "talk"))
    cut, _ = _train(tmp_path / "cut", tiny_base, tiny.sft(tmp_path / "talk", **changes))
    for ours, theirs in zip(whole, cut, strict=True):
        assert ours == pytest.approx(theirs, rel=0, abs=1e-9)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_killed_training_goes_on_to_the_undisturbed_curve_and_model(
    step: int, tiny_base: Model, tmp_path: Path
) -> None:
    settings = tiny.sft(tmp_path / "talk", dtype="float32")
    undisturbed, _ = _train(tmp_path / "undisturbed", tiny_base, settings)
    with pytest.raises(tiny.KilledError):
        _train(tmp_path / "killed", tiny_base, settings, killed_at=step)
    resumed, events = _train(tmp_path / "killed", tiny_base, settings)
    steps = [event["metrics"]["step"] for event in events if "step" in event.get("metrics", {})]
    assert steps == list(range(step // 2 * 2 + 1, 7))
    for ours, theirs in zip(resumed, undisturbed, strict=True):
        assert list(ours.values()) == pytest.approx(list(theirs.values()), abs=1e-6)
    digests = {(tmp_path / name / "model/fingerprint.json").read_text() for name in ("undisturbed", "killed")}
    assert len(digests) == 1


def test_a_model_that_was_finished_but_not_tidied_is_only_tidied(tiny_base: Model, tmp_path: Path) -> None:
    settings = tiny.sft(tmp_path / "talk", epochs=1)
    _train(tmp_path, tiny_base, settings)
    (tmp_path / "model" / "checkpoints").mkdir()
    _, events = _train(tmp_path, tiny_base, settings)
    assert events == []
    assert not (tmp_path / "model" / "checkpoints").exists()


# --- inputs ----------------------------------------------------------------------------------------------------------


def _toy() -> Any:
    """One id a word: <s> 0, </s> 1, U 2, A 3, a to e 4 to 8."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<s>", "</s>", "U", "A", "a", "b", "c", "d", "e"]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="e"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", chat_template=TOY)


def _turns(talk: list[tuple[str, str]]) -> list[dict[str, str]]:
    """The messages of questions and answers."""
    return [
        {"role": role, "content": text} for turn in talk for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def _talks() -> list[list[dict[str, str]]]:
    """Ten conversations of one to three turns with answers of various lengths."""
    things = ["cats", "rain", "tea", "snow", "bread"]
    return [
        _turns([(f"Why {things[(n + turn) % 5]}?", "It is good. " * (1 + (n + turn) % 3)) for turn in range(1 + n % 3)])
        for n in range(10)
    ]


def _write(path: Path, rows: list[list[dict[str, str]]]) -> None:
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))


def _model(base: Model, settings: SFT) -> SftModel:
    fields = {name: getattr(base, name) for name in ("path", "revision", "system_prompt", "trust_remote_code")}
    return SftModel(name="tuned", sft=settings, **fields)


def _train(
    folder: Path, base: Model, settings: SFT, killed_at: int | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Fine-tune on the ten conversations into folder/model; returns the history and the events."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"messages": pa.array(_talks(), type=MESSAGES)}), folder / "conversations.parquet")
    inputs = {"conversations": str(folder / "conversations.parquet")}
    return tiny.train(worker.main, folder / "model", {"model": base, "sft": settings}, inputs, killed_at)
