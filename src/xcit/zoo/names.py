"""Finds published models by name. The record of a model contains what is known about it (see `zoo/records.py`)."""

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
"""All records, by name."""

_BY_LOWER_NAME: dict[str, Record] = {
    name.lower(): record for record in RECORDS.values() for name in (record.name, *record.aliases)
}


WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar")


def is_known(name: str) -> bool:
    """Returns whether a published model has this name or alias."""
    return name.lower() in _BY_LOWER_NAME


def is_url(model: str | os.PathLike[str]) -> bool:
    """Returns whether `model` is the URL of a weights file, or a repository of the Hub ("hf-hub:USER/REPO")."""
    return isinstance(model, str) and model.startswith(("http://", "https://", "file://", PREFIX))


def is_file(model: str | os.PathLike[str]) -> bool:
    """Returns whether `model` is a path or URL, and not a name."""
    if is_url(model):
        return True
    path, key = split_key(os.fspath(model))
    if not isinstance(model, str) or key is not None or model.endswith(WEIGHT_SUFFIXES):
        return True
    return path.exists() and not is_known(model)


def find_checkpoint(name: str) -> Checkpoint:
    """Returns the record of a classifier or feature backbone, by its name or alias; the case of letters is ignored.

    Raises:
        XCiTError: if the name is unknown, or belongs to a segmenter or detector. For an unknown name, the message
            suggests similar names.
    """
    record = find_record(name)
    if record.kind is not Checkpoint.kind:
        raise XCiTError(
            f"{record.name} is a model for {record.task}, not a classifier or feature backbone; its backbone is "
            f"{record.architecture}"
        )
    return cast(Checkpoint, record)


def find_record(name: str) -> Record:
    """Returns the record of a published model, by its name or alias; the case of letters is ignored.

    Raises:
        XCiTError: if the name is unknown; the message suggests similar names.
    """
    if not is_known(name):
        near = difflib.get_close_matches(name.lower(), _BY_LOWER_NAME, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else "`xcit list` shows all"
        raise XCiTError(f"no model is called {name!r}; {hint}")
    return _BY_LOWER_NAME[name.lower()]


def find_shape(name: str) -> XCiTConfig | None:
    """Returns the config of an architecture by its name, such as "xcit-medium-12-p16"; None if the name is unknown."""
    return ARCHITECTURES.get(name.lower().replace("_", "-").removeprefix("xcit-"))


def check_task(model: str | os.PathLike[str], task: str) -> None:
    """Checks that a published model is for this task, before its weights are downloaded.

    If `model` is a file or an unknown name, nothing is checked.

    Raises:
        XCiTError: if the model is for another task.
    """
    name = os.fspath(model)
    if is_known(name) and (own := find_record(name).task) != task:
        raise XCiTError(f"{name} is for {own}, not for {task}: `xcit list --task {task}` shows suitable models")


def find_architecture(name: str) -> str:
    """Returns the key in `ARCHITECTURES` for the name of an architecture, or for the name or alias of a model.

    Raises:
        XCiTError: if the name is unknown; the message suggests similar names.
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
    """Returns whether a pattern matches a record's name, or one of its aliases.

    Aliases are compared only if no record has a name that matches the pattern. So "xcit-nano*" does not list a model
    if only an alias of the model begins with "xcit-nano".
    """
    wanted = f"{pattern.lower()}*"
    if fnmatchcase(record.name.lower(), wanted):
        return True
    return is_foreign(pattern) and any(fnmatchcase(alias.lower(), wanted) for alias in record.aliases)


def is_foreign(pattern: str) -> bool:
    """Returns whether a pattern is compared with aliases, because it matches the name of no record."""
    wanted = f"{pattern.lower()}*"
    return not any(fnmatchcase(name.lower(), wanted) for name in RECORDS)


def list_models(
    pattern: str | None = None,
    exclude_patterns: str | Sequence[str] | None = None,
    task: str | None = None,
) -> list[str]:
    """Returns the sorted names of published models.

    Args:
        pattern: a shell-style pattern; `*` is added at its end, and None matches all models. If it matches none of this
            package's names, it is compared with the names of other projects: the authors ("xcit_nano*"), timm
            ("*.fb_in1k") and RobustBench.
        exclude_patterns: one or several patterns of the same form; models that match one of them are left out.
        task: "image-classification", "image-features" (backbones without a classifier), "semantic-segmentation" or
            "object-detection"; None means all tasks.
    """
    excluded = [exclude_patterns] if isinstance(exclude_patterns, str) else list(exclude_patterns or ())
    return sorted(
        record.name
        for record in RECORDS.values()
        if _matches(record, pattern or "")
        and not any(_matches(record, other) for other in excluded)
        and (task is None or record.task == task)
    )
