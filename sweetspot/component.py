"""Components: frozen, typed dataclasses built by Hydra's `_target_`.

The fields of a component are its YAML schema, its validation and its cache key. A field declared with `runtime()`
changes speed and not results (batch size, threads, devices), so it is left out of the key.
"""

import dataclasses
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from sweetspot.visible import encodable

Built = TypeVar("Built")


CODE = ("_target_", "_source_")  # keys of a config that are no fields
_SOURCES: dict[str, str] = {}  # SHA-256 of the file of each foreign module, as it was when its classes were made


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def component(cls: type[Built]) -> type[Built]:
    """The class as a frozen dataclass that refuses wrong types, values out of range or not finite, and unknown keys."""
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    _SOURCES.pop(cls.__module__, None)  # it is imported now, perhaps anew
    for name in _foreign_modules(cls):
        _source(name)
    return cast("type[Built]", pydantic_dataclass(cls, frozen=True, kw_only=True, config=config))


def runtime(**constraints: Any) -> Any:
    """A field that changes speed and not results; `constraints` are pydantic's (`gt=0`, `ge=1`, ...)."""
    return Field(json_schema_extra={"runtime": True}, **constraints)


def identity(part: Any) -> dict[str, Any]:
    """What of a component decides its results: class, version and fields, nested components included.

    `version` is a class variable (1 when absent), raised when the meaning of the fields changes. A component whose
    fields do not tell (a folder, whose content counts and not its place) has a method `identity` of its own. One that
    is not of this package has no version to rely on, so that the text of its file counts: edited code is another
    component, and so do the fields that it adds to a class whose `identity` it inherits. What the file imports does
    not count.

    Raises:
        ValueError: for a class of somebody's own that is in no file.
    """
    told = part.identity() if hasattr(part, "identity") else field_identity(part)
    foreign = _foreign_sources(type(part))
    return {**told, **_beyond_inherited(part), "_source_": foreign} if foreign else told


def _beyond_inherited(part: Any) -> dict[str, Any]:
    """What an `identity` that a class inherits cannot tell of it: which class it is, and the fields that it adds."""
    cls = type(part)
    teller = next((one for one in cls.__mro__ if "identity" in vars(one)), cls)
    added = {name: getattr(part, name) for name in _kept_fields(cls) if name not in _kept_fields(teller)}
    return {**_class_identity(cls), **({"_fields_": within(added, identity)} if added else {})}


def _foreign_sources(cls: type) -> dict[str, str]:
    """SHA-256 of the file of each foreign module, as it was when this process imported it."""
    found = {name: _source(name) for name in _foreign_modules(cls)}
    if without := [name for name, source in found.items() if source is None]:
        raise ValueError(f"a component must be a class of a Python file, got {cls.__qualname__} of {without[0]}")
    return cast("dict[str, str]", found)


def _foreign_modules(cls: type) -> list[str]:
    """The modules outside this package and the standard library that define the class or one that it extends."""
    home = (__name__.partition(".")[0], *sys.stdlib_module_names)
    return [name for name in sorted({one.__module__ for one in cls.__mro__}) if name.partition(".")[0] not in home]


def _source(name: str) -> str | None:
    """SHA-256 of the module's file when it was first asked for; None where the module is in no file."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if name not in _SOURCES and file is not None and Path(file).is_file():
        _SOURCES[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return _SOURCES.get(name)


def field_identity(part: Any) -> dict[str, Any]:
    """A component's class, version and the fields that are not runtime, nested components by their identity."""
    kept = {name: getattr(part, name) for name in _kept_fields(type(part))}
    return {**_class_identity(type(part)), **within(kept, identity)}


def _class_identity(cls: type) -> dict[str, Any]:
    return {"class": f"{cls.__module__}.{cls.__qualname__}", "version": getattr(cls, "version", 1)}


def within(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value with each component that it is or holds by name replaced by what `change` makes of it."""
    if dataclasses.is_dataclass(value):
        return change(value)
    if isinstance(value, Mapping):
        return {name: within(part, change) for name, part in cast("Mapping[str, Any]", value).items()}
    return value


def key(*parts: Any) -> str:
    """The first 16 hex digits of SHA-256 over the canonical JSON of the parts (components by their identity)."""
    plain = [identity(part) if dataclasses.is_dataclass(part) else part for part in parts]
    return hashlib.sha256(canonical_json(plain).encode(errors="backslashreplace")).hexdigest()[:16]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def json_values(value: Any) -> Any:
    """The value as JSON in UTF-8 can hold it: tuples as lists, NaN and infinity as None, `encodable` texts."""
    if isinstance(value, Mapping):
        return {encodable(str(name)): json_values(part) for name, part in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [json_values(part) for part in cast("list[Any]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return encodable(value)


def to_config(part: Any) -> dict[str, Any]:
    """The component as the plain config that builds it again in another process, of the same code."""
    cls = type(part)
    values = {name: getattr(part, name) for name in _field_names(cls)}
    foreign = _foreign_sources(cls)
    of_code = {"_source_": foreign} if foreign else {}
    return {"_target_": f"{cls.__module__}.{cls.__qualname__}", **of_code, **within(values, to_config)}


def deciding(config: Any) -> Any:
    """What of a config decides results: without the fields that change speed alone, of nested components too.

    A class that is not of this package is not imported, and keeps all of its fields.
    """
    if not isinstance(config, Mapping):
        return config
    parts = cast("Mapping[str, Any]", config)
    cls = _class_of_package(str(parts.get("_target_")))
    return {name: deciding(part) for name, part in parts.items() if not _is_runtime(cls, name)}


def _class_of_package(target: str) -> type | None:
    """The class that a `_target_` names; None for another's, and for one that this version does not have."""
    from hydra.utils import get_class

    if target.partition(".")[0] != __name__.partition(".")[0]:
        return None
    try:
        return get_class(target)
    except (ImportError, ValueError, TypeError):
        return None


def build(config: Mapping[str, Any], at: str = "") -> Any:
    """The component that a config describes, nested `_target_`s first.

    Args:
        config: plain keys and values with a `_target_` (dotted path of the class), and perhaps the `_source_` that its
            files must have (SHA-256 by module).
        at: where the config lies ("sampler"), for the error text.

    Raises:
        ValueError: one line naming key, rule and value.
    """
    from hydra.utils import get_class  # Hydra is not needed to use a component

    nested = {name: _build_within(value, _join(at, name)) for name, value in config.items() if name not in CODE}
    target = config.get("_target_")
    try:
        cls = get_class(cast("str", target))
    except (ImportError, ValueError, TypeError) as error:
        where = f"{_join(at, '_target_')} must be the dotted path of a class, got {target!r}"
        raise ValueError(where + _fault_within(error.__cause__, str(target))) from None
    _check_sources(cls, config.get("_source_"), at)
    try:
        return cls(**nested)
    except ValidationError as error:
        raise ValueError(explain(error, at, _field_names(cls))) from None


def _check_sources(cls: type, keyed: Any, at: str) -> None:
    """Refuse code that was edited between the run that made a key of it and this process, which would use it."""
    found = _foreign_sources(cls)
    edited = [name for name in found if keyed is not None and keyed.get(name) != found[name]]
    if edited:
        raise ValueError(
            f"{_join(at, '_target_')}: {', '.join(edited)} was edited after the run had read it; the same command goes "
            "on with what it is now"
        )


def _fault_within(cause: BaseException | None, target: str) -> str:
    """What is wrong within the module of a target, in brackets; "" where there is no such module or class."""
    if cause is None or (isinstance(cause, ModuleNotFoundError) and f"{target}.".startswith(f"{cause.name}.")):
        return ""
    return f" ({type(cause).__name__}: {' '.join(str(cause).split())})"


def _build_within(value: Any, at: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    parts = cast("Mapping[str, Any]", value)
    if "_target_" in parts:
        return build(parts, at)
    return {name: _build_within(part, _join(at, name)) for name, part in parts.items()}


def explain(error: ValidationError, at: str, known: list[str]) -> str:
    """One line for every fault of a refused component, joined by "; ": key, rule and value."""
    return "; ".join(_explain_one(dict(fault), at, known) for fault in error.errors())


def refusal(error: Exception) -> str:
    """Why a configuration is refused, in one line: the key that has no value yet, the choices that there are, or the
    error's own words."""
    from omegaconf.errors import MissingMandatoryValue

    if isinstance(error, MissingMandatoryValue) and error.full_key:
        return f"{error.full_key} must be given: {error.full_key}=VALUE"
    return " ".join(str(error).partition("Config search path")[0].split())


def _explain_one(fault: dict[str, Any], at: str, known: list[str]) -> str:
    where = _join(at, ".".join(str(part) for part in fault["loc"]))
    match fault["type"]:
        case "unexpected_keyword_argument":
            return f"{where}: unknown key; the keys are {', '.join(known)}"
        case "missing" | "missing_keyword_only_argument":
            return f"{where}: a value is missing"
        case "value_error":
            rule = str(fault["ctx"]["error"])
            return f"{where}: {rule}" if where else rule
        case _:
            return f"{where}: {re.sub('^[A-Z][a-z]+ should', 'must', str(fault['msg']))}, got {fault['input']!r}"


def _field_names(cls: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _kept_fields(cls: type) -> list[str]:
    """The fields that decide results."""
    return [name for name in _field_names(cls) if not _is_runtime(cls, name)] if dataclasses.is_dataclass(cls) else []


def _is_runtime(cls: Any, name: str) -> bool:
    fields: dict[str, Any] = getattr(cls, "__pydantic_fields__", {})
    extra = fields[name].json_schema_extra if name in fields else None
    return bool(extra and extra.get("runtime"))


def _join(at: str, name: str) -> str:
    return ".".join(part for part in (at, name) if part)
