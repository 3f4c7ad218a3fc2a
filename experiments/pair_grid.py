"""Which pair is best? The paper's 21 pairs of seven points as a 7 x 7 heat map, beside the random baseline.

    python run.py experiment=pair_grid size=embedded
    python -m experiments.pair_grid runs/latest

Each cell is the policy's change from the start on the held-out prompts; marked cells differ from the random pair by a
paired test (5%, Holm over the pairs). Each pair is also compared with (max, min), a family of tests of its own. Beside
it: where the chosen and rejected responses really lie, which positions are one and the same response, and how many
pairs two strategies share. Intervals are over prompts, for the seeds at hand.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import lines, output, runs
from experiments.output import Beside, Found
from experiments.runs import Point, Settings
from sweetspot.distribution import at_picks, curve, expected_pair, picks, realised_z
from sweetspot.distribution.positions import NONE
from sweetspot.report.effects import BASELINE, THAN_RANDOM, effects
from sweetspot.statistics import ALPHA
from sweetspot.strategy import POINTS, Floats, Indices

REPORTED = {"(mu+2sigma, mu-2sigma)": "48.18 LC at n = 200", "(mu+2sigma, mu+sigma)": "34.63 LC, n not told"}
REFERENCES = {**THAN_RANDOM, lines.CONVENTION: "than_max_min_"}


def study(points: Sequence[Point], settings: Settings, measure: str | None) -> Found:
    """The grid of each model and n, over all seeds."""
    measure = measure or runs.measure_of(points)
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    overlaps: list[dict[str, Any]] = []
    beside: list[Beside] = []
    groups = runs.grouped(runs.having(points, "evaluation", measure), lambda point: (_identity(point), point.n))
    shown = model_names(points)
    for (of, n), group in groups.items():
        model = shown[of]
        found = grid(group, settings, measure)
        names = {"model": model, "n": n}
        rows += [{**names, **row} for row in found]
        overlaps += [{**names, **row} for row in overlap(group, settings)]
        figures[f"pair_grid_{re.sub(r'[^-.+@()0-9A-Za-z_]+', '-', model)}_{n}"] = _draw(
            found, f"{model}, n = {n}", measure
        )
        beside += compared(found, n)
    tables = {"pair_grid": rows, "pair_overlap": overlaps, "collisions": collided(points, settings)}
    return Found(tables, figures, beside)


def _identity(point: Point) -> tuple[tuple[str, str], ...]:
    """What identifies a model, which is not its name."""
    settings = runs.settings_of(point, "reward").items()
    return tuple((key, value) for key, value in settings if key.startswith("model."))


def model_names(points: Sequence[Point]) -> dict[tuple[tuple[str, str], ...], str]:
    """How each model is called: by its name; where several have one, with a number and the path too."""
    found = {_identity(point): str(point.config["model"]["name"]) for point in points}
    names = list(found.values())
    return {
        of: name if names.count(name) == 1 else f"{name} {number} ({dict(of).get('model.path')})"
        for number, (of, name) in enumerate(found.items(), 1)
    }


def grid(points: Sequence[Point], settings: Settings, measure: str) -> list[dict[str, Any]]:
    """A row a strategy: what its policy is worth beside the random pair's and that of (max, min) (`effects`), and where
    the pair lies."""
    groups = runs.grouped(points, lambda point: point.strategy)
    return [
        {
            **row,
            **runs.at_equal_length(groups[row["strategy"]], measure, settings),
            **realised(groups[row["strategy"]], settings),
        }
        for row in effects(points, measure, settings, REFERENCES)
    ]


def realised(points: Sequence[Point], settings: Settings) -> dict[str, Any]:
    """Where the chosen and the rejected responses lie in their prompt, where they would in the prompts of a normal pool
    that give a pair, and how much longer the chosen one is; a prompt's figures are means over the seeds for which it
    has a pair."""
    parts = [(runs.selectable(point), runs.tokens(point), runs.pair_picks(point)) for point in points]
    z = _over_seeds([realised_z(found.rewards, chosen) for found, _, chosen in parts])
    tokens = _over_seeds([at_picks(lengths, chosen) for _, lengths, chosen in parts])
    row: dict[str, Any] = {"kept": sum(point.part("pairs")["kept"] for point in points)}
    pair, many = (
        points[0].pair,
        [np.isfinite(found.rewards).sum(axis=1)[chosen[0] != NONE] for found, _, chosen in parts],
    )
    n = round(float(np.concatenate(many).mean())) if row["kept"] else points[0].n  # fewer where copies are ignored
    normal = (expected_pair(pair, n) if pair else None) or (None, None)
    for side, position, own, reference in zip(("chosen", "rejected"), points[0].positions, z, normal, strict=True):
        row |= runs.interval(own, settings, f"{side}_z_")
        row[f"{side}_normal_z"] = None if position == BASELINE else reference
    return row | runs.interval(tokens[0] - tokens[1], settings, "longer_")


def _over_seeds(parts: Sequence[Floats] | Floats) -> Floats:
    """The mean of the finite ones of the seeds [prompts], from [seeds, prompts]."""
    stacked = np.asarray(parts)
    many = np.isfinite(stacked).sum(axis=0)
    return np.where(many > 0, np.nansum(stacked, axis=0) / np.maximum(many, 1), np.nan)


def overlap(points: Sequence[Point], settings: Settings) -> list[dict[str, Any]]:
    """A row for two strategies: the share of prompts with the same pair, chosen or rejected response, with intervals
    over prompts; a prompt's share is that of the common seeds for which both have a pair. [] without such seeds, and
    where the training prompts are not the same."""
    groups = runs.grouped(points, lambda point: point.strategy)
    common = set.intersection(*({point.seed for point in group} for group in groups.values()))
    if not common or len({point.part("samples")["prompts"] for point in points}) > 1:
        return []
    pairs = {
        name: np.stack([runs.pair_picks(point) for point in _by_seed(group) if point.seed in common], axis=1)
        for name, group in groups.items()
    }  # each [2, seeds, prompts]
    couples = [(first, second) for at, first in enumerate(pairs) for second in list(pairs)[:at]]
    alike = [_alike(pairs[first], pairs[second]) for first, second in couples]
    rows = [{"first": first, "second": second} for first, second in couples]
    for side in ("pair", "chosen", "rejected"):
        shares = _shares([one[side] for one in alike], f"same_{side}", settings)
        rows = [{**row, **share} for row, share in zip(rows, shares, strict=True)]
    return rows


def _alike(first: Indices, second: Indices) -> dict[str, Floats]:
    """How often two strategies' pairs [2, seeds, prompts], or a side of them, are the same, of the seeds [prompts]."""
    equal = same(first, second)
    return {side: _over_seeds(one) for side, one in zip(("chosen", "rejected"), equal, strict=True)} | {
        "pair": _over_seeds(equal.min(axis=0))
    }


def same(first: Indices, second: Indices) -> Floats:
    """1 where two picks are the same response, 0 where they are not, NaN where one is none; of any one shape."""
    return np.where((first == NONE) | (second == NONE), np.nan, first == second)


def _shares(each: Sequence[Floats], name: str, settings: Settings) -> list[dict[str, Any]]:
    """The mean of each figure [prompts] as columns, with its interval over prompts and their number."""
    if not each:
        return []
    band = curve(np.stack(each, axis=1), range(len(each)), settings.seed, settings.resamples)
    columns = zip(band.mean, band.low, band.high, band.prompts, strict=True)
    return [
        {name: float(mean), f"{name}_low": float(low), f"{name}_high": float(high), "prompts": int(prompts)}
        for mean, low, high, prompts in columns
    ]


def _by_seed(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: point.seed)


def collided(points: Sequence[Point], settings: Settings) -> list[dict[str, Any]]:
    """A row for two of the seven points of a pool: the share of prompts where they are one response."""
    rows: list[dict[str, Any]] = []
    couples = [(a, b) for a in range(len(POINTS)) for b in range(a)]
    for point in runs.pools(points):
        found = picks(runs.selectable(point).rewards, POINTS)
        shares = _shares([same(found[a], found[b]) for a, b in couples], "share", settings)
        rows += [
            {"seed": point.pool_seed, "n": point.n, "first": POINTS[a], "second": POINTS[b], **share}
            for (a, b), share in zip(couples, shares, strict=True)
        ]
    return rows


def compared(rows: Sequence[Mapping[str, Any]], n: int) -> list[Beside]:
    """What the paper says of single pairs and of all, beside what was found."""
    single: list[Beside] = []
    for row in sorted(rows, key=lambda row: -row["mean"]):
        found = lines.policy(row)
        for than, prefix in (("random", "than_random_"), (lines.CONVENTION, "than_max_min_")):
            found += f"; than {than} {lines.difference(row, prefix)}" if f"{prefix}p" in row else ""
        what = f"{row['strategy']}, n = {n}, {row['measure']}"
        single.append(Beside(what, REPORTED.get(row["strategy"], "-"), found))
    pairs = [row for row in rows if row["strategy"] != BASELINE]
    return [*_of_all(pairs), *single] if pairs else single


def _of_all(pairs: Sequence[Mapping[str, Any]]) -> list[Beside]:
    """What the paper says of all pairs; of the start only where it is what the policies were compared with."""
    baseline = pairs[0]["baseline"]
    below = [row["strategy"] for row in pairs if row["high"] < runs.LEVEL[row["measure"]]]
    told = f"{len(below)} of {len(pairs)} by their intervals" + (f": {', '.join(below)}" if below else "")
    highest = max(pairs, key=lambda row: row["mean"])
    random, convention = (_told_apart(pairs, prefix) for prefix in ("than_random_", "than_max_min_"))
    best = f"highest mean of {len(pairs)}: {highest['strategy']} {lines.policy(highest)}; {random} differ from random"
    return [
        Beside("the best pair", "rejected at mu-2sigma, chosen as high as possible (LC)", best),
        Beside(
            f"pairs that differ from {lines.CONVENTION}",
            "a rejected response at mu-2sigma is better than the minimum",
            convention,
        ),
        Beside(
            f"pairs below {baseline}",
            "none of the 21 below the start (LC)" if baseline == runs.START else output.UNKNOWN,
            told,
        ),
    ]


def _told_apart(pairs: Sequence[Mapping[str, Any]], prefix: str) -> str:
    """How many pairs differ from a reference at 5% (Holm), of those that could be tested."""
    tested = [row for row in pairs if f"{prefix}p_holm" in row]
    return f"{sum(row[f'{prefix}p_holm'] < ALPHA for row in tested)} of {len(tested)} tested"


def _draw(rows: Sequence[Mapping[str, Any]], title: str, measure: str) -> Any:
    values = np.full((len(POINTS), len(POINTS)), np.nan)
    marked: set[tuple[int, int]] = set()
    for row in rows:
        if row["chosen"] in POINTS and row["rejected"] in POINTS:
            place = len(POINTS) - 1 - POINTS.index(row["chosen"]), POINTS.index(row["rejected"])
            values[place] = row["mean"]
            marked |= {place} if row.get("than_random_p_holm", 1.0) < ALPHA else set()
    figure = output.figure(6.5, 5.5)
    axes = figure.subplots()
    output.heat(axes, values, POINTS[::-1], POINTS, runs.LEVEL[measure], marked)
    axes.set(xlabel="rejected", ylabel="chosen")
    random = next((row for row in rows if row["strategy"] == BASELINE), None)
    told = f"random {output.told(random)}\n" if random else ""
    note = "* differs from random (5%, Holm); over prompts, for these seeds"
    axes.set_title(f"{title}: {measure} against {rows[0]['baseline']}\n{told}{note}", loc="left", fontsize=8)
    return figure


if __name__ == "__main__":
    output.run(study, "pair_grid", str(__doc__))
