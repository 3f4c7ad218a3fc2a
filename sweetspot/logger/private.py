"""What must not leave this machine, taken out of what is sent elsewhere."""

import hashlib
import os
import re
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import escape

from sweetspot.logger.secret import HIDDEN, below, is_secret, plain, secrets, tells

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
SHORTEST = 8  # characters of a key or a private text that is looked for in other texts
ENDS = r"\s'\",;()\[\]{}<>|"  # characters that end a path within a text
PATH = re.compile(rf"(?<![\w./~…<])(?!(?<=:)//)(?:~[\w.-]*)?/[^{ENDS}]+")
ABSOLUTE = re.compile(rf"\b(file://|\w+://(?=/))([^{ENDS}]+)", re.IGNORECASE)  # a path as an address
URL = re.compile(r"\b(\w+)://([^/\s:'\"]+)")
TEXTS = ("system_prompt", "chat_template")  # keys whose values are text of conversations
NEVER = ("head", "command")  # keys whose values name other machines, or repeat private values somehow quoted
READ = ("folder", "history", "path", "prompts", "start_path", "store", "tiles")  # places, which no page shows
KEYS = ("key", "judge_key")  # of artefacts, in a manifest
NAMED = re.compile(r"[^A-Za-z0-9_.=,+@-]+")  # what the name of a run has "-" for


@dataclass(frozen=True)
class Private:
    """What must not leave this machine.

    Attributes:
        keys: of mappings, whose texts are taken out whole.
        words: values of secret variables, secrets of the configuration, and private texts, taken out wherever they
            occur, as in HTML too.
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

    def scrubbed(self, value: Any, kept: Sequence[str] = (), name: str = "") -> Any:
        """The value without what is private: secrets by their keys, and every text in it cleaned by `text`, keys of
        mappings included.

        Args:
            value: of any depth.
            kept: what lies under these keys stays as it is.
            name: the key that the value lies under.
        """
        if isinstance(value, Mapping):
            return {
                self.text(str(key)): part if key in kept else self.scrubbed(part, kept, below(name, str(key)))
                for key, part in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.scrubbed(part, kept, name) for part in value]
        if is_secret(value, name) or (isinstance(value, str) and name.rpartition(".")[2] in self.keys):
            return HIDDEN
        return self.text(value) if isinstance(value, str) else value

    def manifest(self, manifest: Mapping[str, Any], kept: Sequence[str] = ()) -> dict[str, Any]:
        """A manifest without what is private; what lies under the keys `kept`, but for the configuration, stays."""
        config = {"config": self.scrubbed(manifest["config"])} if "config" in manifest else {}
        return {**self.scrubbed(manifest, (*KEYS, *kept)), **config}

    def text(self, value: str) -> str:
        """The text with absolute paths cut to their last name, and without hosts, secrets and private texts."""
        value = plain(_without(value, self.words))
        if whole := re.match(r"(file://)?(?=[~/])", value):  # the whole is a path, blanks included
            return whole[0] + self._place(value[whole.end() :])
        for place in (place for place, _ in self.places if re.match(rf"[~/].*[{ENDS}]", place)):
            value = re.sub(rf"{re.escape(place)}[^{ENDS}]*", lambda found: self._place(found[0]), value)
        value = ABSOLUTE.sub(lambda found: found[1] + self._place(f"/{found[2]}"), value)
        value = PATH.sub(lambda found: self._place(found[0]), value)
        return self.known(URL.sub(_public, value))

    def said(self, value: str) -> str:
        """What somebody wrote, as it is but for secrets, private texts and the configuration's own paths."""
        for place, left in self.places:
            value = value.replace(place, left).replace(str(escape(place)), left)
        return _without(value, self.words)

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
        keys = [key for key, value in config.items() if self.scrubbed(value, (), key) != value]
        ends = [*map(_sets, keys), *(rf"(?<![A-Za-z0-9]){re.escape(key)}[=-]" for key in self.keys)]
        cuts = [found.end() for end in ends if (found := re.search(end, name))]
        found = name[: min(cuts)] + HIDDEN if cuts else name
        within = (NAMED.sub("-", word) for word in (*self.words, *self.folders))
        found = _without(found, [word for word in within if len(word) >= SHORTEST])
        found = self.text(found)
        return found if found == name else f"{found}-{_hash(name)}"

    def override(self, override: str) -> str:
        """A word of the command line as it is, or where its value is private, its key and a hash of the whole."""
        key, _, value = override.partition("=")
        typed = re.sub(r"\\(.)", r"\1", value)  # Hydra writes "a\ b" for "a b"
        within = re.findall(r"([\w-]+)['\"]?\s*:", value)  # {system_prompt: ...}
        hides = any(name in self.keys or tells(name) for name in within)
        if not hides and all(self.scrubbed(one, (), key) == one for one in (value, typed)):
            return override
        return f"{key}={HIDDEN}-{_hash(override)}"

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
    known = [value for name, value in os.environ.items() if SECRET.search(name)]
    texts = [] if text else [value for key, value in config.items() if key.rpartition(".")[2] in TEXTS and value]
    folders = [str(place) for place in (Path.home(), Path.cwd(), tempfile.gettempdir())]
    hosts = {socket.gethostname(), socket.getfqdn()} - {"localhost"}
    found = Private(
        keys=(*NEVER, *([] if text else TEXTS)),
        words=_longest_first(word for word in (*known, *secrets(config), *texts, *withheld) if len(word) >= SHORTEST),
        places=(),
        folders=_longest_first(one for one in folders if one != "/"),
        hosts=_longest_first(hosts),
        users=(Path.home().name, *(os.environ[name] for name in ("USER", "LOGNAME") if os.environ.get(name))),
    )
    values = _longest_first(
        place for one in _texts(config) if re.match(r"([~/]|\w+:/)..", one) for place in _places(one)
    )
    return replace(found, places=tuple((one, left) for one in values if (left := found.text(one)) != one))


def flat(config: Any, at: str = "") -> dict[str, Any]:
    """A configuration by dotted keys, as they are written on the command line; lists stay whole."""
    if not isinstance(config, Mapping) or not config:
        return {at: config}
    parts = {f"{at}.{name}" if at else str(name): part for name, part in config.items()}
    return {key: value for name, part in parts.items() for key, value in flat(part, name).items()}


def _texts(value: Any) -> Iterator[str]:
    """Every text of a configuration, whatever it lies in."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    yield from ([value] if isinstance(value, str) else (text for part in parts for text in _texts(part)))


def _places(value: str) -> tuple[str, str]:
    """A path or an address, and a path that is written as an address without its scheme."""
    return value, re.sub(r"^file:(//)?(?=/)", "", value)


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
    """An address without a host that only a network of its own knows."""
    scheme, host = found.groups()
    inside = host != "localhost" and ("." not in host or re.fullmatch(r"[\d.]+|.*\.(local|internal|lan|cluster)", host))
    return f"{scheme}://{HIDDEN if inside and host != '127.0.0.1' else host}"
