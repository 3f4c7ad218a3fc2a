"""The length-controlled win rate of policies, with an interval whose draws are fitted again."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from sweetspot.eval.alpaca_metrics import read_regulariser
from sweetspot.eval.comparison import FITS
from sweetspot.eval.length_control import Regulariser, length_controlled
from sweetspot.report import runs
from sweetspot.report.runs import Floats, Point, Settings
from sweetspot.schema import SCORES
from sweetspot.statistics import ALPHA, as_floats, blocks
from sweetspot.store import read_tile


def at_equal_length(points: Sequence[Point], measure: str, settings: Settings) -> dict[str, float]:
    """The length-controlled rate of policies that differ in their seed alone, as columns, percent.

    The mean over the seeds of alpaca-eval's own, and its interval over prompts, for which the regression of each seed
    is fitted again in every draw. {} for another measure than the win rate, and where a run has no such rate.
    """
    found = [runs.judged(point) for point in points]
    if measure != "win_rate" or any(one.get("length_controlled_winrate") is None for one in found):
        return {}
    tables = [_rows(point) for point in points]
    regular = _regulariser(points[0], tables[0]["prompt_id"].to_pylist())
    n, rng = tables[0].num_rows, np.random.default_rng(settings.seed)
    fixed = [(*_preference_and_length(table), one["lc_strength"]) for table, one in zip(tables, found, strict=True)]
    drawn: list[Floats] = []
    for size in blocks(settings.resamples, FITS):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)
        rates = [_rates(preference, shorter, counts, regular, strength) for preference, shorter, strength in fixed]
        drawn.append(np.mean(rates, axis=0))
    low, high = np.quantile(np.concatenate(drawn), (ALPHA / 2, 1 - ALPHA / 2), method="weibull")
    rate = float(np.mean([one["length_controlled_winrate"] for one in found]))
    return {"lc": rate, "lc_low": float(low), "lc_high": float(high)}


def _rates(preference: Floats, shorter: Floats, counts: Floats, regular: Regulariser, strength: float) -> Floats:
    """The rate of each draw, percent [draws]; counts are [draws, prompts], the rest is [prompts]."""
    wide = [np.broadcast_to(one, counts.shape) for one in (preference, shorter)]
    return length_controlled(wide[0], wide[1], counts, regular, strength)[0]


def _rows(point: Point) -> pa.Table:
    """SCORES, a row a prompt, by prompt id."""
    return read_tile(point.store / runs.judged(point)["path"], SCORES)[0].sort_by([("prompt_id", "ascending")])


def _preference_and_length(rows: pa.Table) -> tuple[Floats, Floats]:
    """The judge's preference, and how many characters the baseline's response is longer [prompts]."""
    lengths = [as_floats([len(text) for text in rows[name].to_pylist()]) for name in ("baseline", "response")]
    return as_floats(rows["preference"].to_pylist()), lengths[0] - lengths[1]


def _regulariser(point: Point, prompts: list[str]) -> Regulariser:
    """What the regression knows beforehand, its difficulties in the order of the prompts."""
    regular, order = read_regulariser(point.store / runs.judged(point)["regulariser"])
    row_of = {name: row for row, name in enumerate(order)}
    return dataclasses.replace(regular, difficulty=regular.difficulty[[row_of[name] for name in prompts]])
