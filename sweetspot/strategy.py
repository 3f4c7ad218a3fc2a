"""Which two responses of a prompt become its preference pair: rewards [prompts, n] -> Selection.

Pure NumPy and seedless. Positions and points are those of "Finding the Sweet Spot" (arXiv 2502.16825), section 3.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, wraps
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
import pydantic.dataclasses
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict, Field, ValidationError

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Kind = Literal["min", "max", "sigma", "quantile", "min_of", "max_of", "random"]
Class = TypeVar("Class", bound=type)

POINTS = ("min", "mu-2sigma", "mu-sigma", "mu", "mu+sigma", "mu+2sigma", "max")
BLOCK = 2**16  # rewards worked on at once: 512 KB of float64 and its temporaries stay in a core's cache

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_MU = re.compile(rf"mu(?:([+-])({_NUMBER})?sigma)?")
_QUANTILE = re.compile(rf"q({_NUMBER})")
_FIRST = re.compile(r"(min|max)_of_([1-9][0-9]*)")
_FORMS = "min, max, mu, mu+sigma, mu-2sigma (any multiple), min_of_5, max_of_3, random or q0.05 (from q0 to q1)"


def paper_pairs() -> list[tuple[str, str]]:
    """The 21 pairs (chosen, rejected) of the paper's seven points, from the lowest chosen point to the highest."""
    return [(chosen, rejected) for place, chosen in enumerate(POINTS) for rejected in POINTS[:place]]


@dataclass(frozen=True)
class Position:
    """A place in a prompt's reward distribution, which one response represents.

    kind "min" and "max": the worst and the best response; "min_of" and "max_of": of the first `value` finite rewards.
    kind "random": the first finite reward. Samples of a pool are exchangeable, so the first ones are random draws, and
    they stay put as n grows.
    kind "sigma": the response nearest to mu + `value` * sigma, moments of the prompt's finite rewards.
    kind "quantile": the response nearest to the `value` quantile (linear between order statistics, as `np.quantile`).
    Ties go to the lowest index, everywhere.
    """

    kind: Kind
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Position":
        """The position that the paper writes so: `mu-2sigma`, `max`, `min_of_5`, ...; a ValueError lists all forms."""
        if text in ("min", "max", "random"):
            return cls(text)
        if match_ := _MU.fullmatch(text):
            sign, multiple = match_.groups()
            return cls("sigma", 0.0 if sign is None else float(sign + (multiple or "1")) + 0.0)  # + 0.0: no minus zero
        if (match_ := _QUANTILE.fullmatch(text)) and float(match_[1]) <= 1:
            return cls("quantile", float(match_[1]))
        if match_ := _FIRST.fullmatch(text):
            kind = "min_of" if match_[1] == "min" else "max_of"
            return cls("random") if match_[2] == "1" else cls(kind, int(match_[2]))
        raise ValueError(f"a position must be one of {_FORMS}, got {text!r}")

    @property
    def minimum_samples(self) -> int:
        """The finite rewards that a prompt needs for this position: k for the worst or best of k, else one."""
        return int(self.value) if self.kind in ("min_of", "max_of") else 1

    def pick(self, rewards: "FiniteRewards") -> Indices:
        """The column of the response that represents this position, for every prompt with `minimum_samples` or more."""
        values = rewards.values
        match self.kind:
            case "min" | "min_of":
                return values[:, : int(self.value) or None].argmin(axis=1)
            case "max" | "max_of":
                return values[:, : int(self.value) or None].argmax(axis=1)
            case "sigma":
                return _nearest_to_sigma(rewards, self.value)
            case "quantile":
                return _nearest_to_quantile(values, self.value)
            case "random":
                return np.zeros(len(values), dtype=np.intp)


@dataclass(frozen=True)
class FiniteRewards:
    """Finite rewards [prompts, m >= 2] and their moments, computed where a position asks; sigma divides by m - ddof."""

    values: Floats
    ddof: int

    @cached_property
    def mu(self) -> Floats:
        """The mean, [prompts, 1]."""
        return self.values.mean(axis=1, keepdims=True)

    @cached_property
    def sigma(self) -> Floats:
        """The standard deviation, [prompts, 1]."""
        return self.values.std(axis=1, ddof=self.ddof, mean=self.mu, keepdims=True)


def _nearest_to_sigma(rewards: FiniteRewards, multiple: float) -> Indices:
    """The column nearest to mu + multiple * sigma."""
    if multiple == 0 and rewards.values.shape[1] == 2:  # the mean of two is a tie, which rounding must not decide
        return np.zeros(len(rewards.values), dtype=np.intp)
    target = rewards.mu if multiple == 0 else rewards.mu + multiple * rewards.sigma
    distance = rewards.values - target  # [prompts, m]
    return np.abs(distance, out=distance).argmin(axis=1)


def quantile_ranks(quantile: float, m: int) -> list[int]:
    """The ranks (0 = lowest) of the order statistics of m nearest to their linear quantile: one, or two where tied.

    The quantile lies between two neighbours, so its fraction alone says which is nearer. Exact in rationals: the median
    of an even number of responses is a tie for every prompt, which rounding must not decide.
    """
    low, fraction = divmod(Fraction(str(quantile)) * (m - 1), 1)
    return [low] if fraction < Fraction(1, 2) else [low + 1] if fraction > Fraction(1, 2) else [low, low + 1]


def _nearest_to_quantile(rewards: Floats, quantile: float) -> Indices:
    """The column nearest to the linear quantile."""
    ranks = quantile_ranks(quantile, rewards.shape[1])
    ordered = np.partition(rewards, ranks, axis=1)
    return ((rewards == ordered[:, ranks[0], None]) | (rewards == ordered[:, ranks[-1], None])).argmax(axis=1)


@dataclass(frozen=True)
class Selection:
    """The pairs of a reward matrix, and the prompts that gave none.

    prompt, chosen, rejected: [pairs], the row of the prompt and the columns of its two responses, rows ascending.
    dropped: reason -> rows, ascending. Every row is either in `prompt` or under exactly one reason; all are present:
        too_few        fewer than two finite rewards, or than the k of `min_of_k` and `max_of_k`
        same_response  both positions fall on one response
        no_margin      the chosen reward does not exceed the rejected one
    """

    prompt: Indices
    chosen: Indices
    rejected: Indices
    dropped: dict[str, Indices]


class Strategy(Protocol):
    """A pure function of the rewards, which may give no pair, one or several for a prompt."""

    def __call__(self, rewards: ArrayLike) -> Selection:
        """The pairs of rewards [prompts, n]; NaN = not scored."""
        ...


def _raise_plainly(cls: Class) -> Class:
    """`cls`, whose own ValueErrors arrive as they were raised, without the lines that pydantic puts around them."""
    build: Callable[..., None] = cls.__init__

    @wraps(build)
    def build_plainly(self: object, *args: Any, **fields: Any) -> None:
        try:
            build(self, *args, **fields)
        except ValidationError as error:
            raise error.errors()[0].get("ctx", {}).get("error", error) from None

    setattr(cls, "__init__", build_plainly)  # noqa: B010 - a plain assignment to a type's __init__ is refused by pyright
    return cls


@_raise_plainly
@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class PositionPair:
    """One pair per prompt: the responses at two positions of its reward distribution.

    chosen, rejected: positions, as `Position.parse` reads them. (random, random) takes the first two finite rewards,
    ordered by reward: the baseline without selection.
    ddof: sigma divides by the number of finite rewards minus `ddof`; the paper does not say which.

    Raises:
        ValueError: an unknown position, or a pair of which the chosen response is never above the rejected one.
    """

    version: ClassVar[int] = 1  # raised when the same fields and rewards give other pairs

    chosen: str
    rejected: str
    ddof: int = Field(default=1, ge=0, le=1)

    def __post_init__(self) -> None:
        for field, text in (("chosen", self.chosen), ("rejected", self.rejected)):
            try:
                Position.parse(text)
            except ValueError as error:
                raise ValueError(f"strategy.{field}: {error}") from None
        if not self.chosen == self.rejected == "random" and _never_above(*self.positions):
            raise ValueError(f"strategy.chosen must lie above strategy.rejected for some rewards, got the pair {self}")

    def __str__(self) -> str:
        """The pair as the paper writes it, and `ddof` where it is another than usual."""
        return f"({self.chosen}, {self.rejected}{'' if self.ddof == 1 else f'; ddof={self.ddof}'})"

    @property
    def positions(self) -> tuple[Position, Position]:
        """The chosen and the rejected position."""
        return Position.parse(self.chosen), Position.parse(self.rejected)

    @property
    def minimum_samples(self) -> int:
        """The smallest n_samples that this pair can be made from."""
        return max(2, *(position.minimum_samples for position in self.positions))

    def check_n_samples(self, n_samples: int) -> None:
        """Raises a ValueError where n_samples responses per prompt are too few for this pair."""
        if n_samples < self.minimum_samples:
            raise ValueError(f"n_samples must be >= {self.minimum_samples} for the pair {self}, got {n_samples}")

    def __call__(self, rewards: ArrayLike) -> Selection:
        """The pair of every prompt that has one, and why the others have none.

        Args:
            rewards: [prompts, n], reward-model units; NaN or infinite = not scored. No prompts give no pairs.
                Statistics are float64 whatever the input.

        Raises:
            ValueError: `rewards` is not two-dimensional, or n is below `minimum_samples`.
        """
        matrix = np.asarray(rewards)
        if matrix.ndim != 2:
            raise ValueError(f"rewards must have the shape [prompts, n_samples], got {list(matrix.shape)}")
        self.check_n_samples(matrix.shape[1])
        picks = np.full((2, len(matrix)), -1, dtype=np.intp)  # chosen, rejected: [prompts]
        margin, scored = np.zeros((2, len(matrix)), dtype=bool)  # [prompts]
        for rows, columns, finite in finite_blocks(matrix, self.minimum_samples):
            pair = self._pick(finite)
            reward = np.take_along_axis(finite, pair.T, axis=1)  # [rows, 2]
            scored[rows], margin[rows] = True, reward[:, 0] > reward[:, 1]
            picks[:, rows] = pair if columns is None else np.take_along_axis(columns, pair.T, axis=1).T
        (chosen, rejected), kept = picks, np.flatnonzero(margin)
        apart = chosen != rejected
        dropped = {"too_few": ~scored, "same_response": scored & ~apart, "no_margin": scored & apart & ~margin}
        by_reason = {reason: np.flatnonzero(rows) for reason, rows in dropped.items()}
        return Selection(prompt=kept, chosen=chosen[kept], rejected=rejected[kept], dropped=by_reason)

    def _pick(self, finite: Floats) -> Indices:
        """The columns of the chosen and the rejected response, [2, rows]."""
        if self.chosen == self.rejected == "random":
            return np.where(finite[:, 0] >= finite[:, 1], [[0], [1]], [[1], [0]])
        rewards = FiniteRewards(finite, self.ddof)
        return np.stack([position.pick(rewards) for position in self.positions])


def finite_blocks(matrix: NDArray[Any], least: int) -> Iterator[tuple[Indices, Indices | None, Floats]]:
    """Every row with at least `least` finite rewards, in blocks of rows that have equally many.

    Yields (rows [rows], columns of their finite rewards [rows, m] or None for all n, these rewards [rows, m] float64).
    """
    finite = np.isfinite(matrix)
    counts = np.count_nonzero(finite, axis=1)
    for m in np.unique(counts[counts >= least]).tolist():
        same_count = np.flatnonzero(counts == m)
        size = max(1, BLOCK // matrix.shape[1])
        for rows in (same_count[start : start + size] for start in range(0, len(same_count), size)):
            block, columns = matrix[rows], None
            if m < matrix.shape[1]:
                kept, first = finite[rows], np.arange(len(rows))[:, None] * matrix.shape[1]
                block, columns = block[kept].reshape(-1, m), np.flatnonzero(kept).reshape(-1, m) - first
            yield rows, columns, np.ascontiguousarray(block, dtype=np.float64)


def _never_above(chosen: Position, rejected: Position) -> bool:
    """Whether no rewards, however many, put the chosen position's reward above the rejected one's."""
    if chosen in (Position("min"), Position("quantile", 0)) or rejected in (Position("max"), Position("quantile", 1)):
        return True
    match chosen.kind, rejected.kind:
        case ("sigma", "sigma") | ("quantile", "quantile") | ("max_of", "max_of"):
            return chosen.value <= rejected.value
        case ("min_of", "min_of"):
            return chosen.value >= rejected.value
        case ("min_of" | "random", "max_of" | "random"):  # both read the first reward: no better and no worse than it
            return True
        case ("sigma", "quantile"):
            return _sigma_below_quantile(chosen.value, rejected.value)
        case ("quantile", "sigma"):
            return _sigma_below_quantile(-rejected.value, 1 - chosen.value)
        case _:
            return False


def _sigma_below_quantile(multiple: float, quantile: float) -> bool:
    """Whether mu + multiple * sigma lies below that quantile of any rewards, by Cantelli's inequality.

    The response nearest to mu - k * sigma is above the quantile only where all responses up to the quantile, a share
    of (quantile * (n - 1) + 1/2) / n or more, lie below mu - k * sigma; at most 1 / (1 + k^2) of all responses do. The
    quantile's response is then not the maximum, so that (1 - quantile) * (n - 1) >= 1/2.
    """
    share = min(quantile, 0.5 / (1.5 - quantile))  # the smallest: at n without end, or at the smallest n that is left
    return multiple < 0 and share >= 1 / (1 + multiple**2)
