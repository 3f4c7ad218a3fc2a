"""The command line of the store: python -m sweetspot.store COMMAND."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweetspot.exchange import check, exporting, importing, inventory, show
from sweetspot.launch import Launch, WorkerError
from sweetspot.logger import Logs, warn
from sweetspot.model import EMBEDDED, Model
from sweetspot.stages.prepare import embedded_folder
from sweetspot.stages.run import Run
from sweetspot.store import Store, StoreError
from sweetspot.visible import halves_told, one_line

HOUR, DAY = 3600.0, 86400.0
LEASE = 300.0  # seconds that the lease on a converted model lives without a heartbeat
UNITS = {"s": 1.0, "m": 60.0, "h": HOUR, "d": DAY}
EXAMPLES = """examples:
  python -m sweetspot.store ls                                  pools, rewards, pairs and policies
  python -m sweetspot.store du                                  bytes by kind and artefact
  python -m sweetspot.store verify                              read everything; exit code 1 when something is wrong
  python -m sweetspot.store gc                                  what could go;  --delete deletes it
  python -m sweetspot.store import responses.jsonl --model meta-llama/Meta-Llama-3-8B-Instruct
  python -m sweetspot.store export pairs KEY my_pairs           a data set for `datasets` and TRL
"""
IMPORT = """Make a pool of responses that were made elsewhere.

A row of FILE (.json: a list of rows, .jsonl, .parquet) has a prompt (text, or a list of messages), a list of
responses, and, where there are any, a list of rewards. These columns are known:

  SimPO                 prompt, all_generated_responses, all_rm_scores
  the paper's authors   instruction, output, scores (the prompts are rendered: --rendered)
  distilabel            instruction, generations, ratings
  open-instruct         messages, score: a row for each response
  plain                 prompt or messages, responses, rewards or scores

Every row is looked at before anything is written. The responses of each prompt are shuffled once, their rewards with
them, since files are often sorted by reward. The same files and settings give the same pool.
"""
IMPORT_EXAMPLES = """examples:
  python -m sweetspot.store import all_outputs_rm.json --model meta-llama/Meta-Llama-3-8B-Instruct
  python -m sweetspot.store import sample.json --rendered --skip-bad-rows --model mistralai/Mistral-7B-Instruct-v0.2
  python -m sweetspot.store import mine.parquet --prompt-field question --responses-field answers --model my_folder
then:
  python run.py data=imported data.pool=KEY reward_model=imported model=other model.path=my_folder n_samples=16
"""
EXPORT = """Write pairs, samples or rewards of the store as a data set: Parquet files (or JSON lines) and a data card.

Pairs are in the conversational preference format: load_dataset("parquet", data_files="OUT/pairs.parquet"), and TRL's
DPOTrainer takes them as they are.
"""
EXPORT_EXAMPLES = """examples:
  python -m sweetspot.store export pairs 0123456789abcdef my_pairs
  python -m sweetspot.store export samples 0123456789abcdef my_pool --jsonl
  python -m sweetspot.store export pairs 0123456789abcdef my_pairs --push me/my-pairs    uploads it, private at first
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A user's error ends in one line."""
    asked = parser().parse_args(arguments)
    try:
        root = Path(asked.store)
        if asked.command != "import" and not (root / "meta.json").is_file():
            raise ValueError(f"--store must be the folder of a store, got {asked.store}")
        Store(root)
        return asked.run(root, asked)
    except importing.RefusedRowsError as error:
        lines = [f"error: {one_line(str(error))}", *(f"  {one_line(line)}" for line in error.lines)]
        sys.stderr.write("\n".join(lines) + "\n")
    except (ValueError, StoreError, WorkerError, OSError) as error:
        sys.stderr.write(f"error: {one_line(str(error))}\n")
    return 1


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="python -m sweetspot.store",
        description="Look after a store, bring pools in, take data sets out.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--store", default="store", help="folder of the store (default: %(default)s)")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, run, text in (
        ("ls", _ls, "pools with model, sampler, prompts x n, tokens, size and age; rewards, pairs and policies"),
        ("du", _du, "bytes by kind and artefact"),
        ("verify", _verify, "read every tile, name what is corrupt or orphaned; exit code 1 when there is any"),
        ("gc", _gc, "list what nobody will use again; delete it with --delete"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="one JSON value instead of tables")
        command.set_defaults(run=run)
        if name == "gc":
            command.add_argument("--delete", action="store_true", help="delete what is listed")
            command.add_argument(
                "--older-than",
                type=_seconds,
                default=DAY,
                metavar="TIME",
                help="leave alone what changed within this time: 90s, 30m, 12h, 7d (default: 1d)",
            )
    _import_parser(commands)
    _export_parser(commands)
    return top


def _import_parser(commands: Any) -> None:
    command = commands.add_parser(
        "import",
        help="make a pool of responses that were made elsewhere",
        description=IMPORT,
        epilog=IMPORT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("files", nargs="+", type=Path, metavar="FILE", help="read one behind the other")
    command.add_argument(
        "--model",
        required=True,
        help="hub id or folder of the policy to be trained, whose tokenizer makes the token ids; or: embedded",
    )
    command.add_argument("--revision", help="commit or tag of a hub id (default: its newest)")
    command.add_argument("--system-prompt", help="what model.system_prompt will be in the runs (default: none)")
    command.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the tokenizer")
    command.add_argument("--prompt-field", metavar="NAME", help="column of the prompt")
    command.add_argument("--responses-field", metavar="NAME", help="column of the list of responses")
    command.add_argument(
        "--rewards-field", metavar="NAME", help="column of the list of rewards; a.b: field b in field a"
    )
    command.add_argument(
        "--rendered", action="store_true", help="the prompts are rendered by the model's chat template"
    )
    command.add_argument("--seed", type=int, default=0, help="of the shuffle (default: %(default)s)")
    command.add_argument("--skip-bad-rows", action="store_true", help="leave bad rows out and count them")
    command.add_argument("--json", action="store_true", help="print the pool's facts as JSON")
    command.set_defaults(run=_import)


def _export_parser(commands: Any) -> None:
    command = commands.add_parser(
        "export",
        help="write pairs, samples or rewards as a data set",
        description=EXPORT,
        epilog=EXPORT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("kind", choices=("pairs", "samples", "rewards"))
    command.add_argument("key", metavar="KEY", help="as `ls` lists it")
    command.add_argument("out", type=Path, metavar="OUT", help="a folder that does not exist yet")
    command.add_argument("--jsonl", action="store_true", help="JSON lines instead of Parquet")
    command.add_argument(
        "--push", metavar="REPO", help="upload the folder to this data set of the hub, private at first; needs a login"
    )
    command.add_argument("--json", action="store_true", help="print rows by file as JSON")
    command.set_defaults(run=_export)


def _seconds(text: str) -> float:
    """Seconds of "90s", "30m", "12h" or "7d"."""
    number, unit = text[:-1], text[-1:]
    if unit not in UNITS or not number.replace(".", "", 1).isdigit():
        raise argparse.ArgumentTypeError(f"must be a time such as 90s, 30m, 12h or 7d, got {text}")
    return float(number) * UNITS[unit]


def _ls(root: Path, asked: argparse.Namespace) -> int:
    show.listing(inventory.listing(root), asked.json)
    return 0


def _du(root: Path, asked: argparse.Namespace) -> int:
    show.sizes(inventory.sizes(root), asked.json)
    return 0


def _verify(root: Path, asked: argparse.Namespace) -> int:
    findings = check.verify(root)
    show.findings(findings, asked.json, "nothing is wrong")
    return int(any(found.state != "in use" for found in findings))


def _gc(root: Path, asked: argparse.Namespace) -> int:
    findings = check.removable(check.structure(root), asked.older_than)
    if asked.delete:
        check.delete(root, findings)
    show.findings(findings, asked.json, "nothing can go")
    if findings and not asked.json:
        sys.stdout.write("deleted\n" if asked.delete else "nothing was deleted; --delete deletes it\n")
    return 0


def _one_worker() -> Launch:
    return Launch(
        threads=None,
        devices=None,
        lease_seconds=LEASE,
        nodes=1,
        node_rank=None,
        head=None,
        port=None,
        timeout_seconds=LEASE,
    )


def _import(root: Path, asked: argparse.Namespace) -> int:
    store = Store(root)
    model = Model(
        name=Path(asked.model).name,
        path=asked.model,
        revision=asked.revision,
        system_prompt=asked.system_prompt,
        trust_remote_code=asked.trust_remote_code,
    )
    if model.path == EMBEDDED:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(store, Path(folder), _one_worker(), Logs({}), remake_corrupt=False)
            model = model.at(embedded_folder(run))
    fields = {part: getattr(asked, f"{part}_field") for part in ("prompt", "responses", "rewards")}
    request = importing.Request(asked.files, fields, model, asked.seed, asked.rendered, asked.skip_bad_rows)
    pool, facts = importing.import_pool(store, request)
    for line in halves_told("import", facts.get("halves", 0)):  # a pool of an earlier version has none
        warn(line)
    show.pool(pool, facts, asked.json)
    return 0


def _export(root: Path, asked: argparse.Namespace) -> int:
    counts = exporting.export(root, asked.kind, asked.key, asked.out, asked.jsonl)
    show.exported(asked.out, counts, asked.json)
    if asked.push:
        sys.stdout.write(f"{exporting.push(asked.out, asked.push)}\n")
    return 0
