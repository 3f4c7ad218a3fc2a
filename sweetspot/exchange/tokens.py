"""Token ids for responses that were not sampled here, and prompts that a chat template has rendered already."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sweetspot.data import messages_of
from sweetspot.exchange.rows import Messages
from sweetspot.model import Model, Probe, check_probe, load_tokenizer

MARK = "\N{SNOWMAN}marks the turn of the user\N{SNOWMAN}"


@dataclass(frozen=True)
class Frame:
    """What a chat template puts around a single turn of the user; `system` is the empty system turn, where it has one.

    The authors of DPO_Pair put an empty system turn before a conversation when the template mentions one.
    """

    before: str
    after: str
    system: Messages


@dataclass(frozen=True)
class Tokens:
    """The tokenizer of the policy that is to be trained.

    end: id and text of the token that the template puts after an answer and that sampling stops at.
    """

    tokenizer: Any
    probe: dict[str, Any]
    end: int
    end_text: str
    frames: list[Frame]

    def ids(self, responses: Sequence[str]) -> list[list[int]]:
        """The ids of each response's text and the end-of-turn token.

        A control token that stands in the text is text: it gets the ids of its letters.
        """
        found = self.tokenizer(list(responses), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [[*map(int, ids), self.end] for ids in found]

    def plain_prompt(self, value: Any, where: str) -> Messages:
        """The messages of a prompt that is text or a list of messages.

        Raises:
            ValueError: when it is neither, or a text that a chat template has rendered already.
        """
        if isinstance(value, str) and any(value.strip().startswith(frame.before.strip()) for frame in self.frames):
            raise ValueError(f"{where}: the prompt is rendered by the chat template already; say so with --rendered")
        return messages_of(value, where)

    def rendered_prompt(self, value: Any, where: str) -> Messages:
        """The messages of a prompt's text that the model's chat template rendered, with one turn of the user.

        Raises:
            ValueError: when rendering the messages again does not give the text back.
        """
        text = value.strip() if isinstance(value, str) else ""
        for frame in self.frames:
            before, after = frame.before.strip(), frame.after.strip()
            if text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after):
                content = text[len(before) : len(text) - len(after)].strip()
                messages = messages_of([*frame.system, {"role": "user", "content": content}], where)
                one_turn = after not in content and not any(token in content for token in self._control())
                if one_turn and _render(self.tokenizer, messages).strip() == text:
                    return messages
        raise ValueError(
            f"{where}: the prompt must be one turn of the user as the chat template of --model renders it, "
            f"got {str(value)[:60]!r}"
        )

    def _control(self) -> list[str]:
        return [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]

    def fault(self, responses: Sequence[str]) -> str | None:
        """What is wrong with responses of which one ends with the end-of-turn token spelled out, to be trained on as
        text; None where none does."""
        if any(response.rstrip().endswith(self.end_text) for response in responses):
            return f"a response must be plain text, got one that ends with {self.end_text}"
        return None


def load(model: Model) -> Tokens:
    """The tokenizer of a model, examined by the template doctor.

    Raises:
        ValueError: when it has no chat template, or one that does not agree with itself.
    """
    tokenizer = load_tokenizer(model)
    probe = Probe.of(model, tokenizer)
    check_probe(probe)
    end = next(token for token in probe.whole[len(probe.prompt) :] if token in probe.ends)
    frames = [_frame(tokenizer, []), _frame(tokenizer, [{"role": "system", "content": ""}])]
    known = [frame for frame in frames if frame is not None]
    return Tokens(tokenizer, asdict(probe), end, tokenizer.convert_ids_to_tokens(end), known)


def _frame(tokenizer: Any, system: Messages) -> Frame | None:
    """None for a template that knows no system turn."""
    from jinja2 import TemplateError

    try:
        text = _render(tokenizer, [*system, {"role": "user", "content": MARK}])
    except TemplateError:
        return None
    before, _, after = text.partition(MARK)
    return Frame(before, after, system)


def _render(tokenizer: Any, messages: Messages) -> str:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
