"""Runs side by side, from their manifests and the store that they name: what each is worth, on the same prompts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sweetspot.distribution.positions import NONE
from sweetspot.eval.ifeval import followed
from sweetspot.report.rows import Scored, read_history, read_scored
from sweetspot.schema import CHECKED, PAIRS, PROMPTS, SAMPLES, SCORES
from sweetspot.stages.pool import served
from sweetspot.statistics import bootstrap_mean
from sweetspot.store import read_tile
from sweetspot.strategy import PositionPair

Floats = NDArray[np.float64]
Each = TypeVar("Each")
PAIR = f"{PositionPair.__module__}.{PositionPair.__qualname__}"
LEVEL = {"reward": 0.0, "win_rate": 50.0, "instructions": 0.0}  # of a policy that answers as well as its baseline
START = "the start"  # the baseline of an evaluation without one of its own
JUDGED = ("held_out", "alpaca_eval_2", "arena_hard")  # evaluations that have a preference for every prompt


@dataclass(frozen=True)
class Settings:
    """How intervals are made: bootstrap draws over prompts, and their seed."""

    resamples: int
    seed: int


@dataclass(frozen=True)
class Point:
    """A run and its manifest."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """The composed configuration."""
        return self.manifest["config"]

    @property
    def store(self) -> Path:
        """Where its artefacts lie."""
        return Path(self.manifest["store"])

    @property
    def n(self) -> int:
        """Samples per prompt."""
        return self.config["n_samples"]

    @property
    def seed(self) -> int:
        """Of training and bootstrap, and of sampling where the command says no other."""
        return self.config["seed"]

    @property
    def pool_seed(self) -> int:
        """Of sampling; that of the run where the samples come from elsewhere."""
        return self.config.get("sampler", {}).get("seed", self.seed)

    @property
    def positions(self) -> tuple[str, str]:
        """The chosen and the rejected position of a pair of positions; the name of any other strategy, twice."""
        pair = self.pair
        return (pair.chosen, pair.rejected) if pair else (self.strategy, self.strategy)

    @property
    def strategy(self) -> str:
        """The strategy as the paper writes it; one of somebody's own by its class and all of its fields."""
        if pair := self.pair:
            return pair.chosen if pair.chosen == pair.rejected else str(pair)  # random
        fields = dict(self.config["strategy"])
        kind = fields.pop("_target_").rpartition(".")[2]
        return f"{kind}({', '.join(f'{field}={value!r}' for field, value in fields.items())})"

    @property
    def pair(self) -> PositionPair | None:
        """The strategy where it is the package's pair of positions; None for one of somebody's own."""
        fields = dict(self.config["strategy"])
        return PositionPair(**fields) if fields.pop("_target_") == PAIR else None

    def part(self, name: str, turn: int = -1) -> Mapping[str, Any]:
        """What the manifest says of samples, rewards, pairs or policy of a round; empty where it was not reached."""
        rounds = self.manifest["rounds"]
        return rounds[turn].get(name, {}) if rounds else {}


def having(points: Sequence[Point], part: str, measure: str = "reward") -> list[Point]:
    """The runs that reached samples, rewards, pairs, policy, or the evaluation of a measure; of policies each once,
    whatever sweeps it is in.

    Raises:
        ValueError: one line, where none did.
    """
    reached = [point for point in points if (evaluation(point, measure) if part == "evaluation" else point.part(part))]
    if not reached:
        what = f"an evaluation of {measure}" if part == "evaluation" else part
        raise ValueError(f"the study needs runs that reached {what}, got none of {len(points)}")
    if part not in ("policy", "evaluation"):
        return reached
    keys = [(point.part("policy")["key"], evaluation(point, measure).get("key")) for point in reached]
    return list(dict(zip(keys, reached, strict=True)).values())


def pools(points: Sequence[Point]) -> list[Point]:
    """Of each pool of rewards (they differ by seed, model or reward model) the run that reads most of it.

    Runs with an adaptive budget are left out: who got more samples depends on the rewards, so statistics are biased.
    """
    largest: dict[str, Point] = {}
    uniform = [point for point in points if point.config["sampler"]["budget"] == "uniform"]
    for point in sorted(having(uniform, "rewards"), key=lambda point: point.n):
        largest[point.part("rewards")["key"]] = point
    return list(largest.values())


def scored(point: Point, turn: int = -1) -> Scored:
    """The reward matrix of a round, whatever was selected from it: what figures of the pool are of."""
    return read_scored(point.store, point.part("samples", turn), point.part("rewards", turn))


def selectable(point: Point) -> Scored:
    """The reward matrix as the last round's selection saw it, without later copies where the run ignores them: what
    moments, positions and picks beside its pairs are of."""
    ignoring = point.config.get("ignore_duplicates", False)
    return read_scored(point.store, point.part("samples"), point.part("rewards"), ignoring)


def prompt_ids(point: Point) -> list[str]:
    """The training prompts, in the order of the rows of the reward matrix."""
    return read_tile(point.store / point.part("samples")["prompts"], PROMPTS)[0]["prompt_id"].to_pylist()


def tokens(point: Point) -> Floats:
    """The lengths of the responses that were scored, tokens [prompts, n]; NaN where there is none."""
    samples, ids = point.part("samples"), prompt_ids(point)
    matrix = np.full((len(ids), samples["n_samples"]), np.nan)
    row_of = {name: row for row, name in enumerate(ids)}
    for name in samples["tiles"]:
        path = point.store / samples["folder"] / f"{name}.parquet"
        table, rows = served(path, SAMPLES, row_of, samples["n_samples"], ["sample_index", "n_tokens"])
        matrix[rows, table["sample_index"].to_numpy()] = table["n_tokens"].to_numpy()
    return matrix


def pair_picks(point: Point) -> NDArray[np.intp]:
    """The chosen and rejected sample of each prompt's first pair, [2, prompts]; NONE where it has none."""
    row_of = {name: row for row, name in enumerate(prompt_ids(point))}
    found = np.full((2, len(row_of)), NONE, dtype=np.intp)
    for row in read_tile(point.store / point.part("pairs")["path"], PAIRS)[0].to_pylist():
        if row["pair_index"] == 0:
            found[:, row_of[row["prompt_id"]]] = row["chosen_index"], row["rejected_index"]
    return found


def history(point: Point) -> list[dict[str, Any]]:
    """The training curve, a row a step."""
    return read_history(point.store, point.part("policy"))


def judged(point: Point) -> Mapping[str, Any]:
    """The first evaluation that compares the policy with a baseline; empty where there is none."""
    return next((one for one in point.manifest["evaluations"] if one["kind"] in JUDGED), {})


def evaluation(point: Point, measure: str) -> Mapping[str, Any]:
    """The evaluation that the measure is of; empty where there is none."""
    if measure != "instructions":
        return judged(point)
    return next((one for one in point.manifest["evaluations"] if one["kind"] == "ifeval"), {})


def measure_of(points: Sequence[Point]) -> str:
    """The measure that all runs have: "reward" where every judge gives rewards, else "win_rate"; "instructions" where
    IFEval is all there is."""
    kinds = {one["kind"] for point in points if (one := judged(point))}
    if not kinds and any(evaluation(point, "instructions") for point in points):
        return "instructions"
    return "reward" if kinds <= {"held_out"} else "win_rate"


def baseline(point: Point, measure: str) -> str:
    """What a policy was compared with: the start, or the model whose answers a benchmark brings along."""
    found = evaluation(point, measure)
    return found["baseline"] if found["kind"] in ("alpaca_eval_2", "arena_hard") else START


def changes(point: Point, measure: str) -> dict[str, float]:
    """How much better than its baseline a policy answers, by prompt id.

    Args:
        measure: "reward": the judge's mean reward of the policy's responses less that of the baseline's, in the judge's
            units. "win_rate": how often the judge prefers the policy's, percent. "instructions": the share of the
            prompt's instructions (IFEval) that the policy follows strictly less that of the start, percent points.

    Raises:
        ValueError: one line, where the judge gives no rewards, or no IFEval is there.
    """
    if measure == "instructions":
        return _instructions(point)
    table = read_tile(point.store / judged(point)["path"], SCORES)[0]
    by_prompt: dict[str, list[float]] = {}
    for row in table.select(["prompt_id", "preference", "reward", "baseline_reward"]).to_pylist():
        if measure == "reward" and row["reward"] is None:
            raise ValueError(
                f"measure must be win_rate where the judge gives no rewards, got reward for {point.folder}"
            )
        value = row["reward"] - row["baseline_reward"] if measure == "reward" else 100 * row["preference"]
        by_prompt.setdefault(row["prompt_id"], []).append(value)
    return {name: float(np.mean(values)) for name, values in by_prompt.items()}


def _instructions(point: Point) -> dict[str, float]:
    found = evaluation(point, "instructions")
    if not found:
        raise ValueError(f"measure must be reward or win_rate without eval=ifeval, got instructions for {point.folder}")
    if "start_path" not in found:
        raise ValueError(
            f"{point.folder}: its manifest is of an earlier version and has no ifeval of the start; run its command "
            "again, which makes what is missing"
        )
    own, start = (read_tile(point.store / found[name], CHECKED)[0] for name in ("path", "start_path"))
    gain = 100 * (followed(own) - followed(start))
    return dict(zip(sorted(own["prompt_id"].to_pylist()), gain.tolist(), strict=True))


def grouped(points: Sequence[Each], label: Callable[[Each], Any]) -> dict[Any, list[Each]]:
    """The runs, or rows about them, by a label, in the order of their first."""
    found: dict[Any, list[Each]] = {}
    for point in points:
        found.setdefault(label(point), []).append(point)
    return found


def interval(values: Floats, settings: Settings, prefix: str = "") -> dict[str, float]:
    """Mean over prompts with its 95% bootstrap interval and the number of prompts, as columns of a table."""
    found = bootstrap_mean(values, settings.resamples, settings.seed)
    return {
        f"{prefix}mean": found.mean,
        f"{prefix}low": found.low,
        f"{prefix}high": found.high,
        f"{prefix}prompts": found.n,
    }


def seeds(points: Sequence[Point]) -> str:
    """The seeds of the runs, as they are told."""
    return ", ".join(str(seed) for seed in sorted({point.seed for point in points}))


def artefacts(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(what, key, place in the store) of every artefact of the run."""
    if "sft" in manifest:
        yield "fine-tuned start model", manifest["sft"]["key"], manifest["sft"]["folder"]
    for turn, found in enumerate(manifest["rounds"], 1):
        of_round = f"round {turn} " if len(manifest["rounds"]) > 1 else ""
        for name, part in found.items():
            yield of_round + name, part["key"], part.get("folder") or part["path"]
    for found in manifest["evaluations"]:
        yield found["name"], found["key"], found["path"]
