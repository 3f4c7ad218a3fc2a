"""PYTHONPATH=. python experiments/benchmarks/training.py [--layers 30] [--batch 4] [--steps 1] [--repeats 5]

Pairs a second and peak memory of our training against TRL's DPOTrainer at its fastest exact settings: precomputed
reference log-probabilities, padded rows, no gradient checkpointing. A SmolLM2-135M with random weights, float32, random
token ids, AdamW. Every measurement is a process of its own, the two alternate, and the first step of each is not
counted. "Per CPU second" leaves out the time in which others had the processor. Peak memory is the resident memory of
the process, weights and optimizer included; "above start" subtracts what it held before the model was loaded. The bars:
pairs/s 1.6 times TRL's with prompts as long as responses (256 + 2 x 256 tokens) and 1.0 times with short ones
(32 + 2 x 256); 0.7 of its memory.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import yaml

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def main() -> None:
    """Print the ratio of every repeat's two neighbouring measurements, their median and spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30, help="of the model (SmolLM2-135M: 30)")
    parser.add_argument("--batch", type=int, default=4, help="pairs per step, in one forward pass")
    parser.add_argument("--steps", type=int, default=1, help="steps that are timed, after one that is not")
    parser.add_argument("--repeats", type=int, default=5, help="how often the two alternate")
    parser.add_argument("--lengths", nargs="+", default=["256,256", "32,256"], help="prompt,response in tokens")
    parser.add_argument("--ours", nargs="*", default=[], help="fields of DPO for our side, matmul=torch")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a measurement, in the process that makes it
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(**json.loads(arguments.one))))
        return
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{arguments.layers} layers, {arguments.batch} pairs a step, {arguments.steps} steps, threads: {threads}")
    for lengths in arguments.lengths:
        prompt, response = map(int, lengths.split(","))
        compare(prompt, response, arguments)


def compare(prompt: int, response: int, arguments: argparse.Namespace) -> None:
    """Alternate the two on pairs of one size, and print what was found."""
    sizes = {"layers": arguments.layers, "batch": arguments.batch, "steps": arguments.steps}
    found: list[dict[str, dict[str, float]]] = []
    for _ in range(arguments.repeats):
        both: dict[str, dict[str, float]] = {}
        for side in ("trl", "ours"):
            job = {"side": side, "prompt": prompt, "response": response, "changes": arguments.ours, **sizes}
            made = subprocess.run(
                [sys.executable, __file__, "--one", json.dumps(job)],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment(side)},
            )
            both[side] = json.loads(made.stdout.splitlines()[-1])
        found.append(both)
        show = "   ".join(
            f"{side} {values['rate']:.3f} pairs/s ({values['cpu']:.3f} a CPU second) {values['peak']:.2f} GB"
            for side, values in both.items()
        )
        print(f"  {show}   loss {both['trl']['loss']:.5f} {both['ours']['loss']:.5f}", flush=True)
    print(f"prompt {prompt}, responses 2 x {response}:")
    for name, title in (
        ("rate", "pairs/s, ours / TRL"),
        ("cpu", "  per CPU second"),
        ("peak", "peak memory"),
        ("above", "  above start"),
    ):
        ratios = [both["ours"][name] / both["trl"][name] for both in found]
        print(f"  {title:<20} {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def environment(side: str) -> dict[str, str]:
    """What a side's process is started with: ours as a training worker is."""
    return settings(4, []).environment() if side == "ours" else {}


def settings(batch: int, changes: list[str]) -> Any:
    """The settings of both sides."""
    from tests import tiny

    values: dict[str, Any] = {
        "learning_rate": 1e-5,
        "warmup_ratio": 0.0,
        "epochs": 1,
        "batch_size": batch,
        "device_batch_size": batch,
        "max_tokens": 2048,
        "max_prompt_tokens": 1024,
        "dtype": "float32",
        "save_every": 10_000,
    }
    return tiny.dpo(**(values | {name: yaml.safe_load(text) for name, text in (part.split("=") for part in changes)}))


def measure(
    side: str, prompt: int, response: int, layers: int, batch: int, steps: int, changes: list[str]
) -> dict[str, float]:
    """Pairs a second after the first step, the last loss, and peak memory (GB) of this process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

    class Clock(TrainerCallback):
        """Takes the time after each step."""

        def __init__(self) -> None:
            self.times: list[tuple[float, float]] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append((time.monotonic(), time.process_time()))

    torch.manual_seed(0)
    count = batch * (steps + 1)
    ids = torch.randint(3, SHAPE["vocab_size"], (count, prompt + 2 * response)).tolist()
    cuts = [(row[:prompt], row[prompt : prompt + response], row[prompt + response :]) for row in ids]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = {"ours": our_trainer, "trl": trl_trainer}[side]
        before = resident()
        network: Any = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **SHAPE))
        trainer, loss = start(network, cuts, settings(batch, changes), Path(folder))
        trainer.add_callback(clock)
        trainer.train()
        last_loss = loss()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # KB on Linux
    wall, cpu = (batch * steps / (last - first) for first, last in zip(clock.times[0], clock.times[-1], strict=True))
    return {"rate": wall, "cpu": cpu, "peak": peak, "above": peak - before, "loss": last_loss}


def resident() -> float:
    """The resident memory of this process now, GB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9


def our_trainer(network: Any, cuts: list[Any], dpo: Any, folder: Path) -> tuple[Any, Any]:
    """Our trainer, with the reference log-probabilities made before, and a function that gives the last loss."""
    from sweetspot import logprob
    from sweetspot.logprob.forward import choose
    from sweetspot.trainer.pair_trainer import PairTrainer
    from sweetspot.trainer.pairs import TrainingPair
    from sweetspot.trainer.parallel import Beat, Session
    from tests import tiny

    forward = choose(network, dpo, [(cuts[0][0], list(cuts[0][1:]))], lambda _: None)
    sequences = [(prompt, side) for prompt, *sides in cuts for side in sides]
    found = logprob.logprobs(sequences, network, dpo, forward)
    pairs = [TrainingPair(*cut, *found[2 * row : 2 * row + 2]) for row, cut in enumerate(cuts)]
    session = Session(folder, tiny.deepspeed(), Beat())
    history = session.history()
    trainer = PairTrainer(network, pairs, [], dpo, forward, session, history, lambda _: None)
    return trainer, lambda: history.rows()[-1]["loss"]


def trl_trainer(network: Any, cuts: list[Any], dpo: Any, folder: Path) -> tuple[Any, Any]:
    """TRL's trainer on the same ids, and a function that gives the last loss."""
    from datasets import Dataset
    from trl import DPOTrainer

    from tests import tiny
    from tests.trl_arguments import trl_arguments

    class OnIds(DPOTrainer):
        """TRL's trainer on token ids as they are."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    arguments = trl_arguments(dpo, folder, precompute_ref_batch_size=2)
    data = Dataset.from_list(
        [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), cut, strict=True)) for cut in cuts]
    )
    network.config._name_or_path = str(folder)
    trainer = OnIds(model=network, args=arguments, train_dataset=data, processing_class=tiny.tokenizer())
    return trainer, lambda: [row["loss"] for row in trainer.state.log_history if "loss" in row][-1]


if __name__ == "__main__":
    main()
