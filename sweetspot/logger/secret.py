"""Secrets that somebody typed into a configuration: values whose key tells it, and parts of addresses."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

HIDDEN = "…"
TOKEN = "(?<!per_|eos_|bos_|pad_|unk_|sep_|cls_|end_)(?<!mask_|stop_)token"  # those of a tokenizer are none
NAME = re.compile(  # "api_key", "Authorization", "client_secret"; not "key_variable", "max_tokens", "bytes_per_token"
    rf"(?!.*variable)(.*(secret|passw|passphrase|credential).*|.*(key|api[_-]?keys|{TOKEN}|auth|authorization|cookie))",
    re.IGNORECASE | re.DOTALL,
)
USER = re.compile(r"(?<=://)([^/\s'\"?#]*)@")
PARAMETER = re.compile(r"(?<=[?&#;])([\w.~%-]+)=([^&#;\s'\"<>]+)")
SIGNATURES = ("code", "sig", "signature")  # what else opens an address
VARIABLE = re.compile(r"\b([A-Z][A-Z0-9_]*)=(\"[^\"]*\"|'[^']*'|[^\s'\"]+)")  # of a shell: export HF_TOKEN=...

TYPED = re.compile(  # "key=value" and, in a mapping, "key: value" of a command, up to the next of either
    r"([\w.@/-]+)(['\"]?[=:]\s*)('[^']*'|\"[^\"]*\"|(?:(?!\s[+~\w.@/-]+=)[^,'\"{}\[\]])+)"
)


def tells(name: str) -> bool:
    """Whether a key, or one of the dotted keys above it, says that what lies under it is a secret."""
    return any(NAME.fullmatch(part) for part in name.split("."))


def below(name: str, key: str) -> str:
    """The key that tells what a value is which lies under `name` and then `key`."""
    return name if tells(name) else key


def is_secret(value: Any, name: str) -> bool:
    """Whether a text or a whole number is a secret by its key."""
    return isinstance(value, str | int) and not isinstance(value, bool) and tells(name)


def secrets(value: Any, name: str = "") -> Iterator[str]:
    """What a configuration holds that should be known to nobody, also as an address would write it.

    Args:
        value: of any depth.
        name: its key.
    """
    for one in _found(value, name):
        yield from (one, unquote(one), quote(one, safe=""))


def without_secrets(value: Any, name: str = "") -> Any:
    """A configuration without secrets; addresses keep what is not secret in them."""
    if isinstance(value, Mapping):
        return {key: without_secrets(part, below(name, str(key))) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(part, name) for part in value]
    if is_secret(value, name):
        return HIDDEN
    return plain(value) if isinstance(value, str) else value


def plain(text: str) -> str:
    """The text with addresses without user, password and secret parameters, and shell variables without a secret."""
    text = VARIABLE.sub(lambda found: f"{found[1]}={HIDDEN}" if tells(found[1]) else found[0], USER.sub("", text))
    return PARAMETER.sub(lambda found: f"{found[1]}={HIDDEN}" if _opens(found[1]) else found[0], text)


def typed(command: str) -> str:
    """A command without the values of keys that tell a secret, and as `plain` leaves it."""
    return plain(TYPED.sub(lambda found: f"{found[1]}{found[2]}{HIDDEN}" if tells(found[1]) else found[0], command))


def _found(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _found(part, below(name, str(key)))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _found(part, name)
    elif is_secret(value, name):
        yield str(value)
        yield str(value).partition(" ")[2]  # of "Bearer ..."
    elif isinstance(value, str):
        for user in USER.findall(value):
            yield from (user, *user.split(":", 1))
        yield from (one for parameter, one in PARAMETER.findall(value) if _opens(parameter))
        yield from (one.strip("'\"") for variable, one in VARIABLE.findall(value) if tells(variable))


def _opens(parameter: str) -> bool:
    return tells(parameter) or parameter.lower().rpartition("-")[2] in SIGNATURES
