"""What must not leave this machine, taken out of what is sent elsewhere."""

import hashlib
import os
import re
import socket
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import escape

HIDDEN = "…"
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
SHORTEST = 8  # characters of a key or a private text that is looked for in other texts
ENDS = r"\s'\",;()\[\]{}<>|"  # characters that end a path within a text
PATH = re.compile(rf"(?<![\w./~…<])(?!(?<=:)//)(?:~[\w.-]*)?/[^{ENDS}]+")
URL = re.compile(r"\b(\w+)://(?:[^/\s@'\"]*@)?([^/\s:'\"]+)")
TEXTS = ("system_prompt", "chat_template")  # keys whose values are text of conversations
NEVER = ("head", "command")  # keys whose values name other machines, or repeat private values somehow quoted
READ = ("folder", "history", "path", "prompts", "start_path", "store", "tiles")  # places, which no page shows
NAMED = re.compile(r"[^A-Za-z0-9_.=,+@-]+")  # what the name of a run has "-" for


@dataclass(frozen=True)
class Private:
    """What must not leave this machine.

    Attributes:
        keys: of mappings, whose texts are taken out whole.
        words: values of secret variables and private texts, taken out wherever they occur, as in HTML too.
        places: values of the configuration that are a path or an address, and what is left of each.
        folders: of this user, taken out wherever they occur.
        hosts: names of this machine, taken out as whole words.
        users: folder names that tell who runs it.
    """

    keys: tuple[str, ...]
    words: tuple[str, ...]
    places: tuple[tuple[str, str], ...]
    folders: tuple[str, ...]
    hosts: tuple[str, ...]
    users: tuple[str, ...]

    def scrubbed(self, value: Any, kept: Sequence[str] = ()) -> Any:
        """The value with every text in it, keys of mappings included, cleaned by `text`; what lies under the keys
        `kept` stays as it is."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                self.text(str(name)): part if name in kept else self._part(str(name), part, kept)
                for name, part in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.scrubbed(part, kept) for part in value]
        return value

    def manifest(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """A manifest without what is private, from which its artefacts can still be read."""
        return {**self.scrubbed(manifest, READ), "config": self.scrubbed(manifest["config"])}

    def text(self, value: str) -> str:
        """The text with absolute paths cut to their last name, and without hosts, secrets and private texts."""
        value = _without(value, self.words)
        if re.match(r"[~/]", value):  # the whole is a path, blanks included
            return self._place(value)
        for place in (place for place, _ in self.places if re.match(rf"[~/].*[{ENDS}]", place)):
            value = re.sub(rf"{re.escape(place)}[^{ENDS}]*", lambda found: self._place(found[0]), value)
        value = PATH.sub(lambda found: self._place(found[0]), value)
        return self.known(URL.sub(_public, value))

    def said(self, value: str) -> str:
        """What somebody wrote, as it is but for secrets, private texts and the configuration's own paths."""
        value = _without(value, self.words)
        for place, left in self.places:
            value = value.replace(place, left).replace(str(escape(place)), left)
        return value

    def known(self, value: str) -> str:
        """The text without secrets, private texts, the folders of this user and the machine's names."""
        value = _without(self.said(value), self.folders)
        for host in self.hosts:
            value = re.sub(rf"(?<![\w-]){re.escape(host)}(?![\w-])", HIDDEN, value)
        return value

    def name(self, name: str, config: Mapping[str, Any]) -> str:
        """A run's name, which is made of its overrides, up to the first value that is private, and a hash of the whole.

        Where such a value ends cannot be told: a text may hold ",word=" as well, and the name may have been cut in it.

        Args:
            name: as `sweep.points.point_name` makes it.
            config: flat, as it was composed.
        """
        keys = [key for key, value in config.items() if self._part(key, value) != value]
        ends = [*map(_sets, keys), *(rf"(?<![A-Za-z0-9]){re.escape(key)}[=-]" for key in self.keys)]
        cuts = [found.end() for end in ends if (found := re.search(end, name))]
        found = name[: min(cuts)] + HIDDEN if cuts else name
        found = _without(found, [NAMED.sub("-", word) for word in (*self.words, *self.folders)])
        found = self.text(found)
        return found if found == name else f"{found}-{_hash(name)}"

    def override(self, override: str) -> str:
        """A word of the command line as it is, or where its value is private, its key and a hash of the whole."""
        key, _, value = override.partition("=")
        plain = re.sub(r"\\(.)", r"\1", value)  # Hydra writes "a\ b" for "a b"
        within = re.search(rf"\b({'|'.join(map(re.escape, self.keys))})\W*:", value)  # {system_prompt: ...}
        if not within and all(self._part(key, one) == one for one in (value, plain)):
            return override
        return f"{key}={HIDDEN}-{_hash(override)}"

    def _part(self, name: str, part: Any, kept: Sequence[str] = ()) -> Any:
        hides = isinstance(part, str) and name.rpartition(".")[2] in self.keys
        return HIDDEN if hides else self.scrubbed(part, kept)

    def _place(self, path: str) -> str:
        last = path.rstrip("/").rpartition("/")[2]
        return HIDDEN if not last or last in (*self.users, HIDDEN) else self.known(f"{HIDDEN}/{last}")


def private(config: Mapping[str, Any], text: bool, withheld: Iterable[str] = ()) -> Private:
    """What must not leave this machine, by its environment and a flat configuration.

    Args:
        config: flat.
        text: whether texts of conversations may leave it.
        withheld: further texts that may not.
    """
    secrets = [value for name, value in os.environ.items() if SECRET.search(name)]
    texts = [] if text else [value for key, value in config.items() if key.rpartition(".")[2] in TEXTS and value]
    folders = [str(place) for place in (Path.home(), Path.cwd(), tempfile.gettempdir())]
    hosts = {socket.gethostname(), socket.getfqdn()} - {"localhost"}
    found = Private(
        keys=(*NEVER, *([] if text else TEXTS)),
        words=_longest_first(word for word in (*secrets, *texts, *withheld) if len(word) >= SHORTEST),
        places=(),
        folders=_longest_first(one for one in folders if one != "/"),
        hosts=_longest_first(hosts),
        users=(Path.home().name, *(os.environ[name] for name in ("USER", "LOGNAME") if os.environ.get(name))),
    )
    values = _longest_first(one for one in config.values() if isinstance(one, str) and re.match(r"[~/]|\w+://", one))
    return replace(found, places=tuple((one, left) for one in values if (left := found.text(one)) != one))


def flat(config: Any, at: str = "") -> dict[str, Any]:
    """A configuration by dotted keys, as they are written on the command line; lists stay whole."""
    if not isinstance(config, Mapping) or not config:
        return {at: config}
    parts = {f"{at}.{name}" if at else str(name): part for name, part in config.items()}
    return {key: value for name, part in parts.items() for key, value in flat(part, name).items()}


def _longest_first(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(words), key=len, reverse=True))


def _sets(key: str) -> str:
    """A pattern of what sets a key in a run's name: "a.b=" or, with a mapping, "a=-"."""
    parts = key.split(".")
    above = [re.escape(".".join(parts[:end])) + "=-" for end in range(1, len(parts))]
    return rf"(?:^|(?<=[,+~]))(?:{'|'.join([re.escape(key) + '=', *above])})"


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()[:8]


def _without(value: str, words: Iterable[str]) -> str:
    for word in words:
        value = value.replace(word, HIDDEN).replace(str(escape(word)), HIDDEN)
    return value


def _public(found: re.Match[str]) -> str:
    """An address without user and password, and without a host that only a network of its own knows."""
    scheme, host = found.groups()
    inside = host != "localhost" and ("." not in host or re.fullmatch(r"[\d.]+|.*\.(local|internal|lan|cluster)", host))
    return f"{scheme}://{HIDDEN if inside and host != '127.0.0.1' else host}"
