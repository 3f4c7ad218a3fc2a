"""Tiny real models for tests: a 2-layer Llama with random weights, a 384-token tokenizer and a ChatML template."""

from pathlib import Path
from typing import Any

from sweetspot.dpo import DPO

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = [
    "Write a short note to a friend about the rain.",
    "A good garden needs sun, water and a little patience.",
    "Why do cats sleep so much? Because hunting is hard work!",
]


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


def save_policy(folder: Path, seed: int = 0) -> Path:
    """A causal tiny Llama (head_dim 32, the smallest that vLLM's CPU attention takes) with its tokenizer."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**_shape(), tie_word_embeddings=True, initializer_range=0.3))
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
        "reference": "previous",
        "batching": "auto",
        "matmul": "auto",
        "device_batch_size": 4,
        "reference_batch_tokens": 256,
        "gradient_checkpointing": False,
        "save_every": 2,
        "save_total_limit": 1,
    }
    return DPO(**(settings | changes))
