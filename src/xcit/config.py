"""Converts frozen dataclasses to and from YAML, plain dictionaries, and dotted names on a command line."""

import contextlib
import dataclasses
import difflib
import os
import reprlib
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from xcit.errors import XCiTError
from xcit.regular import regular
from xcit.writing import whole_file

Config = TypeVar("Config")

_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""Exceptions that decoding and parsing raise for text that is not YAML.

PyYAML raises ValueError for a date such as 2001-99-99 and for a number with too many digits. It raises RecursionError
for brackets that are nested a thousand levels deep. Bytes that are not UTF-8 raise UnicodeDecodeError, which is a
ValueError.
"""


_NOTHING = ("none", "null")
"""Words that mean "no value" for a field, on a command line or in `override`."""
_MOST_BYTES = 2**18
"""Largest size of a config file, in bytes. A config with all fields has about 3,000 bytes."""

_MOST_ENTRIES = 10_000
"""Largest number of entries that YAML's merge keys (`<<`) may create in a mapping.

Without a limit, each line of a file can double the number of entries.
"""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with a limit on the number of entries that merge keys create."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_ENTRIES:
            raise yaml.constructor.ConstructorError(problem="merge keys make a mapping too large")


class _Shown(reprlib.Repr):
    """Formats values for error messages and shortens them, because YAML aliases can make values huge."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict, self.maxstring, self.maxother = 3, 12, 12, 8, 120, 120

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 200 else f"a whole number of {x.bit_length():,} bits"


_shown = _Shown().repr


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a config to nested dicts of plain values; tuples become lists."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def save_yaml(config: Any, path: Path) -> None:
    """Writes a config to a file that `load_yaml` can read."""
    with whole_file(path) as part:
        part.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def load_yaml(kind: type[Config], path: Path) -> Config:
    """Reads a config of class `kind` from a YAML file.

    Raises:
        XCiTError: if the file can't be read or is not YAML, or if `from_dict` does not accept its values.
    """
    return from_dict(kind, read_yaml(path), where=f"{path}: ")


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file as a dict from field names to plain values. The fields are not checked.

    Raises:
        XCiTError: if the file can't be read, or is not a YAML mapping.
    """
    try:
        with regular(path).open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise XCiTError(f"{path}: not a YAML config: it has more than {_MOST_BYTES:,} bytes")
        values = yaml.load(data.decode(), _Loader)
    except OSError as error:
        raise XCiTError(f"{path}: {error.strerror}") from None
    except XCiTError:
        raise
    except _NOT_YAML as error:
        raise XCiTError(f"{path}: not a YAML config: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise XCiTError(f"{path}: not a YAML config: its top level is not a mapping of field names to values")
    return values


def from_dict(kind: type[Config], values: Mapping[str, Any], *, where: str = "") -> Config:
    """Builds a config of class `kind` from nested dicts; a missing field gets its default.

    Args:
        kind: a dataclass.
        values: plain values by field name; a dict for each section.
        where: text before the field name in error messages, such as the path of the file.

    Raises:
        XCiTError: if a field is unknown (the message suggests the nearest name), if a field without a default is
            missing, or if a value has the wrong type.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise XCiTError(f"{where}{name} is not a field{nearest_field(str(name), fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise XCiTError(f"{where}{name} is missing")
    return kind(**{name: _read(value, hints[name], f"{where}{name}") for name, value in values.items()})


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """Returns a copy of a config with some fields replaced.

    Args:
        config: the config to copy.
        changes: new values by dotted name, such as `{"schedule.epochs": 10}`, or by section, such as
            `{"schedule": {"epochs": 10}}`. Text is parsed as on a command line. "none", "null" and None remove the
            value of an optional field.

    Raises:
        XCiTError: if a name is unknown (the message suggests the nearest name), or a value has the wrong type.
    """
    known = dotted_names(config)
    values = to_dict(config)
    for name, value in _flat(changes):
        if name not in known:
            raise XCiTError(f"no config field {name!r}{nearest_field(name, known)}")
        *sections, last = name.split(".")
        target = values
        for section in sections:
            target = target[section]
        hint, may_be_empty = known[name]
        if hint is str and may_be_empty and (value is None or str(value).lower() in _NOTHING):
            target[last] = ""
        elif isinstance(value, str):
            target[last] = _parse(value, hint)
        else:
            target[last] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return from_dict(type(config), values)


def _flat(changes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields pairs of a dotted name and a value, from nested changes."""
    for name, value in changes.items():
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def dotted_names(config: Any, prefix: str = "") -> dict[str, tuple[Any, bool]]:
    """Returns a dict. Its keys are the dotted names of all fields that are not sections.

    Each value is a pair: the type of the field, and whether empty text means that the field is not set.
    """
    hints = typing.get_type_hints(type(config))
    names: dict[str, tuple[Any, bool]] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            names |= dotted_names(value, f"{prefix}{field.name}.")
        else:
            names[prefix + field.name] = hints[field.name], field.default == ""
    return names


def nearest_field(name: str, known: Collection[str]) -> str:
    """Returns the end of an error message about an unknown field: a suggestion of the nearest name, or all names."""
    # The most common mistake is to leave out the section.
    by_last_part = [other for other in known if other.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    near = by_last_part or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}"


def _parse(text: str, hint: Any) -> Any:
    """Parses text from a command line to a plain value for a field of type `hint`."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if text.lower() in _NOTHING:
            return None
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
    """Checks a plain value against a type, and converts it.

    Dicts become configs, lists become tuples, and for a float field integers and text become floats.
    """
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise XCiTError(f"{where} must be a section of fields, not {_shown(value)}")
        return from_dict(typing.cast(type[Any], hint), value, where=f"{where}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise XCiTError(f"{where} must be one of {', '.join(map(str, arguments))}, not {_shown(value)}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _read(value, next(a for a in arguments if a is not type(None)), where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise XCiTError(f"{where} must be a list, not {_shown(value)}")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise XCiTError(f"{where} must have {len(inner)} numbers, not {len(value)}")
        return tuple(_read(v, i, where) for v, i in zip(value, inner, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer outside the range of floats is refused below
            return float(value)
    if hint is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)  # YAML 1.1 parses 1e-3 as text
    if hint is int and isinstance(value, int) and value.bit_length() > 64:
        raise XCiTError(f"{where} must be a number of at most 64 bits, not {_shown(value)}")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise XCiTError(f"{where} must be of type {hint.__name__}, not {_shown(value)}")
    return value
