"""The configuration reference: a Markdown page for each group of conf/, made of its YAML files and their comments.

The comments are the documentation: the first lines of a file say what the choice is, and the comment beside a value
says unit and meaning. A comment that goes on in the next lines is indented far; one above a key stands at the key.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

INDENTED = 20  # columns, from which a line of comment goes on with the comment before
COMMAND = re.compile(r"(python|slurm/|&&)")
PLACES = {"judge": "judge@eval.judge", "config": ""}  # how a group is chosen, where that is not by its name


@dataclass(frozen=True)
class Key:
    """A key of a file: its dotted path within it, its value as it is written, and what the comments say of it."""

    path: str
    value: str
    comment: str


def write(conf: Path, folder: Path) -> None:
    """Write a page for conf/config.yaml and for each group into the folder; a page of a group that is gone goes.

    An unchanged page is left alone; a new one is put in place whole, so that several may build at once."""
    folder.mkdir(exist_ok=True)
    groups = sorted(path for path in conf.iterdir() if path.is_dir())
    about = {**defaults(conf / "config.yaml"), "judge": "Who judges, within an evaluation.", "config": ""}
    wanted = {"config.md": page("config", [conf / "config.yaml"], about["config"])}
    wanted |= {f"{one.name}.md": page(one.name, sorted(one.glob("*.yaml")), about[one.name]) for one in groups}
    for old in folder.glob("*.md"):
        if old.name not in wanted:
            old.unlink(missing_ok=True)
    for name, text in wanted.items():
        if not (folder / name).exists() or (folder / name).read_text() != text:
            (scratch := folder / f".{name}.{os.getpid()}").write_text(text)
            scratch.replace(folder / name)


def page(group: str, files: list[Path], about: str) -> str:
    """The page of a group: what it decides, and a section for each choice."""
    title = "Values of no group" if group == "config" else f"`{group}`"
    return "\n".join([f"# {title}", "", escape(about), "", *(line for file in files for line in section(group, file))])


def defaults(config: Path) -> dict[str, str]:
    """What conf/config.yaml says of each group, and which choice it takes."""
    found = (key for key in keys_of(config.read_text()) if key.path.startswith("defaults[") and ": " in key.value)
    split = ((*key.value.removeprefix("optional ").split(": "), key.comment) for key in found)
    return {group: f"{told[0].upper()}{told[1:]}. Without a choice: `{choice}`." for group, choice, told in split}


def section(group: str, file: Path) -> Iterator[str]:
    """One choice: how it is chosen, what it is, what it builds on, and its keys."""
    text = file.read_text()
    lines = text.splitlines()
    place = PLACES.get(group, group)
    package = lines[0].removeprefix("# @package ") if lines[0].startswith("# @package ") else place.rpartition("@")[2]
    prefix = "" if package in ("_global_", "") else f"{package}."
    if place:
        yield from (f"## `{place}={file.stem}`", "")
    for line in opening(lines):
        yield from ("", "```text", line, "```", "") if COMMAND.match(line) else (escape(line),)
    yield ""
    keys = list(keys_of(text))
    if parents := [key for key in keys if key.path.startswith("defaults[")]:
        yield from ("Builds on:", "")
        yield from (f"- `{key.value}`{': ' + escape(key.comment) if key.comment else ''}" for key in parents)
        yield ""
    for key in keys:
        if not key.path.startswith("defaults["):
            yield f"`{prefix}{key.path}`" + (f" = `{key.value}`" if key.value else "")
            yield from (f": {'**must be given**: ' if key.value == '???' else ''}{escape(told(key))}", "")


def told(key: Key) -> str:
    """The comment of a key; what kind of key it is where it needs none."""
    if key.path.endswith("_target_"):
        return "the class that is built (dotted path)"
    return key.comment or ("as Hydra reads it" if key.value else "holds the keys that follow")


def opening(lines: list[str]) -> Iterator[str]:
    """The comment that a file begins with."""
    for line in lines:
        if not line.startswith("#"):
            return
        if not line.startswith("# @package"):
            yield line.removeprefix("#").strip()


def keys_of(text: str) -> Iterator[Key]:
    """Every key of a YAML file in its order: within mappings by dotted path, of the defaults each item."""
    lines, composed = text.splitlines(), yaml.compose(text)
    for path, node, first in _values(composed) if composed else ():  # a file may hold comments alone
        if path.startswith("defaults["):
            value = re.sub(r"\s+#.*", "", lines[first].strip().removeprefix("- "))
            yield Key(path, value, comment_at(lines, first, first, node.start_mark.column))
        elif isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
            yield Key(path, " ".join(node.value.split()), comment_at(lines, first, first, node.start_mark.column))
        elif isinstance(node, yaml.MappingNode) and node.value:  # what it holds has lines of its own
            yield Key(path, "", comment_at(lines, first, first, 0))
        else:
            end = node.end_mark
            yield Key(path, text[node.start_mark.index : end.index], comment_at(lines, first, end.line, end.column))


def _values(node: Any, at: str = "") -> Iterator[tuple[str, Any, int]]:
    """The path, the value's node and the line of each key."""
    for key, value in node.value:
        if (path := f"{at}{key.value}") == "defaults":
            yield from ((f"defaults[{number}]", item, item.start_mark.line) for number, item in enumerate(value.value))
            continue
        yield path, value, key.start_mark.line
        if isinstance(value, yaml.MappingNode):
            yield from _values(value, f"{path}.")


def comment_at(lines: list[str], first: int, last: int, column: int) -> str:
    """The comment of a key: above its first line, beside the end of its value (last, column), and on below that."""
    beside = re.search(r"(?:^|\s)#\s?(.*)$", lines[last][column:] if last < len(lines) else "")
    parts = [*above(lines, first), beside[1] if beside else ""]
    for line in lines[last + 1 :]:
        if not (found := re.match(r"( +)#\s?(.*)", line)) or len(found[1]) < INDENTED:
            break
        parts.append(found[2])
    return " ".join(part.strip() for part in parts if part.strip())


def above(lines: list[str], first: int) -> list[str]:
    """The lines of comment right above a line, but for the opening of the file."""
    start = first
    while start and (found := re.match(r"( *)#", lines[start - 1])) and len(found[1]) < INDENTED:
        start -= 1
    return [line.strip().lstrip("# ") for line in lines[start:first]] if start else []


def escape(text: str) -> str:
    """The text with what Markdown would read as its own escaped, but for code in backticks."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_{}\[\]<>$|#~@])", r"\\\1", part) for part in parts)
