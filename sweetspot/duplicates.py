"""How many of a prompt's responses are different: exact and near duplicates, and the number of distinct ones in effect.

Pure and linear in the number of responses. Two responses are near duplicates when they are equal as letters and digits
alone: NFKC-normalised, case-folded, everything else (punctuation, white space, marks) left out. That finds copies that
differ in layout; a paraphrase is no duplicate. A response without any letter or digit is compared as it is.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Duplicates:
    """Figures of each prompt that has responses, [prompts] in the order of their first response.

    Attributes:
        responses: how many the prompt has.
        exact: share of them that repeat an earlier equal one.
        near: share of them that repeat an earlier one in letters and digits; `exact` or more.
        effective: number of distinct responses in effect, exp(entropy) of the sizes of the groups of near duplicates:
            n when all differ, 1 when all are alike.
    """

    responses: NDArray[np.int64]
    exact: NDArray[np.float64]
    near: NDArray[np.float64]
    effective: NDArray[np.float64]

    @property
    def exact_rate(self) -> float:
        """The share of all responses that repeat an earlier equal one to the same prompt; NaN without responses."""
        return _weighted(self.exact, self.responses)

    @property
    def near_rate(self) -> float:
        """The share of all responses that repeat an earlier one to the same prompt in letters and digits; or NaN."""
        return _weighted(self.near, self.responses)


def duplicates(prompt_ids: Sequence[str], responses: Sequence[str]) -> Duplicates:
    """The figures of every prompt.

    Args:
        prompt_ids: of each response, in any order.
        responses: the texts, one for each of prompt_ids.
    """
    texts: dict[str, list[str]] = {}
    for name, response in zip(prompt_ids, responses, strict=True):
        texts.setdefault(name, []).append(response)
    exact = [Counter(several) for several in texts.values()]
    near = [Counter(map(folded, several)) for several in texts.values()]
    counts = [len(several) for several in texts.values()]
    return Duplicates(
        np.array(counts, dtype=np.int64),
        np.array([_repeated(groups) for groups in exact], dtype=np.float64),
        np.array([_repeated(groups) for groups in near], dtype=np.float64),
        np.array([_effective(groups) for groups in near], dtype=np.float64),
    )


def folded(response: str) -> str:
    """The letters and digits of a response, NFKC-normalised and case-folded; the response itself where it has none."""
    kept = "".join(filter(str.isalnum, unicodedata.normalize("NFKC", response).casefold()))
    return kept or response


def later_copies(places: Sequence[tuple[str, int]], responses: Sequence[str]) -> list[tuple[str, int]]:
    """The places (prompt_id, sample_index) of responses that are equal to one of the same prompt with a lower index.

    Args:
        places: of each response, in any order.
        responses: the texts, one for each place.
    """
    seen: set[tuple[str, str]] = set()
    copies: list[tuple[str, int]] = []
    for (name, index), response in sorted(zip(places, responses, strict=True)):
        if (name, response) in seen:
            copies.append((name, index))
        seen.add((name, response))
    return copies


def _repeated(groups: "Counter[str]") -> float:
    return 1 - len(groups) / groups.total()


def _effective(groups: "Counter[str]") -> float:
    """exp(entropy) of the groups' shares (the Hill number of order 1, Hill 1973)."""
    total = groups.total()
    return math.exp(-sum(size / total * math.log(size / total) for size in groups.values()))


def _weighted(shares: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    return float((shares * counts).sum() / counts.sum()) if len(counts) else math.nan
