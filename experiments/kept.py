"""Keep what studies read of a store, small enough for a repository: no weights, and no texts of judged answers.

    python -m experiments.kept runs/SWEEP FOLDER

FOLDER is a store again. Copied to the place of a store, it lets the commands of the runs end without sampling, training
or judging, with the same tables. Tiles are as they were; of evaluations the texts of the answers are empty.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from experiments import runs
from experiments.runs import Point
from sweetspot.store import StoreError
from sweetspot.visible import one_line, visible

TEXTS = ("response", "baseline")  # columns of evaluations
LARGE = ("*.safetensors", "tokenizer.json")  # files of a policy that are not kept


def files(point: Point) -> Iterator[str]:
    """The files of a run that are kept as they are, by their place in the store."""
    yield "meta.json"
    for found in point.manifest["rounds"]:
        if "samples" in found:
            yield found["samples"]["prompts"]
        for part in ("samples", "rewards"):
            of = found.get(part, {"tiles": []})
            yield from (f"{of['folder']}/{name}.parquet" for name in of["tiles"])
            yield from (f"{of['folder']}/{name}" for name in ("meta.json", "probe.json") if of["tiles"])
        if "pairs" in found:
            yield from (str(Path(found["pairs"]["path"]).with_name(name)) for name in ("meta.json", "pairs.parquet"))
        if "policy" in found:
            place = Path(found["policy"]["folder"])
            small = [path.name for path in (point.store / place).iterdir() if not any(map(path.match, LARGE))]
            yield from (str(place / name) for name in small)


def keep(points: list[Point], folder: Path) -> int:
    """Copy what is kept of these runs below a folder; what it has already stays.

    Returns:
        How many files are new.

    Raises:
        OSError: a file cannot be read or written.
    """
    new = 0
    for point in points:
        new += sum(_copied(point.store / name, folder / name) for name in files(point))
        for name in evaluated(point):
            source, target = point.store / name, folder / name
            new += _copied(source.with_name("meta.json"), target.with_name("meta.json"))
            new += without_texts(source, target)
    return new


def evaluated(point: Point) -> Iterator[str]:
    """The tiles of a run's evaluations, by their place in the store."""
    for found in point.manifest["evaluations"]:
        yield from (found[name] for name in ("path", "start_path") if name in found)


def _copied(source: Path, target: Path) -> bool:
    if target.exists() or not source.exists():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return True


def without_texts(source: Path, target: Path) -> bool:
    """Copy the tile of an evaluation with empty texts; all else, its name and facts among it, is as it was."""
    if target.exists():
        return False
    table = pq.read_table(source)
    for name in set(TEXTS) & set(table.column_names):
        empty = pa.array([None if text is None else "" for text in table[name].to_pylist()], pa.string())
        table = table.set_column(table.column_names.index(name), name, empty)
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, target, compression="zstd", write_page_checksum=True)
    return True


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
