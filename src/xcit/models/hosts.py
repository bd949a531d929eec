"""Methods by which other programs use `model.config`: they read it as a dictionary or JSON, and set attributes on it.

For example, Hugging Face's Trainer sets `model.config.use_cache` on every model that has a config.
"""

import dataclasses
import difflib
import json
from typing import Any, TypeVar

from xcit.errors import XCiTError

Config = TypeVar("Config")


class ReadableConfig:
    """Methods by which other programs read a config. They return the fields, but no attribute added later."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields; nested configs become dictionaries."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def to_json_string(self) -> str:
        """Returns the fields as JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def keeps_notes(kind: type[Config]) -> type[Config]:
    """Lets a frozen dataclass accept attributes that are not fields, because some programs set them on every config.

    These attributes belong to one object: they are not stored, not compared, and not copied by `dataclasses.replace`.
    The fields stay frozen. A name that is close to a field's name raises an `XCiTError` that gives the right name.
    """
    frozen = kind.__setattr__
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]

    def set_attribute(self: Config, name: str, value: Any) -> None:
        if name in names:
            frozen(self, name, value)  # raises
        if near := difflib.get_close_matches(name, names, n=1, cutoff=0.85):
            raise XCiTError(
                f"{kind.__name__} has no field {name}; did you mean {near[0]}? A config is frozen: make a changed one "
                "with dataclasses.replace"
            )
        object.__setattr__(self, name, value)

    kind.__setattr__ = set_attribute  # type: ignore[method-assign, assignment]
    return kind
