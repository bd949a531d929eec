"""The description of a model in a file or folder: its kind, shape, class names and preprocessing."""

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
"""Key in a safetensors file's metadata; its value is JSON with the task, shape, class names and preprocessing."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """The description of a model in a file: its kind, its config, and its info if it has one."""

    kind: Kind[Any, Any, Any]
    config: Any
    info: Any | None


def statement_content(config: Any, info: Any | None) -> dict[str, Any]:
    """Returns a statement as a dict for JSON."""
    kind = kind_of_config(config)
    content: dict[str, Any] = {"config": dataclasses.asdict(config)}
    if kind is not CLASSIFIER:  # the first files had no task, and all were classifiers
        content["task"] = kind.task
    if info is not None:
        content["info"] = dataclasses.asdict(info)
    return content


def model_metadata(config: Any, info: Any | None) -> dict[str, str]:
    """Returns the metadata of a safetensors file."""
    return {METADATA_KEY: json.dumps(statement_content(config, info)), "format": "pt"}


def read_metadata(stored: StoredWeights) -> Statement | None:
    """Returns the statement in a file's metadata; None if this package did not write them.

    Raises:
        XCiTError: if the metadata are not what `model_metadata` writes.
    """
    return statement_of(stored.metadata[METADATA_KEY], str(stored.path)) if METADATA_KEY in stored.metadata else None


def statement_of(text: str, name: str) -> Statement:
    """Returns the statement in the text that `model_metadata` stores under `METADATA_KEY`.

    Args:
        text: the JSON.
        name: name of the file, for error messages.

    Raises:
        XCiTError: if the text is not valid.
    """
    what = f"{name}: its metadata can't be read"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise XCiTError(f"{what}: {error}") from None
    return read_statement(content, what)


def read_statement(content: Mapping[str, Any], what: str) -> Statement:
    """Returns the statement in a dict that `statement_content` returned.

    Args:
        content: the dict, as read from JSON.
        what: start of an error message.

    Raises:
        XCiTError: if the content is not valid.
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
