"""Frozen dataclasses to and from YAML, plain dictionaries, and dotted names as typed on a command line."""

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from xcit.errors import XCiTError
from xcit.writing import whole_file

Config = TypeVar("Config")

_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""What PyYAML raises on a text that is none: ValueError on a date such as 2001-99-99, a number of too many digits and
bytes that are no UTF-8, RecursionError on brackets a thousand deep."""


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested dicts of plain values, tuples as lists."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def save_yaml(config: Any, path: Path) -> None:
    """Writes a config so that `load_yaml` gives it back."""
    with whole_file(path) as part:
        part.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def load_yaml(kind: type[Config], path: Path) -> Config:
    """Reads a config of class `kind`.

    Raises:
        XCiTError: if the file is missing or no YAML, or a field is unknown or of another type.
    """
    return from_dict(kind, read_yaml(path), where=f"{path}: ")


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads the plain values of a config of any class.

    Raises:
        XCiTError: if the file is missing or no YAML.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise XCiTError(f"{path}: {error.strerror}") from None
    except _NOT_YAML as error:
        raise XCiTError(f"{path}: not a YAML config: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise XCiTError(f"{path}: not a YAML config: its top is no mapping of field names to values")
    return values


def from_dict(kind: type[Config], values: Mapping[str, Any], *, where: str = "") -> Config:
    """Builds a config of class `kind` from nested dicts; a field left out keeps its default.

    Raises:
        XCiTError: if a field is unknown (the nearest right name is suggested), missing or of another type.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise XCiTError(f"{where}{name} is no field{_nearest(str(name), fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise XCiTError(f"{where}{name} is missing")
    return kind(**{name: _read(value, hints[name], f"{where}{name}") for name, value in values.items()})


def override(config: Config, changes: Mapping[str, str]) -> Config:
    """A copy with fields replaced by dotted name, values as typed on a command line.

    Raises:
        XCiTError: if a name is unknown (the nearest right one is suggested) or a value is of another type.
    """
    known = _dotted_names(config)
    values = to_dict(config)
    for name, text in changes.items():
        if name not in known:
            raise XCiTError(f"no config field {name!r}{_nearest(name, known)}")
        *sections, last = name.split(".")
        target = values
        for section in sections:
            target = target[section]
        target[last] = _parse(text, known[name])
    return from_dict(type(config), values)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _dotted_names(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf field's dotted name, with its type."""
    hints = typing.get_type_hints(type(config))
    names: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            names |= _dotted_names(value, f"{prefix}{field.name}.")
        else:
            names[prefix + field.name] = hints[field.name]
    return names


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    # A field given without its section is the commonest slip.
    by_last_part = [other for other in known if other.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    near = by_last_part or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}"


def _parse(text: str, hint: Any) -> Any:
    """A command-line text as the plain value of a field's type."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union) and text != "null":
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if hint is str or (typing.get_origin(hint) is Literal and text in typing.get_args(hint)):
        return text
    try:
        value = yaml.safe_load(text)
    except _NOT_YAML:
        return text
    if isinstance(value, str) and typing.get_origin(hint) is tuple:
        return [_parse(part.strip(), typing.get_args(hint)[0]) for part in text.split(",")]
    return value


def _read(value: Any, hint: Any, where: str) -> Any:
    """Checks a plain value against a type; dicts become configs, lists tuples, ints floats where the field says so."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise XCiTError(f"{where} must be a section of fields, not {value!r}")
        return from_dict(typing.cast(type[Any], hint), value, where=f"{where}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise XCiTError(f"{where} must be one of {', '.join(map(str, arguments))}, not {value!r}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _read(value, next(a for a in arguments if a is not type(None)), where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise XCiTError(f"{where} must be a list, not {value!r}")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise XCiTError(f"{where} must have {len(inner)} numbers, not {len(value)}")
        return tuple(_read(v, i, where) for v, i in zip(value, inner, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)  # YAML 1.1 takes 1e-3 for a text
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise XCiTError(f"{where} must be of type {hint.__name__}, not {value!r}")
    return value
