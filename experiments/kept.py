"""Keep what studies read of a store, small enough for a repository: no weights, and few texts of answers.

    python -m experiments.kept runs/SWEEP FOLDER
    tar -C FOLDER -cJf artefacts.tar.xz .       # half as large, since policies of one study are much alike

FOLDER is a store again. Copied to the place of a store, it lets the commands of the runs end with the same tables and
without sampling, training or judging; pairs are chosen again, and the reference's log-probabilities of them computed.
Tiles are as they were, but the texts of answers to held-out prompts and to IFEval are empty. The store's own notes
(meta.json), which may name folders of this machine, are left out.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from experiments import runs
from experiments.runs import Point
from sweetspot.store import StoreError
from sweetspot.visible import one_line, visible

TEXTS = ("response", "baseline")  # columns of evaluations
WITHOUT_TEXTS = ("held_out", "ifeval")  # evaluations of which no study reads them
POLICY = ("config.json", "fingerprint.json", "history.jsonl", "pairs.json")  # what is kept of a policy


def files(point: Point) -> Iterator[str]:
    """The files of a run that are kept as they are, by their place in the store."""
    yield "meta.json"
    (found,) = point.manifest["rounds"]
    if "samples" in found:
        yield found["samples"]["prompts"]
        yield f"{found['samples']['folder']}/probe.json"
    for part in ("samples", "rewards"):
        yield from (f"{found[part]['folder']}/{name}.parquet" for name in found.get(part, {"tiles": []})["tiles"])
    if "policy" in found:
        yield from (f"{found['policy']['folder']}/{name}" for name in POLICY)
    for one in point.manifest["evaluations"]:
        if one["kind"] not in WITHOUT_TEXTS:
            yield from (one[name] for name in ("path", "regulariser") if one.get(name))


def evaluated(point: Point) -> Iterator[str]:
    """The tiles of evaluations that are kept without texts, by their place in the store."""
    for found in point.manifest["evaluations"]:
        if found["kind"] in WITHOUT_TEXTS:
            yield from (found[name] for name in ("path", "start_path") if name in found)


def check(point: Point) -> None:
    """Refuse a run whose command would need what is not kept.

    Raises:
        ValueError: one line, for a run of several rounds, of a base model, or measured by lm-eval.
    """
    kinds = {found["kind"] for found in point.manifest["evaluations"]}
    if len(point.manifest["rounds"]) != 1 or "sft" in point.manifest or "lm_eval" in kinds:
        raise ValueError(f"only runs of one round, without SFT and lm-eval, can be kept, got {point.folder}")


def keep(points: list[Point], folder: Path) -> int:
    """Copy what is kept of these runs below a folder; what it has already stays.

    Returns:
        How many files are new.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: a run cannot be kept.
    """
    for point in points:
        check(point)
    new = 0
    for point in points:
        new += sum(_placed(point.store / name, folder / name, shutil.copyfile) for name in files(point))
        new += sum(_placed(point.store / name, folder / name, without_texts) for name in evaluated(point))
    return new


def _placed(source: Path, target: Path, write: Callable[[Path, Path], Any]) -> bool:
    """Write a whole file once."""
    if target.exists():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.part")
    write(source, scratch)
    scratch.replace(target)
    return True


def without_texts(source: Path, target: Path) -> None:
    """Copy the tile of an evaluation with empty texts; all else, its name and facts among it, is as it was."""
    table = pq.read_table(source)
    for name in set(TEXTS) & set(table.column_names):
        empty = pa.array([None if text is None else "" for text in table[name].to_pylist()], pa.string())
        table = table.set_column(table.column_names.index(name), name, empty)
    pq.write_table(table, target, compression="zstd", write_page_checksum=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.kept", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="runs or sweeps (runs/NAME)")
    parser.add_argument("out", type=Path, help="folder to keep it in; files that are there stay")
    given = parser.parse_args()
    try:
        points, missing = runs.read(given.folders)
        new = keep(points, given.out)
    except (ValueError, OSError, StoreError, pa.ArrowException) as error:
        sys.exit(f"error: {one_line(str(error))}")
    size = sum(path.stat().st_size for path in given.out.rglob("*") if path.is_file())
    print(visible(f"{new} new files of {len(points)} runs, {size / 1e6:.1f} MB in {given.out}"))
    if missing:
        print(one_line(f"not done: {', '.join(missing)}"))


if __name__ == "__main__":
    main()
