"""The statement in a file or folder about its model: kind, shape, and what else is needed to use the model."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xcit.config import from_dict
from xcit.errors import XCiTError
from xcit.weights.files import StoredWeights
from xcit.zoo.kinds import CLASSIFIER, Kind, kind_of_config, kind_of_task

METADATA_KEY = "xcit"
"""Key in a safetensors file's metadata that holds task, shape, class names and preprocessing, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What a file states about its model: its kind, its config, and its info if it has one."""

    kind: Kind[Any, Any, Any]
    config: Any
    info: Any | None


def statement_content(config: Any, info: Any | None) -> dict[str, Any]:
    """Returns a statement as JSON values."""
    kind = kind_of_config(config)
    content: dict[str, Any] = {"config": dataclasses.asdict(config)}
    if kind is not CLASSIFIER:  # files of early versions contain no task; they are classifiers
        content["task"] = kind.task
    if info is not None:
        content["info"] = dataclasses.asdict(info)
    return content


def model_metadata(config: Any, info: Any | None) -> dict[str, str]:
    """Returns the metadata of a safetensors file."""
    return {METADATA_KEY: json.dumps(statement_content(config, info)), "format": "pt"}


def read_metadata(stored: StoredWeights) -> Statement | None:
    """Reads the statement in a file's metadata; returns None if this package did not write them.

    Raises:
        XCiTError: if the metadata are not what `model_metadata` writes.
    """
    return statement_of(stored.metadata[METADATA_KEY], str(stored.path)) if METADATA_KEY in stored.metadata else None


def statement_of(text: str, name: str) -> Statement:
    """Parses the text that `model_metadata` stores under `METADATA_KEY`.

    Args:
        text: the JSON text.
        name: name of the file, for errors.

    Raises:
        XCiTError: if the text is not such a statement.
    """
    what = f"{name}: its metadata can't be read"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise XCiTError(f"{what}: {error}") from None
    return read_statement(content, what)


def read_statement(content: Mapping[str, Any], what: str) -> Statement:
    """Builds a statement from JSON values: the inverse of `statement_content`.

    Args:
        content: the JSON values.
        what: beginning of the error message.

    Raises:
        XCiTError: if the values do not have the format of `statement_content`.
    """
    try:
        kind = kind_of_task(content.get("task", CLASSIFIER.task))
        if kind is None:
            raise XCiTError(f"its task is {content['task']!r}, which this version does not know")
        info = None if content.get("info") is None else _section(kind.info, content["info"])
        return Statement(kind=kind, config=_section(kind.config, content["config"]), info=info)
    except KeyError as error:
        raise XCiTError(f"{what}: there is no {error}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise XCiTError(f"{what}: {error}") from None


def _section(kind: type[Any], content: object) -> Any:
    if not isinstance(content, dict):
        raise XCiTError(f"{content!r} is no {kind.__name__}")
    return from_dict(kind, content)
