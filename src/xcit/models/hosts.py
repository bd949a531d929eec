"""Methods for libraries that read `model.config` as a dictionary or as JSON, or set attributes on the config.

For example, Hugging Face's Trainer sets `model.config.use_cache` on every model that has a config.
"""

import dataclasses
import difflib
import json
from typing import Any, TypeVar

from xcit.errors import XCiTError

Config = TypeVar("Config")


class ReadableConfig:
    """Base class of configs that other libraries can read as a dictionary or as JSON.

    The dictionary and the JSON contain only the fields of the dataclass, not other attributes of the config.
    """

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a dictionary. Configs that are values of fields become dictionaries too."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def to_json_string(self) -> str:
        """Returns the fields as JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def keeps_notes(kind: type[Config]) -> type[Config]:
    """Lets a frozen dataclass accept new attributes that are not fields, because some libraries set such attributes.

    The new attributes belong to one object. They are not saved with the model, not compared by ==, and not copied by
    `dataclasses.replace`. The fields stay frozen. Setting an attribute with a name similar to a field's name raises an
    `XCiTError` that suggests the field's name.
    """
    frozen = kind.__setattr__
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]

    def set_attribute(self: Config, name: str, value: Any) -> None:
        if name in names:
            frozen(self, name, value)  # raises
        if near := difflib.get_close_matches(name, names, n=1, cutoff=0.85):
            raise XCiTError(
                f"{kind.__name__} has no field {name}; did you mean {near[0]}? A config is frozen: make a changed copy "
                "with dataclasses.replace"
            )
        object.__setattr__(self, name, value)

    kind.__setattr__ = set_attribute  # type: ignore[method-assign, assignment]
    return kind
