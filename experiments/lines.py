"""What the lines of a comparison say of trained policies."""

from collections.abc import Mapping
from typing import Any

from experiments import output

CONVENTION = "(max, min)"  # what the paper's other pairs are compared with
SMALLEST = 0.001  # of p-values that are told as a number


def policy(row: Mapping[str, Any]) -> str:
    """What a policy is worth, at equal length too where the measure is a win rate, and over what the interval goes."""
    at_length = f", {controlled(row)}" if row["measure"] == "win_rate" else ""
    return f"{output.told(row)} against {row['baseline']}{at_length}; interval over prompts, for {seeds(row)}"


def controlled(row: Mapping[str, Any]) -> str:
    """The length-controlled win rate, percent, or that there is none."""
    if "lc" not in row:
        return "no length-controlled rate (LC)"
    return f"LC {row['lc']:.1f} (95%: {row['lc_low']:.1f} to {row['lc_high']:.1f})"


def difference(row: Mapping[str, Any], prefix: str) -> str:
    """The paired difference of two policies with its p-value, and its seeds where they are not those of the row."""
    p = row[f"{prefix}p_holm"]
    found = f"{output.told(row, prefix)}, Holm p {'< 0.001' if p < SMALLEST else f'{p:.3f}'}"
    same = row[f"{prefix}seeds"] == row["seeds"]
    return found if same else f"{found}, seeds {row[f'{prefix}seeds']}"


def seeds(row: Mapping[str, Any]) -> str:
    """The seeds of training that a mean is over, and the standard deviation of their means where there are several."""
    if row["seed_sd"] is None:
        return f"seed {row['seeds']}"
    return f"seeds {row['seeds']} (sd of their means {row['seed_sd']:.3f})"
