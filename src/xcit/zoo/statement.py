"""Reads and writes statements. A statement describes the model in a file: kind, shape, classes and preprocessing."""

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
"""The key in a file's metadata whose value is the statement, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """The description of a model in a file.

    Attributes:
        kind: the kind of the model: classifier, segmenter or detector.
        config: the config (shape) of the model.
        info: the class names and preprocessing of the model; None if they are not known.
    """

    kind: Kind[Any, Any, Any]
    config: Any
    info: Any | None


def statement_content(config: Any, info: Any | None) -> dict[str, Any]:
    """Returns the statement about a model with this config and info, as a dict for JSON."""
    kind = kind_of_config(config)
    content: dict[str, Any] = {"config": dataclasses.asdict(config)}
    if kind is not CLASSIFIER:  # a file without a task contains a classifier, as in the first version of this package
        content["task"] = kind.task
    if info is not None:
        content["info"] = dataclasses.asdict(info)
    return content


def model_metadata(config: Any, info: Any | None) -> dict[str, str]:
    """Returns the metadata for a safetensors file, with the statement about a model."""
    return {METADATA_KEY: json.dumps(statement_content(config, info)), "format": "pt"}


def read_metadata(stored: StoredWeights) -> Statement | None:
    """Returns the statement in a file's metadata; None if the metadata contain no statement.

    Raises:
        XCiTError: if the statement is not valid.
    """
    return statement_of(stored.metadata[METADATA_KEY], str(stored.path)) if METADATA_KEY in stored.metadata else None


def statement_of(text: str, name: str) -> Statement:
    """Reads a statement from JSON.

    Args:
        text: the value of `METADATA_KEY` in the metadata.
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
    """Reads a statement from a dict of the form that `statement_content` returns.

    Args:
        content: the dict.
        what: beginning of the error message.

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
