"""Train the two reward heads that ship with sweetspot, and say what they are worth.

    python -m sweetspot.embedded.smollm2 MODEL
    python experiments/train_reward_heads.py --data FOLDER --model MODEL

FOLDER holds `pandalm/testset-v1.json` (github.com/WeOpenML/PandaLM at 3871806, Apache-2.0) and `llmbar/` with the
folders Natural and Processed (github.com/princeton-nlp/LLMBar at 900616b, MIT). Writes the heads to
sweetspot/embedded/heads.safetensors and what they are worth to experiments/results/reward_heads.md.

The prompts are cut in two by a hash. A head is a Bradley-Terry model, that is a logistic regression without intercept
on the difference of two responses' features. Layer and penalty are chosen by cross-validation inside a head's own half,
so the accuracy on the other half is that of a head which never saw a prompt of it.
"""

import argparse
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy.optimize import minimize

from sweetspot.eval.reward_bench import Pair, of_rows, rows
from sweetspot.model import Model, folder_digest
from sweetspot.reward_model import HEADS, Conversation
from sweetspot.reward_model.embedded import Backbone
from sweetspot.store import library_versions

RESULTS = Path(__file__).parent / "results" / "reward_heads.md"
PANDALM = "pandalm/testset-v1.json"
LLMBAR = {
    "MT-Bench": "llmbar/Processed/MT-Bench/dataset.json",
    "LLMEval^2": "llmbar/Processed/LLMEval^2/dataset.json",
    "LLMBar Natural": "llmbar/Natural/dataset.json",
    "FairEval": "llmbar/Processed/FairEval/dataset.json",
}
NAMES = ("select", "gold")  # trained on half 0 and half 1
PROMPT_TOKENS = 160  # longer prompts, template included, are left out
RESPONSE_TOKENS = 96  # longer responses are cut, as a sampler cuts them
LAYERS = (6, 9, 12, 15, 18, 21, 24)  # looked at, each alone
SHIPPED = (6, 9, 12, 15)  # candidates of the shipped heads: what is above costs more to compute and is no better
PENALTIES = (0.3, 1.0, 3.0, 10.0)  # of half the squared weights of standardised features, beside the mean loss
FOLDS = 5
DRAWS, SEED = 2000, 0  # of the bootstrap
HEADLINES = (
    "# The embedded reward heads",
    "",
    "Made by `python experiments/train_reward_heads.py --data FOLDER --model MODEL`. Pairs of responses labelled by",
    "people are cut in two by a hash of the prompt, and every pair is judged by the head that never saw its prompt.",
    f"Prompts above {PROMPT_TOKENS} tokens are left out, responses cut at {RESPONSE_TOKENS}. ± is the standard error",
    "over prompts.",
    "Length-balanced is the mean of the accuracies where the chosen response is the longer one and where it is the",
    "shorter one: .500 for a scorer that only counts. The rule of choice and the candidate layers and penalties were",
    "settled by looking at these pairs, so the figures are slightly optimistic; the line with all layers is less so.",
)


@dataclass(frozen=True)
class Fitted:
    """A head with the layer and penalty that its own half chose: reward = weight . features + bias."""

    layer: int
    penalty: float
    accuracy: float  # cross-validated inside its own half
    weight: np.ndarray  # [width]
    bias: float


def read_pairs(data: Path) -> list[Pair]:
    """Every usable pair, once, in the order of the files."""
    files = {"PandaLM": PANDALM, **LLMBAR}
    found = [pair for source, file in files.items() for pair in of_rows(source, rows(data / file))]
    return [pair for pair in dict.fromkeys(found) if pair.chosen.strip() != pair.rejected.strip()]


def pair_features(pairs: Sequence[Pair], model: Model) -> tuple[list[Pair], np.ndarray]:
    """The pairs with a short enough prompt and two responses that differ within the limit, and their features.

    Returns:
        The kept pairs and [pairs, 2, layers, width], chosen first.
    """
    backbone = Backbone(model, LAYERS, "float32", batch_tokens=4096)
    kept: list[Pair] = []
    rows: list[tuple[list[int], list[int]]] = []
    for pair in pairs:
        turns = [{"role": "user", "content": pair.prompt}]
        two = [backbone.ids(Conversation(turns, text, None)) for text in (pair.chosen, pair.rejected)]
        cut = [(prompt, response[:RESPONSE_TOKENS]) for prompt, response in two]
        if len(cut[0][0]) <= PROMPT_TOKENS and cut[0] != cut[1]:
            kept.append(pair)
            rows += cut
    started, done = time.monotonic(), 0

    def progress(scored: int) -> None:
        nonlocal done
        done += scored
        print(f"features: {done} of {len(rows)} responses, {time.monotonic() - started:.0f} s", flush=True)

    names = [pair.prompt for pair in kept for _ in range(2)]
    features = backbone.features(rows, names, progress)
    return kept, features.reshape(len(kept), 2, *features.shape[1:])


def bradley_terry(differences: np.ndarray, penalty: float) -> np.ndarray:
    """The weights w that minimise mean log(1 + exp(-d.w)) + penalty/2 |w|^2 over the differences d [pairs, width].

    Source: Bradley and Terry, Rank analysis of incomplete block designs, 1952.
    """

    def loss(weight: np.ndarray) -> tuple[float, np.ndarray]:
        margin = differences @ weight
        slope = -differences.T @ (1 / (1 + np.exp(margin))) / len(differences) + penalty * weight
        return float(np.logaddexp(0, -margin).mean() + penalty / 2 * weight @ weight), slope

    start = np.zeros(differences.shape[1])
    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "gtol": 1e-8}).x


def fit_head(features: np.ndarray, folds: np.ndarray, layers: Sequence[int]) -> Fitted:
    """The head of one half: the strongest penalty, then the lowest layer, within one standard error of the best.

    Accuracy is cross-validated over the folds. A strong penalty leaves less of the half's own noise in the head, and a
    low layer costs less to compute.

    Args:
        features: [pairs, 2, layers, width], chosen first.
        folds: of each pair [pairs]; the pairs of a prompt are in one fold.
        layers: the candidates, out of LAYERS.
    """
    found: dict[tuple[float, int], float] = {}
    scale = features.reshape(-1, *features.shape[2:]).std(axis=0)  # [layers, width]
    differences = ((features[:, 0] - features[:, 1]) / scale).astype(np.float64)  # [pairs, layers, width]
    for layer in layers:
        place = LAYERS.index(layer)
        for penalty in PENALTIES:
            right = np.zeros(len(differences), dtype=bool)
            for fold in range(FOLDS):
                weight = bradley_terry(differences[folds != fold, place], penalty)
                right[folds == fold] = differences[folds == fold, place] @ weight > 0
            found[penalty, layer] = float(right.mean())
    best = max(found.values())
    enough = best - np.sqrt(best * (1 - best) / len(differences))
    penalty, layer = min((place for place in found if found[place] >= enough), key=lambda place: (-place[0], place[1]))
    place = LAYERS.index(layer)
    weight = bradley_terry(differences[:, place], penalty) / scale[place]
    rewards = features[:, :, place].astype(np.float64) @ weight
    weight /= rewards.std()  # rewards of the half's responses: mean 0, standard deviation 1
    return Fitted(layer, penalty, found[penalty, layer], weight, -float(rewards.mean() / rewards.std()))


def margins(head: Fitted, features: np.ndarray) -> np.ndarray:
    """Reward of the chosen less that of the rejected response [pairs]."""
    states = features[:, :, LAYERS.index(head.layer)].astype(np.float64)
    return (states[:, 0] - states[:, 1]) @ head.weight


def standard_error(right: np.ndarray, prompts: Sequence[str]) -> float:
    """Of the mean of `right`, by a bootstrap over prompts (pairs of one prompt are not independent)."""
    names, owner = np.unique(np.array(prompts), return_inverse=True)
    hits, counts = np.bincount(owner, weights=right), np.bincount(owner)
    drawn = np.random.default_rng(SEED).integers(0, len(names), size=(DRAWS, len(names)))
    return float((hits[drawn].sum(axis=1) / counts[drawn].sum(axis=1)).std(ddof=1))


def row_of(label: str, pairs: Sequence[Pair], right: np.ndarray) -> str:
    """A line of the table: accuracy of the heads, of "longer wins", and of the heads where that is right or wrong."""
    longer = np.array([pair.longer for pair in pairs])
    split = [right[longer == value].mean() if (longer == value).any() else np.nan for value in (1.0, 0.0)]
    prompts = [pair.prompt for pair in pairs]
    return (
        f"| {label} | {len(pairs)} | {right.mean():.3f} ± {standard_error(right, prompts):.3f} "
        f"| {longer.mean():.3f} ± {standard_error(longer, prompts):.3f} "
        f"| {split[0]:.3f} / {split[1]:.3f} | {np.mean(split):.3f} |"
    )


def table(pairs: Sequence[Pair], halves: np.ndarray, right: np.ndarray, right_free: np.ndarray) -> list[str]:
    """Every pair judged by the head that never saw its prompt, by head and by source.

    Args:
        pairs: what was judged.
        halves: of each pair [pairs].
        right: where the shipped heads agree with people [pairs].
        right_free: where the heads do that could choose among all layers [pairs].
    """
    lines = [
        "| pairs | n | heads | longer wins | chosen longer / shorter | length-balanced |",
        "|---|---|---|---|---|---|",
        row_of("all", pairs, right),
        row_of("all, any of the layers " + ", ".join(map(str, LAYERS)), pairs, right_free),
    ]
    for half, name in enumerate(NAMES):
        lines.append(_part(f"`{name}` on the other half", pairs, right, halves != half))
    for source in ("PandaLM", *LLMBAR):
        lines.append(_part(source, pairs, right, np.array([pair.source == source for pair in pairs])))
    ratio = np.array([abs(np.log(max(len(pair.chosen), 1) / max(len(pair.rejected), 1))) for pair in pairs])
    return [*lines, _part("lengths within 25%", pairs, right, ratio <= np.log(1.25))]


def _part(label: str, pairs: Sequence[Pair], right: np.ndarray, kept: np.ndarray) -> str:
    return row_of(label, [pair for pair, keep in zip(pairs, kept, strict=True) if keep], right[kept])


def agreement(pairs: Sequence[Pair], both: Sequence[np.ndarray]) -> tuple[float, float]:
    """Correlation of the two heads' margins, plain and with the difference of log length taken out."""
    length = np.array([np.log(max(len(pair.chosen), 1) / max(len(pair.rejected), 1)) for pair in pairs])
    rest = [margin - length * (margin @ length) / (length @ length) for margin in both]
    return float(np.corrcoef(*both)[0, 1]), float(np.corrcoef(*rest)[0, 1])


def judge(heads: Sequence[Fitted], features: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """1.0 where the head that never saw the pair's prompt prefers the chosen response, else 0.0 [pairs]."""
    return np.where(halves == 0, margins(heads[1], features) > 0, margins(heads[0], features) > 0).astype(float)


def main() -> None:
    """Train, judge, write."""
    arguments = argparse.ArgumentParser(description="Train the two reward heads that ship with sweetspot.")
    arguments.add_argument("--data", type=Path, required=True, help="folder with pandalm/ and llmbar/")
    arguments.add_argument("--model", type=Path, required=True, help="the converted embedded policy")
    given = arguments.parse_args()
    model = Model(name="smollm2", path=str(given.model), revision=None, system_prompt=None, trust_remote_code=False)
    pairs, features = pair_features(read_pairs(given.data), model)
    halves = np.array([pair.bucket("half ", 2) for pair in pairs])
    folds = np.array([pair.bucket("fold ", FOLDS) for pair in pairs])

    def fit_both(layers: Sequence[int]) -> list[Fitted]:
        return [fit_head(features[halves == half], folds[halves == half], layers) for half in (0, 1)]

    heads, free = fit_both(SHIPPED), fit_both(LAYERS)
    right, right_free = judge(heads, features, halves), judge(free, features, halves)
    write_heads(heads, [float(right[halves != half].mean()) for half in (0, 1)])
    report = [
        *HEADLINES,
        "",
        f"{len(pairs)} pairs of {len({pair.prompt for pair in pairs})} prompts. `select` was trained on "
        f"{int((halves == 0).sum())} pairs, `gold` on {int((halves == 1).sum())}.",
        "",
        *table(pairs, halves, right, right_free),
        "",
        "| head | layer | penalty | cross-validated in its own half |",
        "|---|---|---|---|",
        *[f"| `{n}` | {h.layer} of 30 | {h.penalty:g} | {h.accuracy:.3f} |" for n, h in zip(NAMES, heads, strict=True)],
        "",
        "Correlation of the two heads' margins over all pairs: {:.2f}, and {:.2f} with the difference of log length "
        "taken out.".format(*agreement(pairs, [margins(head, features) for head in heads])),
        "",
        *sources(given.data, given.model),
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(report) + "\n")
    print("\n".join(report))


def write_heads(heads: Sequence[Fitted], accuracies: Sequence[float]) -> None:
    """Write weights and biases in float32, and as metadata what they are."""
    tensors: dict[str, np.ndarray] = {}
    facts = {
        "backbone": "SmolLM2-135M-Instruct",
        "pooling": "mean over the response's tokens",
        "made_by": "experiments/train_reward_heads.py",
    }
    for name, head, accuracy in zip(NAMES, heads, accuracies, strict=True):
        tensors[name] = head.weight[None].astype(np.float32)  # [layers, width]
        tensors[f"{name}_bias"] = np.array([head.bias], dtype=np.float32)
        facts[f"{name}_layers"] = str(head.layer)
        facts[f"{name}_accuracy_on_the_other_half"] = f"{accuracy:.3f}"
    save_file(tensors, HEADS, metadata=facts)
    HEADS.chmod(0o644)


def sources(data: Path, model: Path) -> list[str]:
    """What went in, by content."""
    versions, used = library_versions(), ("numpy", "torch", "transformers")
    files = [PANDALM, *LLMBAR.values()]
    digests = [hashlib.sha256((data / file).read_bytes()).hexdigest()[:16] for file in files]
    return [
        "| file | SHA-256 |",
        "|---|---|",
        *[f"| {file} | {digest} |" for file, digest in zip(files, digests, strict=True)],
        f"| the converted backbone | {folder_digest(model)[:16]} |",
        "",
        "PandaLM: github.com/WeOpenML/PandaLM at 3871806, Apache-2.0. The others: github.com/princeton-nlp/LLMBar at",
        f"900616b, MIT. Bootstrap: {DRAWS} draws, seed {SEED}. "
        + ", ".join(f"{name} {versions[name]}" for name in used)
        + ".",
    ]


if __name__ == "__main__":
    main()
