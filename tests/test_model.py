"""Template and token ids: one rendering, one BOS, and a doctor that finds each way in which two renderings part."""

from dataclasses import replace
from pathlib import Path

import pytest

from sweetspot.model import (
    CONVERSATION,
    Model,
    Probe,
    TemplateError,
    check_probe,
    compare_probes,
    load_causal,
    load_tokenizer,
    prompt_ids,
)


@pytest.fixture(scope="module")
def probe(tiny_model: Model) -> Probe:
    return Probe.of(tiny_model, load_tokenizer(tiny_model))


def test_prompt_ids_are_those_of_the_chat_template_with_exactly_one_bos(tiny_model: Model) -> None:
    tokenizer = load_tokenizer(tiny_model)
    ids = prompt_ids(tiny_model, tokenizer, CONVERSATION[:1])
    text = "<|im_start|>user\nName one colour of the rainbow.<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == text
    assert ids[0] == tokenizer.bos_token_id
    assert ids[1] != tokenizer.bos_token_id


def test_a_system_prompt_is_put_first_unless_there_is_one(tiny_model: Model) -> None:
    tokenizer = load_tokenizer(tiny_model)
    polite = replace(tiny_model, system_prompt="Be polite.")
    own = [{"role": "system", "content": "Be rude."}, *CONVERSATION[:1]]
    assert "Be polite." in tokenizer.decode(prompt_ids(polite, tokenizer, CONVERSATION[:1]))
    assert "Be polite." not in tokenizer.decode(prompt_ids(polite, tokenizer, own))


def test_the_doctor_passes_a_model_that_agrees_with_itself(probe: Probe) -> None:
    check_probe(probe)
    compare_probes(probe, probe, "training")
    assert len(probe.prompt) < len(probe.whole)


def test_the_doctor_finds_a_double_bos(probe: Probe) -> None:
    doubled = replace(probe, prompt=[1, *probe.prompt], whole=[1, *probe.whole])
    with pytest.raises(TemplateError, match="two BOS"):
        check_probe(doubled)
    with pytest.raises(TemplateError, match="second BOS"):
        compare_probes(doubled, probe, "training")


def test_the_doctor_finds_a_missing_system_prompt(tiny_model: Model, probe: Probe) -> None:
    polite = Probe.of(replace(tiny_model, system_prompt="Be polite."), load_tokenizer(tiny_model))
    with pytest.raises(TemplateError, match=r"missing in the later stage \(a missing system prompt"):
        compare_probes(polite, probe, "training")
    with pytest.raises(TemplateError, match=r"missing in sampling \(a missing system prompt"):
        compare_probes(probe, polite, "scoring")


def test_the_doctor_finds_a_wrong_end_token(probe: Probe) -> None:
    with pytest.raises(TemplateError, match=r"sampling ends at \[0\]"):
        check_probe(replace(probe, ends=[0]))
    with pytest.raises(TemplateError, match=r"sampling ends a response at \[0, 2\], training at \[2\]"):
        compare_probes(replace(probe, ends=[0, 2]), probe, "training")


def test_a_folder_without_a_chat_template_is_refused(tiny_policy: Path, tiny_model: Model, tmp_path: Path) -> None:
    for file in tiny_policy.iterdir():
        if file.suffix != ".jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="must have a tokenizer with a chat template"):
        load_tokenizer(tiny_model.at(tmp_path))


def test_a_model_is_known_by_content_and_not_by_place(tiny_policy: Path, tiny_model: Model, tmp_path: Path) -> None:
    for file in tiny_policy.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    moved = tiny_model.at(tmp_path)
    assert moved.identity() == tiny_model.identity()
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert moved.identity() != tiny_model.identity()


def test_a_missing_folder_is_refused(tiny_model: Model) -> None:
    with pytest.raises(ValueError, match=r"model\.path must be a hub id or an existing folder, got /nowhere/model"):
        tiny_model.at(Path("/nowhere/model")).identity()


def test_a_model_that_cannot_be_read_is_named(tiny_model: Model) -> None:
    with pytest.raises(
        ValueError, match=r"model\.path must be a folder or hub id that can be read, got no/such"
    ) as refused:
        load_tokenizer(replace(tiny_model, path="no/such"))
    assert "\n" not in str(refused.value)


def test_a_classifier_is_no_causal_model(tiny_model: Model, tiny_reward: Path) -> None:
    assert load_causal(tiny_model, "float32").dtype.is_floating_point
    with pytest.raises(ValueError, match=r"must hold a whole causal language model, .* lacks lm_head\.weight"):
        load_causal(tiny_model.at(tiny_reward), "float32")
