"""Scoring in batches: what is shared, what happens when memory ends, and the self-test at the start."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweetspot.component import key
from sweetspot.reward_model import Conversation, Scores
from tests.test_reward_model import answered, classifier, copy_of, edit, silent

torch = pytest.importorskip("torch")

from sweetspot.reward_model.decoder import Budget, Decoder, out_of_memory, sees_the_whole_past, split  # noqa: E402
from sweetspot.reward_model.selftest import KNOWN, LONGER, checked  # noqa: E402
from sweetspot.reward_model.sequence_classifier import DecoderScorer, PaddedScorer  # noqa: E402

TOO_MUCH = 2**52  # bytes that no machine gives


def work_that_fits(most: int, widths: Sequence[int], seen: list[list[int]]) -> Callable[[list[int]], int]:
    """Work on a batch that fails as torch does on a processor when its padded tokens are more than `most`."""

    def work(batch: list[int]) -> int:
        seen.append(batch)
        if max(widths[row] for row in batch) * len(batch) > most:
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        return len(batch)

    return work


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_every_row_is_done_once() -> None:
    widths, seen = [4, 10, 6, 10, 3, 9], []
    budget = Budget(100)
    done = list(budget.batches(widths, list("abcdef"), work_that_fits(30, widths, seen)))
    assert seen[0] == [1, 3, 5, 2, 0, 4]  # 60 tokens with padding: too many
    assert done == [([1, 3, 5], 3), ([2, 0, 4], 3)]  # 30, and what is left is 18
    assert budget.tokens == 30


def test_a_row_that_does_not_fit_alone_is_named() -> None:
    widths = [4, 50, 6]
    with pytest.raises(MemoryError, match=r"reward_model\.max_tokens must leave room in memory: b has 50 tokens alone"):
        list(Budget(100).batches(widths, list("abc"), work_that_fits(20, widths, [])))


def test_only_the_end_of_memory_is_answered_with_smaller_batches() -> None:
    with pytest.raises(RuntimeError, match="shape") as refused:
        torch.empty(2, 3) @ torch.empty(2, 3)
    assert not out_of_memory(refused.value)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and out_of_memory(MemoryError())

    def work(batch: list[int]) -> None:
        raise RuntimeError(f"another fault in {batch}")

    with pytest.raises(RuntimeError, match="another fault"):
        list(Budget(100).batches([1], ["a"], work))


def test_rows_of_one_prompt_share_what_they_have_in_common_but_not_their_last_token() -> None:
    rows = [[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 9], [7, 8]]
    assert split(rows, ["p", "p", "q", "r"]) == [([1, 2, 3], [4]), ([1, 2, 3], [5, 6]), ([1], [2, 9]), ([7], [8])]
    assert split([[1, 2, 3], [1, 2, 3]], ["p", "p"]) == [([1, 2], [3]), ([1, 2], [3])]
    assert split([[1, 2, 3], [4, 2, 3]], ["p", "p"]) == [([1], [2, 3]), ([4], [2, 3])]


def test_a_prompt_is_computed_once_for_all_its_responses(tiny_policy: Path) -> None:
    from transformers import AutoModel

    network = AutoModel.from_pretrained(tiny_policy, dtype=torch.float32).eval()
    shapes: list[tuple[int, ...]] = []
    network.register_forward_pre_hook(lambda _, arguments: shapes.append(tuple(arguments[0].shape)))
    rows = [([5, 6, 7, 8], [number + 9] * (number + 1)) for number in range(6)]

    def read(ends: Any, outputs: Any, lengths: Any) -> Any:
        return outputs.last_hidden_state[:, 0, :2] + 0 * ends[:, :2] + 0 * lengths[:, None]

    found = Decoder(network, 24, every_layer=False)(rows, ["row"] * 6, read, silent)
    assert found.shape == (6, 2)
    assert shapes[0] == (1, 4) and shapes[1:] == [(2, 6), (3, 4), (1, 1)]  # 4 + 6 tokens: two rows in 24; 4 + 4: three


def test_a_network_with_a_window_is_not_given_a_cache() -> None:
    from transformers import LlamaConfig, MistralConfig, Qwen2Config

    assert sees_the_whole_past(LlamaConfig()) and sees_the_whole_past(Qwen2Config())
    assert not sees_the_whole_past(MistralConfig(sliding_window=64))
    assert not sees_the_whole_past(Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=1))


def test_whole_and_shared_computation_give_the_same_rewards(tiny_reward: Path) -> None:
    conversations = answered(17)
    scorer: Any = classifier(tiny_reward).scorer()
    assert isinstance(scorer, DecoderScorer)
    whole = PaddedScorer(scorer.network, scorer.renderer, scorer.pad, 400, 600)(conversations, silent)
    np.testing.assert_allclose(scorer(conversations, silent).rewards, whole.rewards, atol=1e-5)


def test_the_logit_is_read_where_transformers_reads_it_when_a_conversation_ends_in_padding(
    tiny_reward: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = copy_of(tiny_reward, tmp_path / "closed")  # ends in <|im_end|>, which is its padding too
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("<|im_end|>\n{% endfor %}", "<|im_end|>{% endfor %}"))
    conversations = answered(9)
    scorer: Any = classifier(folder).scorer()
    network = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    for each, reward in zip(conversations, scorer(conversations, silent).rewards, strict=True):
        turns = [*each.messages, {"role": "assistant", "content": each.response}]
        ids = scorer.renderer.apply_chat_template(turns, return_dict=False)
        assert ids[-1] == 2
        with torch.inference_mode():
            assert network(torch.tensor([ids])).logits.item() == pytest.approx(reward, abs=1e-5)


def test_a_classifier_with_a_sliding_window_is_scored_whole(tiny_reward: Path, tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForSequenceClassification

    torch.manual_seed(3)
    config = MistralConfig(
        vocab_size=384, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8, num_labels=1, pad_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    folder = copy_of(tiny_reward, tmp_path / "window")
    MistralForSequenceClassification(config).save_pretrained(folder)
    conversations = answered(9)
    scorer = classifier(folder, batch_tokens=9999).scorer()
    assert isinstance(scorer, PaddedScorer)
    alone = classifier(folder, batch_tokens=1).scorer()(conversations, silent).rewards
    np.testing.assert_allclose(scorer(conversations, silent).rewards, alone, atol=1e-5)


class Counting:
    """A toy scorer: its reward is the length of the text, moved by `drift` for each other conversation beside it."""

    tokenizer = None

    def __init__(self, drift: float) -> None:
        self.drift = drift

    def __call__(self, conversations: Sequence[Conversation], progress: Callable[[int], None]) -> Scores:
        """The toy rewards."""
        progress(len(conversations))
        moved = self.drift * (len(conversations) - 1)
        return Scores(np.array([len(each.response) + moved for each in conversations], np.float32), None, 0)


def test_the_self_test_refuses_a_reward_that_depends_on_its_batch_naming_both_values() -> None:
    with pytest.raises(RuntimeError, match=r"got 6 alone and 6\.5 in a padded batch \(allowed in float32: 0\.0006\)"):
        checked(Counting(0.25), "float32")
    with pytest.raises(RuntimeError, match=r"got 6 alone and 7 in a padded batch \(allowed in bfloat16: 0\.3\)"):
        checked(Counting(0.5), "bfloat16")
    with pytest.raises(RuntimeError, match="nan"):
        checked(Counting(float("nan")), "float32")
    steady = Counting(0.0)
    assert checked(steady, "float32") is steady
    assert checked(Counting(0.1), "bfloat16")
    assert len(LONGER.response) > 20 * len(KNOWN.response)


def test_weights_that_are_not_safetensors_and_code_that_was_not_allowed_are_refused(
    tiny_reward: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_reward, tmp_path / "bin")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        classifier(folder).scorer()
    coded = copy_of(tiny_reward, tmp_path / "coded")
    names = {"AutoConfig": "custom.Config", "AutoModelForSequenceClassification": "custom.Classifier"}
    edit(coded / "config.json", model_type="custom", auto_map=names)
    (coded / "custom.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        classifier(coded).scorer()
    before = key(classifier(coded))
    assert before != key(classifier(coded, trust_remote_code=True))
    (coded / "custom.py").write_text("raise SystemExit('other code')\n")
    assert key(classifier(coded)) != before
