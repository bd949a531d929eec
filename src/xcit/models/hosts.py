"""What other people's programs do with `model.config`: they read it as a dictionary or JSON, and write notes on it.

Hugging Face's Trainer, for one, sets `model.config.use_cache` on every model that has a config.
"""

import dataclasses
import difflib
import json
from typing import Any, TypeVar

from xcit.errors import XCiTError

Config = TypeVar("Config")


class ReadableConfig:
    """The calls by which hosts read a config: the fields alone, without what a host wrote on it."""

    def to_dict(self) -> dict[str, Any]:
        """The fields, nested configs as dictionaries."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def to_json_string(self) -> str:
        """The fields as JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def keeps_notes(kind: type[Config]) -> type[Config]:
    """Lets a frozen dataclass take attributes that are no fields, for a host that writes them on every model's config.

    They belong to this one object: they are not stored, compared or copied by `dataclasses.replace`. A field stays
    frozen, and a name that is nearly a field's is an `XCiTError` that gives the right one.
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
