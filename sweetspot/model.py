"""Model: weights, revision, tokenizer and chat template - and the template doctor.

Token ids are made once, by `prompt_ids`. What is sampled is what is scored and trained on: a sampler records a `Probe`
of how it renders a known conversation, and every later stage compares its own rendering with it before it starts.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from pydantic import Field

from sweetspot.component import component, runtime

EMBEDDED = "embedded"
FINGERPRINT = "fingerprint.json"
CONVERSATION = (
    {"role": "user", "content": "Name one colour of the rainbow."},
    {"role": "assistant", "content": "Green."},
)


class TemplateError(ValueError):
    """Two stages that render one conversation into different token ids."""


@component
class Model:
    """A causal language model with its tokenizer: a hub id, a local folder, or the embedded one.

    A trained policy is a Model too: its path is the policy's folder.
    """

    version: ClassVar[int] = 1
    name: str = runtime(min_length=1)
    path: str = Field(min_length=1)
    revision: str | None
    system_prompt: str | None
    trust_remote_code: bool

    def identity(self) -> dict[str, Any]:
        """The content of the weights and tokenizer, wherever they lie, and the system prompt."""
        return {**content_of(self.path, self.revision, "model.path"), "system_prompt": self.system_prompt}

    def at(self, path: Path, name: str | None = None) -> "Model":
        """The same model settings with weights and tokenizer from a local folder."""
        return dataclasses.replace(self, path=str(path), revision=None, name=name or self.name)


def content_of(path: str, revision: str | None, at: str) -> dict[str, Any]:
    """What identifies weights wherever they lie: the content of a local folder, or hub id and revision.

    Raises:
        ValueError: when the path looks like a folder and there is none, or the folder is no model; `at` names the
            config key.
    """
    folder = Path(path)
    if folder.is_dir():
        return {"content": folder_digest(folder, at)}
    if folder.is_absolute() or path.startswith(".") or path.count("/") > 1:
        raise ValueError(f"{at} must be a hub id or an existing folder, got {path}")
    return {"hub": path, "revision": revision}


def folder_digest(folder: Path, at: str = "model.path") -> str:
    """SHA-256 over the files that make the model (configs, tokenizer, weights, code), by name and content.

    A folder that this project made carries its digest in `fingerprint.json`, so that its weights are read only once.

    Raises:
        ValueError: when the folder is no model, or its weights are pickled (pytorch_model.bin) and so could run code.
    """
    recorded = folder / FINGERPRINT
    if recorded.exists():
        return json.loads(recorded.read_text())["content"]
    kinds = (".json", ".jinja", ".safetensors", ".model", ".py")
    kept = [path for path in sorted(folder.iterdir()) if path.suffix in kinds]
    if not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        raise ValueError(f"{at} must be a model folder with a config.json, got {folder}")
    if not any(path.suffix == ".safetensors" for path in kept):
        raise ValueError(
            f"{at} must hold its weights as .safetensors, which cannot run code, got {folder}; `save_pretrained` of "
            "transformers writes them"
        )
    digest = hashlib.sha256()
    for path in kept:
        with path.open("rb") as file:
            digest.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def record_digest(folder: Path) -> None:
    """Write the folder's digest into it; called once, when the folder is complete."""
    (folder / FINGERPRINT).write_text(json.dumps({"content": folder_digest(folder)}) + "\n")


def load_tokenizer(model: Model) -> Any:
    """The model's tokenizer.

    Raises:
        ValueError: when it cannot be read, or has no chat template.
    """
    tokenizer = read_tokenizer(model)
    if not tokenizer.chat_template:
        raise ValueError(f"model.path must have a tokenizer with a chat template, {model.path} has none")
    return tokenizer


def read_tokenizer(model: Model) -> Any:
    """The model's tokenizer, with a chat template or, as a base model's, without.

    Raises:
        ValueError: when it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except OSError as error:  # no such hub id, no access to it, or no connection
        rule = "model.path must be a folder or hub id that can be read"
        raise ValueError(f"{rule}, got {model.path} ({' '.join(str(error).split())})") from None


def load_causal(model: Model, dtype: str) -> Any:
    """The causal model on its device (the GPU where there is one), ready to be asked.

    Raises:
        ValueError: when the weights are not those of a whole causal model (a classifier, say).
    """
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        model.path,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        use_safetensors=True,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
    )
    network, report = loaded
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise ValueError(f"model.path must hold a whole causal language model, {model.path} lacks {missing}")
    return network.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def conversation(model: Model, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The messages as plain dicts, after the model's system prompt where it has one and they do not."""
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    if model.system_prompt is not None and plain[0]["role"] != "system":
        return [{"role": "system", "content": model.system_prompt}, *plain]
    return plain


def prompt_ids(model: Model, tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The token ids that a response continues: the chat template with the assistant's opening, and nothing added.

    Every stage takes its prompt ids from here. Text is never rendered first and tokenised later, which would put a
    second BOS before a template that brings its own.
    """
    return render(tokenizer, conversation(model, messages), add_generation_prompt=True)


def render(tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool) -> list[int]:
    """The token ids of plain messages by the chat template, with the assistant's opening where asked."""
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
    )
    return [int(token) for token in ids]


def end_ids(model: Model, tokenizer: Any) -> list[int]:
    """The tokens that end a response: the tokenizer's EOS and those of the model's generation config."""
    from transformers import GenerationConfig

    ends = {int(tokenizer.eos_token_id)}
    try:
        config = GenerationConfig.from_pretrained(model.path, **_pinned(model))
    except OSError:  # a model without a generation config ends at its EOS
        return sorted(ends)
    named = config.eos_token_id
    return sorted(ends | set(named if isinstance(named, list) else [] if named is None else [named]))


def _pinned(model: Model) -> dict[str, Any]:
    return {} if model.revision is None else {"revision": model.revision}


@dataclasses.dataclass(frozen=True)
class Probe:
    """How one stage renders the known conversation.

    Attributes:
        prompt: ids of the user's turn with the assistant's opening.
        whole: ids of the conversation with its answer.
        ends: ids that end a response.
        bos: id of the beginning-of-sequence token, or None.
    """

    prompt: list[int]
    whole: list[int]
    ends: list[int]
    bos: int | None

    @classmethod
    def of(cls, model: Model, tokenizer: Any) -> "Probe":
        """The probe of a model, rendered as sampling and training render."""
        messages = conversation(model, CONVERSATION)
        return cls(
            prompt=prompt_ids(model, tokenizer, CONVERSATION[:1]),
            whole=render(tokenizer, messages, add_generation_prompt=False),
            ends=end_ids(model, tokenizer),
            bos=tokenizer.bos_token_id,
        )

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Probe":
        """The probe that another stage left as JSON."""
        return cls(**cast("dict[str, Any]", values))


def check_probe(probe: Probe) -> None:
    """Refuse a template that does not agree with itself.

    Raises:
        TemplateError: for a double BOS, an opening that is not how the template opens an answer, or an answer that the
            template closes with a token at which sampling would not stop.
    """
    for ids in (probe.prompt, probe.whole):
        if probe.bos is not None and ids[:2] == [probe.bos, probe.bos]:
            raise TemplateError(f"template: the conversation starts with two BOS tokens (id {probe.bos})")
    if probe.whole[: len(probe.prompt)] != probe.prompt:
        raise TemplateError(
            "template: a whole conversation does not start with the prompt that a response continues; "
            f"prompt {probe.prompt}, conversation {probe.whole}"
        )
    if not set(probe.whole[len(probe.prompt) :]) & set(probe.ends):
        raise TemplateError(
            f"template: sampling ends at {probe.ends}, which the template never puts after an answer "
            f"({probe.whole[len(probe.prompt) :]})"
        )


def compare_probes(sampled: Probe, here: Probe, stage: str) -> None:
    """Refuse to go on when this stage renders the known conversation otherwise than sampling did.

    Raises:
        TemplateError: naming the stage and the first difference.
    """
    check_probe(here)
    if sampled.prompt != here.prompt or sampled.whole != here.whole:
        raise TemplateError(
            f"template: {stage} and sampling render one conversation differently: {_differ(sampled, here)}"
        )
    if sampled.ends != here.ends:
        raise TemplateError(f"template: sampling ends a response at {sampled.ends}, {stage} at {here.ends}")


def _differ(sampled: Probe, here: Probe) -> str:
    if [here.bos, *here.prompt] == sampled.prompt or [here.bos, *sampled.prompt] == here.prompt:
        return f"one of them has a second BOS (id {here.bos})"
    tail = min(len(sampled.prompt), len(here.prompt)) // 2
    if len(sampled.prompt) != len(here.prompt) and sampled.prompt[-tail:] == here.prompt[-tail:]:
        missing = abs(len(sampled.prompt) - len(here.prompt))
        side = "sampling" if len(sampled.prompt) < len(here.prompt) else "the later stage"
        return f"{missing} tokens before the user's turn are missing in {side} (a missing system prompt?)"
    return f"sampling {sampled.whole}, here {here.whole}"
