"""OMP_NUM_THREADS=1 PYTHONPATH=. python experiments/benchmarks/length_control.py [--trials 1000] [--prompts 300]

How often the 95% interval of a difference of length-controlled win rates covers the truth, and how often its test finds
a difference that is none: `compare` on synthetic paired judgements with a known length effect. The bars: 93 to 97% of
1,000 trials, and 5%.

A judgement is 1 with the probability sigmoid(advantage + 0.73 difficulty - effect tanh(length)), or, for three prompts
in ten, that probability itself: how sure of itself a published judge is. Two policies share a prompt's difficulty and
part of its luck. The numbers are near those of published policies, the regulariser's length effect (1.8) being larger
than theirs too. The truth is what the same regression comes to on 200,000 prompts whose judgements are the
probabilities; beside it stands the rate of the model itself at equal length.
"""

import argparse
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from sweetspot.eval.comparison import AtLength, Settings, compare_at_length
from sweetspot.eval.length_control import Regulariser, length_controlled
from sweetspot.statistics import ALPHA, Floats

POPULATION = 200_000
STRENGTH = 2.7825594  # C of the published gamed baselines
DIFFICULTY, SPREAD = 0.73, 1.5  # its weight, and its standard deviation over prompts
GAMED_EFFECT = 1.8
SHARED, UNSURE = 0.5, 0.3  # correlation of two policies' luck with a prompt; share of judgements that are no 0 or 1


@dataclass(frozen=True)
class Policy:
    """Advantage in logits at equal length, the judge's length effect, and characters longer than the baseline."""

    advantage: float
    effect: float
    longer: float
    spread: float = 600.0


@dataclass(frozen=True)
class Prompts:
    """What the prompts bring: difficulty [n], the regulariser, and the two policies' lengths and probabilities [n]."""

    regulariser: Regulariser
    shorter: list[Floats]
    probability: list[Floats]


CASES = {
    "4.5 points apart, one is longer": (Policy(0.0, 1.1, 0.0), Policy(0.26, 1.4, 400.0)),
    "equal, and equally long": (Policy(0.3, 1.1, 0.0), Policy(0.3, 1.1, 0.0)),
    # the advantage makes up for what the regulariser's larger length effect takes from a longer policy
    "equal, one is longer": (Policy(0.3, 1.1, 0.0), Policy(0.35, 1.4, 800.0, 900.0)),
}


def main() -> None:
    """Print coverage and false findings of each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="data sets a case")
    parser.add_argument("--prompts", type=int, default=200, help="of each data set")
    parser.add_argument("--resamples", type=int, default=400, help="draws of bootstrap and permutation")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name, policies in CASES.items():
        truth, model = limit(policies, given.prompts), at_equal_length(policies)
        rng = np.random.default_rng(given.seed)
        found = [one_trial(rng, policies, given.prompts, given.resamples) for _ in range(given.trials)]
        low, high, difference, p = np.array(found).T
        covered, rejected = (int(part.sum()) for part in ((low <= truth) & (truth <= high), p < ALPHA))
        print(
            f"{name}: truth {truth:+.2f} (the model's {model:+.2f}), mean {difference.mean():+.2f}, "
            f"sd {difference.std():.2f}, width {np.mean(high - low):.2f}\n"
            f"  covered {share(covered, given.trials)}, p < 5% in {share(rejected, given.trials)}",
            flush=True,
        )


def share(count: int, trials: int) -> str:
    """A share with its exact 95% interval."""
    low, high = stats.binomtest(count, trials).proportion_ci()
    return f"{count} of {trials} = {count / trials:.1%} (95%: {low:.1%} to {high:.1%})"


def one_trial(
    rng: np.random.Generator, policies: tuple[Policy, Policy], n: int, resamples: int
) -> tuple[float, float, float, float]:
    """Interval, difference and p-value of one data set."""
    drawn = draw(rng, policies, n)
    luck = rng.multivariate_normal([0, 0], [[1, SHARED], [SHARED, 1]], size=n).T
    measured: list[AtLength] = []
    for name, shorter, probability, own in zip("ab", drawn.shorter, drawn.probability, luck, strict=True):
        sure = (special.ndtr(own) < probability).astype(np.float64)
        judged = np.where(rng.uniform(size=n) < UNSURE, probability, sure)
        measured.append(AtLength(name, judged, shorter, STRENGTH))
    settings = Settings(resamples, int(rng.integers(2**31)), None, 1.0)
    (found,) = compare_at_length("LC", measured, drawn.regulariser, settings)
    return found.low, found.high, found.difference, found.p


def draw(rng: np.random.Generator, policies: tuple[Policy, Policy], n: int) -> Prompts:
    """Prompts of the one kind there is."""
    difficulty = rng.normal(0, SPREAD, size=n)
    gamed = np.concatenate([np.tanh(rng.normal(middle, 0.7, size=n)) for middle in (-0.6, 1.0)])
    twice = np.tile(difficulty, 2)
    preference = special.expit(DIFFICULTY * twice - GAMED_EFFECT * gamed)
    regulariser = Regulariser(difficulty, np.column_stack([gamed, twice]), preference)
    shorter = [-policy.longer - policy.spread * rng.standard_t(5, size=n) / np.sqrt(5 / 3) for policy in policies]
    probability = [
        special.expit(policy.advantage + DIFFICULTY * difficulty - policy.effect * np.tanh(characters / policy.spread))
        for policy, characters in zip(policies, shorter, strict=True)
    ]
    return Prompts(regulariser, shorter, probability)


def limit(policies: tuple[Policy, Policy], n: int) -> float:
    """The difference that the regressions of n prompts come to without chance."""
    drawn = draw(np.random.default_rng(1), policies, POPULATION)
    ones, strength = np.ones((1, POPULATION)), STRENGTH * n / POPULATION  # C weighs a sum over prompts
    first, second = (
        float(length_controlled(probability[None], shorter[None], ones, drawn.regulariser, strength)[0][0])
        for probability, shorter in zip(drawn.probability, drawn.shorter, strict=True)
    )
    return second - first


def at_equal_length(policies: tuple[Policy, Policy]) -> float:
    """The difference of the model's own rates at equal length."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    first, second = (
        100 * float(special.expit(one.advantage + DIFFICULTY * SPREAD * nodes) @ weights / weights.sum())
        for one in policies
    )
    return second - first


if __name__ == "__main__":
    main()
