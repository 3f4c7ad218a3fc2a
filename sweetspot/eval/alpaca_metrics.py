"""The figures of AlpacaEval 2 from its annotations, by alpaca-eval's own metrics.

`get_winrate` and `get_length_controlled_winrate` are called as they are; what they do beside their figures is turned
off: nothing is written into the package's folder, and `df_gamed.csv`, for which they know no argument and would ask the
hub after everything is paid, is a file that was found before. The length-controlled rate joins difficulties by row
number, so it is given for the 805 published prompts in their published order and for nothing else.
"""

import contextlib
import hashlib
import zlib
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sweetspot.component import canonical_json
from sweetspot.eval.length_control import Regulariser, nearest_strength
from sweetspot.statistics import as_floats
from sweetspot.store import read_tile, write_tile

PROMPTS = 805
# SHA-256 over the canonical JSON of the 805 instructions in the order of alpaca_eval_gpt4_baseline.json.
INSTRUCTIONS = "d02007bfbcc8fcf624c641e8b70d53e82f7d0c061d12cf1b5695357e0d0090ce"
GAMED = (
    "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d"  # of the hub's df_gamed.csv, as others pin it
)


def published_order(instructions: Sequence[str]) -> bool:
    """Whether these are the 805 published instructions in their published order."""
    return hashlib.sha256(canonical_json(list(instructions)).encode()).hexdigest() == INSTRUCTIONS


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def difficulty_source(gamed: Path) -> str:
    """What the difficulties come from, for the label of a length-controlled rate."""
    found = digest(gamed)
    return "published" if found == GAMED else f"not the published df_gamed.csv (SHA-256 {found[:16]})"


def metrics(rows: Sequence[Mapping[str, Any]], gamed: Path | None) -> tuple[dict[str, Any], list[float] | None]:
    """Win rate, length-controlled win rate and what belongs to them.

    Args:
        rows: alpaca-eval's annotations: instruction, output_1 (the baseline's), output_2 (the policy's), generator_1,
            generator_2, annotator, and preference from 1 (the baseline) to 2 (the policy).
        gamed: df_gamed.csv, or None where no length-controlled rate is possible.

    Returns:
        The figures, rates in percent; and the prediction for each row at equal length in [0, 1], or None.
    """
    import pandas as pd
    from alpaca_eval.metrics import get_length_controlled_winrate, get_winrate

    frame = pd.DataFrame([dict(row) for row in rows])
    lengths = {side: frame[f"output_{side}"].str.len() for side in (1, 2)}  # characters, as alpaca-eval counts
    figures: dict[str, Any] = {
        **{name: plain(value) for name, value in get_winrate(frame).items()},
        "mean_length": float(lengths[2].mean()),
        "baseline_mean_length": float(lengths[1].mean()),
        "length_controlled_winrate": None,
    }
    if gamed is None:
        return figures, None
    with _given(gamed):
        found = get_length_controlled_winrate(frame, save_weights_dir=None, is_warn_extreme_changes=False)
    rate = float(found["length_controlled_winrate"])
    preference = frame["preference"].astype(float).replace({0.0: 1.5}).to_numpy() - 1
    shorter = (lengths[1] - lengths[2]).to_numpy(dtype=np.float64)
    figures |= {
        "length_controlled_winrate": rate,
        "lc_standard_error": float(found["lc_standard_error"]),
        "lc_strength": nearest_strength(preference, shorter, regulariser(gamed), rate),
        "difficulty": difficulty_source(gamed),
    }
    return figures, frame["glm_preference"].astype(float).tolist()


def regulariser(gamed: Path) -> Regulariser:
    """The difficulties and the rows of the two gamed baselines.

    Raises:
        ValueError: for a file that is no CSV, or without its columns or 805 difficulties.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(gamed)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"eval.gamed_path must be a CSV file, got {gamed} ({error})") from None
    needed = {"index", "preference", "std_delta_len", "instruction_difficulty"}
    if not needed <= set(frame.columns):
        raise ValueError(f"eval.gamed_path must have the columns {', '.join(sorted(needed))}, got {gamed}")
    first = frame.drop_duplicates("index")
    if frame["index"].tolist() != list(range(PROMPTS)) * (len(frame) // PROMPTS) or frame.empty:
        raise ValueError(f"eval.gamed_path must have its rows in the order of the {PROMPTS} prompts, got {gamed}")
    rows = np.column_stack([np.tanh(frame["std_delta_len"]), frame["instruction_difficulty"]])
    return Regulariser(as_floats(first["instruction_difficulty"]), rows, as_floats(frame["preference"]))


REGULARISER = pa.schema(  # what a length-controlled rate can be fitted again from, without pandas
    [
        ("prompt_id", pa.string()),  # of the row's prompt
        ("difficulty", pa.float64()),
        ("length", pa.float64()),  # of a gamed baseline's row: tanh of the length difference
        ("preference", pa.float64()),  # for the baseline, in [0, 1]
    ]
)


def write_regulariser(path: Path, regular: Regulariser, prompt_ids: Sequence[str]) -> None:
    """Keep the regulariser, its rows by prompt."""
    rows = len(regular.preference)
    columns = [
        [prompt_ids[number % len(prompt_ids)] for number in range(rows)],
        regular.rows[:, 1].tolist(),
        regular.rows[:, 0].tolist(),
        regular.preference.tolist(),
    ]
    write_tile(path, pa.Table.from_pydict(dict(zip(REGULARISER.names, columns, strict=True)), schema=REGULARISER), {})


def read_regulariser(path: Path) -> tuple[Regulariser, list[str]]:
    """A kept regulariser, and the prompts' ids in the order of its difficulties."""
    rows = read_tile(path, REGULARISER)[0]
    ids = list(dict.fromkeys(rows["prompt_id"].to_pylist()))
    difficulty, length, preference = (rows[name].to_numpy() for name in REGULARISER.names[1:])
    return Regulariser(difficulty[: len(ids)], np.column_stack([length, difficulty]), preference), ids


@contextlib.contextmanager
def _given(gamed: Path) -> Generator[None]:
    """alpaca-eval's metric with a local df_gamed.csv in place of its download, until the block ends."""
    from alpaca_eval.metrics import glm_winrate

    download = glm_winrate.hf_hub_download
    glm_winrate.hf_hub_download = lambda **_: str(gamed)
    try:
        yield
    finally:
        glm_winrate.hf_hub_download = download


def plain(value: Any) -> float | int:
    """A figure of numpy as Python's."""
    return value.item() if hasattr(value, "item") else value
