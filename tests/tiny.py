"""Tiny real models for tests: a 2-layer Llama with random weights, a 384-token tokenizer and a ChatML template."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweetspot.component import to_config
from sweetspot.dpo import DPO, DeepSpeed
from sweetspot.launch import Launch
from sweetspot.sft import SFT, Conversations

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = [
    "Write a short note to a friend about the rain.",
    "A good garden needs sun, water and a little patience.",
    "Why do cats sleep so much? Because hunting is hard work!",
]


TASK = """
task: rhymes
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def tokenizer() -> Any:
    """A ByteLevel BPE tokenizer: <|endoftext|> 0, <|im_start|> 1 (BOS), <|im_end|> 2 (EOS, padding)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=384, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
        model_max_length=512,
    )


def _shape() -> dict[str, Any]:
    return {
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def save_policy(folder: Path, seed: int = 0, initializer_range: float = 0.3) -> Path:
    """A causal tiny Llama (head_dim 32, the smallest that vLLM's CPU attention takes) with its tokenizer.

    The smaller the range of the weights, the nearer is each token to one chance in 384; so is the end of a response.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**_shape(), tie_word_embeddings=True, initializer_range=initializer_range))
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_reward(folder: Path, seed: int = 1) -> Path:
    """A one-logit sequence classifier of the same shape with the same tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(LlamaConfig(**_shape(), num_labels=1, initializer_range=0.3))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def shortest_wins(messages: list[dict[str, str]], response: str) -> float:
    """A reward of one's own: minus the characters, and a bonus for a question."""
    return 10.0 * messages[-1]["content"].endswith("?") - len(response)


OBJECTIVES = 19


def save_armorm(folder: Path, seed: int = 2) -> Path:
    """A tiny ArmoRM by the names and shapes of the published weights, with code beside it that must never run."""
    import json

    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(seed)
    config = LlamaConfig(**_shape(), initializer_range=0.3, num_labels=1)
    width, hidden, wide = config.hidden_size, 32, OBJECTIVES
    weights = {f"model.{name}": value for name, value in LlamaModel(config).state_dict().items()}
    weights |= {"regression_layer.weight": torch.randn(wide, width) / 8, "gating.logit_scale": torch.tensor([1.5])}
    weights["reward_transform_matrix"] = torch.eye(wide) - 0.1 * torch.rand(wide, wide)
    for number, (into, out) in enumerate([(width, hidden), (hidden, hidden), (hidden, hidden), (hidden, wide)]):
        weights[f"gating.layers.{number}.weight"] = torch.randn(out, into) / into**0.5 * 3
        weights[f"gating.layers.{number}.bias"] = torch.randn(out)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    tokenizer().save_pretrained(folder)
    heads = {"num_objectives": wide, "gating_temperature": 2, "gating_hidden_dim": hidden, "gating_n_hidden": 3}
    code = {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"}
    plain = {**config.to_dict(), **heads, "architectures": ["LlamaForRewardModelWithGating"], "auto_map": code}
    (folder / "config.json").write_text(json.dumps(plain))
    (folder / "modeling_custom.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
    return folder


def dpo(**changes: Any) -> DPO:
    """Settings of training that suit the tiny model, in float64."""
    settings: dict[str, Any] = {
        "loss": "dpo",
        "beta": 0.1,
        "label_smoothing": 0.0,
        "gamma": 0.0,
        "length_alpha": 0.0,
        "sft_weight": 0.0,
        "learning_rate": 1e-3,
        "schedule": "linear",
        "warmup_ratio": 0.1,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "epochs": 2,
        "batch_size": 4,
        "max_tokens": 128,
        "max_prompt_tokens": 96,
        "held_out_share": 0.0,
        "dtype": "float64",
        "autocast": None,
        "seed": 0,
        "adapter": None,
        "lora_rank": None,
        "lora_alpha": None,
        "lora_targets": None,
        "reference": "recompute",
        "reference_model": "previous",
        "batching": "auto",
        "matmul": "auto",
        "device_batch_size": 4,
        "reference_batch_tokens": 256,
        "gradient_checkpointing": False,
        "save_every": 2,
        "save_total_limit": 1,
    }
    return DPO(**(settings | changes))


def save_base(folder: Path, seed: int = 4) -> Path:
    """A base model: the tiny policy without a chat template, whose texts end in <|endoftext|>."""
    from transformers import AutoTokenizer, GenerationConfig

    save_policy(folder, seed)
    (folder / "chat_template.jinja").unlink()
    plain = AutoTokenizer.from_pretrained(folder)
    plain.eos_token = plain.pad_token = "<|endoftext|>"
    plain.save_pretrained(folder)
    GenerationConfig(bos_token_id=1, eos_token_id=0, pad_token_id=0).save_pretrained(folder)
    return folder


def sft(path: Path, **changes: Any) -> SFT:
    """Settings of SFT on a file that suit the tiny base model, in float64."""
    settings: dict[str, Any] = {
        "data": Conversations(path=str(path), revision=None, split="train", limit=None),
        "chat_template": CHATML,
        "eos_token": "<|im_end|>",
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup_ratio": 0.1,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "epochs": 2,
        "batch_size": 4,
        "max_tokens": 128,
        "dtype": "float64",
        "autocast": None,
        "seed": 0,
        "batching": "auto",
        "matmul": "auto",
        "device_batch_size": 4,
        "gradient_checkpointing": False,
        "save_every": 2,
        "save_total_limit": 1,
    }
    return SFT(**(settings | changes))


class KilledError(Exception):
    """Stands for kill -9."""


def train(
    main: Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], None],
    output: Path,
    parts: dict[str, Any],
    inputs: dict[str, Any],
    killed_at: int | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run a training worker's `main` into `output`; returns the history and the events.

    Args:
        parts: the components of the job, by name.
        inputs: the plain values of the job.
        killed_at: the step at which KilledError is raised.
    """
    events: list[dict[str, Any]] = []

    def emit(event: dict[str, Any]) -> None:
        events.append(json.loads(json.dumps(event)))
        if event.get("metrics", {}).get("step") == killed_at and killed_at:
            raise KilledError

    built = {name: to_config(part) for name, part in {"deepspeed": deepspeed(), **parts}.items()}
    main({"output": str(output), "card": {"base": "tiny"}, **built, **inputs}, emit)
    return [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()], events


def deepspeed(**changes: Any) -> DeepSpeed:
    """How training is spread: not at all, or over ranks each with the whole model, unless changed."""
    settings: dict[str, Any] = {"stage": 0, "offload": False, "bucket_size": 4096, "persistence_threshold": 0}
    return DeepSpeed(**(settings | changes))


def launch(**changes: Any) -> Launch:
    """One worker with one thread on one node, unless changed."""
    settings: dict[str, Any] = {
        "threads": 1,
        "devices": None,
        "lease_seconds": 60,
        "nodes": 1,
        "node_rank": None,
        "head": None,
        "port": None,
        "timeout_seconds": 600,
    }
    return Launch(**(settings | changes))


def save_task(folder: Path) -> None:
    """The task "rhymes" of lm-eval with twelve documents; it names their file by its whole path."""
    rows = [{"question": f"Which rhymes with {n}?", "choices": ["cat", "dog"], "answer": n % 2} for n in range(12)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rhymes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rhymes.yaml").write_text(TASK.format(data=folder.resolve() / "rhymes.jsonl"))


def save_all(folder: Path) -> None:
    """What size=tiny reads: a policy, a selecting and a judging reward model, and a task of lm-eval."""
    save_policy(folder / "policy", initializer_range=0.05)
    save_reward(folder / "reward")
    save_reward(folder / "gold", seed=7)
    save_task(folder / "tasks")


if __name__ == "__main__":
    save_all(Path(sys.argv[1]))
