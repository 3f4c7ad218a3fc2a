"""python experiments/benchmarks/scoring.py [--model FOLDER] [--responses 1000] [--n 16] [--repeats 5] [--threads 2]

What scoring gains over the way of the paper's own script, which takes the responses in their order, ten at a time, and
pads each ten to the longest. The same loaded classifier scores the same conversations both ways, in turns. The bar: at
least twice the sequences per second, and the same rewards to 1e-4 in float32.

Lengths are drawn with a seed: responses log-normal around 90 tokens within 20 to 400, prompts around 50 within 10 to
200, `n` responses a prompt, as a pool holds them. `--model` takes a classifier with one logit of your own.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from sweetspot.reward_model import Conversation, SequenceClassifier
from sweetspot.reward_model.rendering import render

TEMPLATE = "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <end> {% endfor %}"
WORDS = [f"w{number}" for number in range(4000)]
THEIR_BATCH = 10


def main() -> None:
    """Print both speeds, the ratio of every repeat's two neighbouring measurements, and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, help="a classifier's folder (default: a random Llama, 256 wide, 8 layers)"
    )
    parser.add_argument("--responses", type=int, default=1000, help="how many are scored")
    parser.add_argument("--n", type=int, default=16, help="responses per prompt")
    parser.add_argument("--repeats", type=int, default=5, help="how often the two ways alternate")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens scored together, padding counted")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = given.model or random_classifier(Path(folder))
        reward_model = SequenceClassifier(
            path=str(path),
            revision=None,
            dtype="float32",
            max_tokens=1024,
            trust_remote_code=False,
            batch_tokens=given.batch_tokens,
        )
        scorer: Any = reward_model.scorer()
    rows = conversations(given.responses, given.n)
    lengths = [len(render(scorer.renderer, row)) for row in rows]
    print(f"{len(rows)} responses, {given.n} a prompt, {sum(lengths)} tokens ({min(lengths)} to {max(lengths)} a row)")

    def ours() -> np.ndarray:
        return scorer(rows, lambda _: None).rewards

    def theirs() -> np.ndarray:
        return in_order(scorer, rows)

    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in range(given.repeats):
        for name, way in (("ours", ours), ("theirs", theirs))[:: 1 if repeat % 2 else -1]:
            times[name].append(seconds(way))
    for name, taken in times.items():
        speeds = [len(rows) / each for each in taken]
        print(f"{name:<7} {statistics.median(speeds):.1f} sequences/s ({min(speeds):.1f} to {max(speeds):.1f})")
    ratios = [slow / fast for slow, fast in zip(times["theirs"], times["ours"], strict=True)]
    print(f"ratio   {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), bar 2")
    print(f"largest difference of a reward {np.abs(ours() - theirs()).max():.1e}, bar 1e-4")


def conversations(count: int, n: int) -> list[Conversation]:
    """The same prompts and responses at every call."""
    rng = np.random.default_rng(0)
    found: list[Conversation] = []
    for number in range(count):
        if number % n == 0:
            messages = [{"role": "user", "content": words(rng, 50, 10, 200)}]
        found.append(Conversation(messages, words(rng, 90, 20, 400), None))
    return found


def words(rng: np.random.Generator, median: int, least: int, most: int) -> str:
    """A text of as many words as a log-normal draw (sigma 0.8), cut to least and most."""
    length = int(np.clip(rng.lognormal(np.log(median), 0.8), least, most))
    return " ".join(rng.choice(WORDS, size=length))


def random_classifier(folder: Path) -> Path:
    """A Llama classifier with random weights, and a tokenizer of one token a word."""
    special = ["<unk>", "<user>", "<assistant>", "<end>", "<pad>"]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(special + WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", chat_template=TEMPLATE
    ).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4}
    config = LlamaConfig(
        **shape, vocab_size=len(special) + len(WORDS), num_labels=1, pad_token_id=4, initializer_range=0.1
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


@torch.inference_mode()
def in_order(scorer: Any, rows: list[Conversation]) -> np.ndarray:
    """The rewards the other way: batches of ten as they come, each padded to its longest."""
    rewards: list[float] = []
    pad = scorer.network.config.pad_token_id
    for start in range(0, len(rows), THEIR_BATCH):
        batch = [render(scorer.renderer, row) for row in rows[start : start + THEIR_BATCH]]
        width = max(map(len, batch))
        tokens = torch.tensor([ids + [pad] * (width - len(ids)) for ids in batch])
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in batch])
        rewards += scorer.network(tokens, attention_mask=mask).logits[:, 0].tolist()
    return np.array(rewards)


def seconds(work: Callable[[], object]) -> float:
    """The wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
