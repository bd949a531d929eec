"""Finds the record for a name that a person types."""

import difflib
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import cast

from xcit.errors import XCiTError
from xcit.models import XCiTConfig
from xcit.weights.hub import PREFIX
from xcit.weights.wrapping import split_key
from xcit.zoo.architectures import ARCHITECTURES
from xcit.zoo.checkpoints import CHECKPOINTS
from xcit.zoo.detectors import DETECTORS
from xcit.zoo.records import Checkpoint, Record
from xcit.zoo.segmenters import SEGMENTERS

RECORDS: dict[str, Record] = {**CHECKPOINTS, **SEGMENTERS, **DETECTORS}
"""Every record, by name."""

_BY_LOWER_NAME: dict[str, Record] = {
    name.lower(): record for record in RECORDS.values() for name in (record.name, *record.aliases)
}


WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar")


def is_known(name: str) -> bool:
    """Whether a record has this name or alias."""
    return name.lower() in _BY_LOWER_NAME


def is_url(model: str | os.PathLike[str]) -> bool:
    """Whether a model is given by the URL of a weights file, or by a repository of the Hub."""
    return isinstance(model, str) and model.startswith(("http://", "https://", "file://", PREFIX))


def is_file(model: str | os.PathLike[str]) -> bool:
    """Whether a model is given by its path or URL rather than by name."""
    if is_url(model):
        return True
    path, key = split_key(os.fspath(model))
    if not isinstance(model, str) or key is not None or model.endswith(WEIGHT_SUFFIXES):
        return True
    return path.exists() and not is_known(model)


def find_checkpoint(name: str) -> Checkpoint:
    """Returns the record of a classifier or feature backbone, by name or alias in any case.

    Raises:
        XCiTError: if the name is unknown (the message suggests the nearest names), or belongs to another kind of model.
    """
    record = find_record(name)
    if record.kind is not Checkpoint.kind:
        raise XCiTError(
            f"{record.name} is for {record.task}: it neither classifies nor gives one feature per image; its backbone "
            f"is {record.architecture}"
        )
    return cast(Checkpoint, record)


def find_record(name: str) -> Record:
    """Returns the record of any name or alias, in any case.

    Raises:
        XCiTError: if the name is unknown; the message suggests the nearest names.
    """
    if not is_known(name):
        near = difflib.get_close_matches(name.lower(), _BY_LOWER_NAME, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else "`xcit list` shows all"
        raise XCiTError(f"no model is called {name!r}; {hint}")
    return _BY_LOWER_NAME[name.lower()]


def find_shape(name: str) -> XCiTConfig | None:
    """Returns an architecture that no trained model has, such as "xcit-medium-12-p16", by name.

    It returns None if the name is unknown.
    """
    return ARCHITECTURES.get(name.lower().replace("_", "-").removeprefix("xcit-"))


def check_task(model: str | os.PathLike[str], task: str) -> None:
    """Checks the task of a name of the zoo before its weights are downloaded; a file is not checked.

    Raises:
        XCiTError: if the model is for another task.
    """
    name = os.fspath(model)
    if is_known(name) and (own := find_record(name).task) != task:
        raise XCiTError(f"{name} is for {own}, not for {task}: `xcit list --task {task}` shows what is")


def find_architecture(name: str) -> str:
    """Returns the key in `ARCHITECTURES` of an architecture's name, or of a checkpoint's name or alias.

    Raises:
        XCiTError: if the name is unknown; the message suggests the nearest names.
    """
    lower = name.lower()
    if lower in ARCHITECTURES:
        return lower
    if not is_known(name):
        near = difflib.get_close_matches(lower, [*ARCHITECTURES, *_BY_LOWER_NAME], n=3, cutoff=0.4)
        hint = (
            f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"there are: {', '.join(ARCHITECTURES)}"
        )
        raise XCiTError(f"no architecture or model is called {name!r}; {hint}")
    return _BY_LOWER_NAME[lower].architecture


def _matches(record: Record, pattern: str) -> bool:
    """Whether a pattern matches the record's name or, if it matches no name of ours, one of its aliases.

    Our own names have priority, so that "xcit-nano*" does not list models that only an alias would match.
    """
    wanted = f"{pattern.lower()}*"
    if fnmatchcase(record.name.lower(), wanted):
        return True
    return is_foreign(pattern) and any(fnmatchcase(alias.lower(), wanted) for alias in record.aliases)


def is_foreign(pattern: str) -> bool:
    """Whether a pattern matches none of our names."""
    wanted = f"{pattern.lower()}*"
    return not any(fnmatchcase(name.lower(), wanted) for name in RECORDS)


def list_models(
    pattern: str | None = None,
    exclude_patterns: str | Sequence[str] | None = None,
    task: str | None = None,
) -> list[str]:
    """Returns the names of models, sorted.

    Args:
        pattern: shell-style pattern, to which a `*` is added; None matches all. It may match any name of a model: ours,
            the authors' ("xcit_nano*"), timm's ("*.fb_in1k"), RobustBench's.
        exclude_patterns: one or several such patterns; models that match one of them are left out.
        task: "image-classification", "image-features" for backbones without a classifier,
            "semantic-segmentation", "object-detection", or None for all.
    """
    excluded = [exclude_patterns] if isinstance(exclude_patterns, str) else list(exclude_patterns or ())
    return sorted(
        record.name
        for record in RECORDS.values()
        if _matches(record, pattern or "")
        and not any(_matches(record, other) for other in excluded)
        and (task is None or record.task == task)
    )
