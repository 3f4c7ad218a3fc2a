"""How many of a prompt's responses are different: exact and near duplicates, and the number of distinct ones in effect.

Pure, on matrices of codes: [prompts, n] integers, equal where two texts of a prompt are, negative where there is none.

Two responses are near duplicates when they are equal as letters and digits alone: NFKC-normalised, case-folded,
everything else (punctuation, white space, marks) left out. That finds copies that differ in layout; a paraphrase is no
duplicate. A response without any letter or digit is compared as it is.
"""

import math
import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]  # [prompts, n]


@dataclass(frozen=True)
class Duplicates:
    """Figures of a pool's responses.

    Attributes:
        exact_rate: the share of all responses that repeat an earlier equal one to the same prompt; NaN without any.
        near_rate: the same of those that repeat one in letters and digits; `exact_rate` or more.
        effective: number of distinct responses in effect of each prompt [prompts], exp(entropy) of the sizes of its
            groups of near duplicates (the Hill number of order 1, Hill 1973): n when all differ, 1 when all are alike,
            NaN without responses.
    """

    exact_rate: float
    near_rate: float
    effective: NDArray[np.float64]


def duplicates(texts: Codes, letters: Codes) -> Duplicates:
    """The figures of a pool.

    Args:
        texts: codes of the responses.
        letters: codes of the responses, `folded`.
    """
    counts, groups, entropy = _groups(letters)
    return Duplicates(
        exact_rate=_repeated(*_groups(texts)[:2]),
        near_rate=_repeated(counts, groups),
        effective=np.where(counts > 0, np.exp(entropy), np.nan),
    )


def later_copies(texts: Codes) -> NDArray[np.bool_]:
    """Which responses are equal to one of the same prompt with a lower index, [prompts, n]."""
    order = np.argsort(texts, axis=1, kind="stable")  # equal codes stay in the order of their indices
    ordered = np.take_along_axis(texts, order, axis=1)
    repeats = np.zeros(texts.shape, dtype=bool)
    repeats[:, 1:] = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    found = np.zeros(texts.shape, dtype=bool)
    np.put_along_axis(found, order, repeats, axis=1)
    return found


def folded(response: str) -> str:
    """The letters and digits of a response, NFKC-normalised and case-folded; the response itself where it has none."""
    kept = "".join(filter(str.isalnum, unicodedata.normalize("NFKC", response).casefold()))
    return kept or response


def _groups(codes: Codes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Of each prompt: its responses, groups of equal ones, and the entropy of their sizes in nats; all [prompts]."""
    ordered = np.sort(codes, axis=1)
    rows, columns = np.nonzero(ordered >= 0)
    kept = ordered[rows, columns]
    starts = np.flatnonzero(np.r_[True, (np.diff(rows) != 0) | (np.diff(kept) != 0)][: len(kept)])
    sizes, owner = np.diff(np.r_[starts, len(kept)]), rows[starts]
    counts = np.bincount(rows, minlength=len(codes))
    share = sizes / counts[owner]
    entropy = np.bincount(owner, weights=-share * np.log(share), minlength=len(codes))
    return counts, np.bincount(owner, minlength=len(codes)), np.asarray(entropy, dtype=np.float64)


def _repeated(counts: NDArray[np.int64], groups: NDArray[np.int64]) -> float:
    return float(1 - groups.sum() / counts.sum()) if counts.sum() else math.nan
