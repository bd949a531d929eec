"""Reads and writes models as folders for the Hugging Face Hub: `config.json`, weights, a model card and a manifest.

If timm has such a model, `config.json` has timm's format, so timm and transformers can load the folder too. For any
other model, `config.json` contains the task, shape, class names and preprocessing, and only this package can load the
folder.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors
import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.weights.files import StoredWeights, read_checkpoint, write_safetensors
from xcit.weights.formats import from_native
from xcit.writing import make_folder, whole_folder
from xcit.zoo.kinds import all_heads, kind_of_config
from xcit.zoo.names import find_record, is_known
from xcit.zoo.statement import Statement, model_metadata, read_statement, statement_content
from xcit.zoo.timm_hub import is_timm_config, read_timm_config

CONFIG, WEIGHTS, CARD, MANIFEST = "config.json", "model.safetensors", "README.md", "manifest.json"
"""The files of a folder. The manifest is written last, because it contains digests of the config and the weights."""

_PICKLED = "pytorch_model.bin"

LIBRARY = "xcit"
"""The `library_name` in `config.json` and in the card of a model that only this package can load."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The content of a folder, except the weights.

    Attributes:
        config: the config (shape) of the model.
        info: class names and preprocessing; None if they are not known.
        licence: licence of the weights; "" if it is not known.
        sources: the published sources of the weights: one dict per source, with location, file name and SHA-256.
        card: the text of the model card.
    """

    config: Any
    info: Any | None
    licence: str = ""
    sources: Sequence[Mapping[str, Any]] = ()
    card: str = ""

    @property
    def timm_config(self) -> dict[str, Any] | None:
        """The content of `config.json` in timm's format; None if timm has no such model."""
        return kind_of_config(self.config).timm_config(self.config, self.info)


def write_folder(folder: Path, state: Mapping[str, Tensor], shared: Shared, *, overwrite: bool = False) -> None:
    """Writes a model's folder. A new folder is written completely or not at all.

    Args:
        folder: a new or empty folder; with `overwrite`, any folder.
        state: the weights under this package's own tensor names.
        shared: the content of the folder, except the weights.
        overwrite: whether to replace the files of a model that are already in the folder. Other files are kept.

    Raises:
        XCiTError: if the folder is not empty and `overwrite` is False, or the folder can't be written.
    """
    content = shared.timm_config
    if content is not None and shared.licence:
        content["pretrained_cfg"]["license"] = shared.licence.lower()

    def fill(part: Path) -> None:
        tensors = dict(state) if content is None else from_native(state, "timm")
        write_safetensors(part / WEIGHTS, tensors, model_metadata(shared.config, shared.info))
        own = {"library_name": LIBRARY, **statement_content(shared.config, shared.info)}
        _write_json(part / CONFIG, own if content is None else content)
        (part / CARD).write_text(shared.card, encoding="utf-8")
        _write_json(part / MANIFEST, _manifest(part, shared))

    _put(folder, fill, overwrite)


def _put(folder: Path, fill: Callable[[Path], None], overwrite: bool) -> None:
    if not (overwrite and folder.is_dir()):
        with whole_folder(folder) as part:
            fill(part)
        return
    make_folder(folder)
    try:
        with TemporaryDirectory(dir=folder, prefix=".xcit-") as part:
            fill(Path(part))
            (folder / MANIFEST).unlink(missing_ok=True)  # the old manifest does not fit the new files
            for name in (WEIGHTS, CONFIG, CARD, MANIFEST):
                (Path(part) / name).replace(folder / name)
    except OSError as error:
        raise XCiTError(f"{folder}: can't be written: {error.strerror or error}") from error


def _manifest(folder: Path, shared: Shared) -> dict[str, Any]:
    return {
        "name": getattr(shared.info, "name", ""),
        "task": kind_of_config(shared.config).task,
        "licence": shared.licence or "not stated",
        "sources": [*shared.sources],
        "files": {name: {"sha256": _sha256(folder / name)} for name in (CONFIG, WEIGHTS)},
        "versions": {
            "python": platform.python_version(),
            "xcit": version("xcit"),
            "torch": torch.__version__,
            "safetensors": safetensors.__version__,
        },
    }


def is_folder(path: str | Path) -> bool:
    """Returns whether a path is a folder with a model's `config.json`."""
    return (Path(path) / CONFIG).is_file()


def is_for_timm(folder: Path) -> bool:
    """Returns whether the `config.json` of a folder has timm's format, so that timm and transformers can load it."""
    return is_timm_config(_read_json(folder / CONFIG))


def read_folder(folder: Path) -> StoredWeights:
    """Reads the weights in a folder that this package, timm or transformers wrote.

    The description of the model is read from `config.json`, not from the metadata of the weights file, because other
    tools only update `config.json`. If there is a manifest, the digests of both files must match it.

    Raises:
        XCiTError: if the folder contains no XCiT, or is damaged.
    """
    manifest = _checked_manifest(folder)
    weights = next((folder / name for name in (WEIGHTS, _PICKLED) if (folder / name).is_file()), None)
    if weights is None:
        raise XCiTError(f"{folder} has a {CONFIG} but no weights: there is no {WEIGHTS} and no {_PICKLED}")
    name = str(manifest.get("name") or "")
    stated = _read_config(folder / CONFIG, name or _name_of(folder))
    stored = read_checkpoint(weights, heads=all_heads())
    return replace(stored, metadata={**stored.metadata, **model_metadata(stated.config, stated.info)})


def _read_config(path: Path, name: str) -> Statement:
    content, what = _read_json(path), f"{path}: can't be read as the config of a model"
    if content.get("library_name") == LIBRARY:
        return read_statement(content, what)
    if not is_timm_config(content):
        raise XCiTError(f"{path} is not the config of an XCiT: neither this package nor timm or transformers wrote it")
    config, info = read_timm_config(content, name, what)
    tag = content.get("pretrained_cfg", content).get("tag")
    published = f"{content['architecture']}.{tag}"
    if is_known(published):
        info = replace(info, name=find_record(published).name)
    return Statement(kind=kind_of_config(config), config=config, info=info)


def _name_of(folder: Path) -> str:
    """Returns a name for a model: the name of its folder, or of its repository if the folder is in a Hub cache."""
    resolved = folder.resolve()
    parents = [resolved.name, *(parent.name for parent in resolved.parents)]
    return next((part.split("--")[-1] for part in parents[1:4] if "--" in part), parents[0])


def _checked_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    manifest = _read_json(path)
    try:
        digests = {str(name): str(entry["sha256"]) for name, entry in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError):
        raise XCiTError(f"{path}: contains no list of files with their SHA-256") from None
    for name in (CONFIG, WEIGHTS):
        if name in digests and (folder / name).is_file() and _sha256(folder / name) != digests[name]:
            raise XCiTError(
                f"{folder / name}: damaged or changed: its SHA-256 differs from the SHA-256 in {MANIFEST}; if the file "
                f"was changed on purpose, remove {MANIFEST}"
            )
    return manifest


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise XCiTError(f"{path}: can't be read: {error.strerror or error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise XCiTError(f"{path}: can't be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise XCiTError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise XCiTError(f"{path}: not a JSON object")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
