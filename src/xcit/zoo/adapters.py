"""Reads and writes low-rank adapters (LoRA) as folders in PEFT's format, and merges them into their base model.

The metadata of the adapter's weights file also contain a description of the tuned model, and the digest of the base
weights on which the adapter was trained. The digest is checked, because with other base weights the outputs would be
wrong without any error.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.extras import need_packages
from xcit.weights.files import StoredWeights, digest, write_safetensors
from xcit.weights.pickles import brief
from xcit.weights.strict import load_state
from xcit.writing import make_folder, whole_file
from xcit.zoo.kinds import CLASSIFIER
from xcit.zoo.statement import Statement, model_metadata, read_metadata
from xcit.zoo.stored import describe, empty_model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's names of the two files in an adapter's folder."""

_BASE_DIGEST = "base_digest"

_PREFIX = "base_model.model."
"""The prefix that PEFT adds to the name of each tensor."""


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Suppresses warnings from the packages that PEFT imports on its first use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_adapter(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is the folder of an adapter."""
    return (Path(path) / CONFIG).is_file()


def write_adapter(model: nn.Module, folder: Path, *, config: Any, info: Any, base: str) -> None:
    """Writes the adapters and the head of a model to a folder. Each file is written completely or not at all.

    Args:
        model: a model into which PEFT has inserted adapters.
        folder: the folder; it is created if necessary, and the files of an earlier adapter are replaced.
        config: the config (shape) of the model.
        info: the class names and preprocessing of the model.
        base: the name, path or repository of the weights that the adapter was trained on.

    Raises:
        XCiTError: if the folder can't be written.
    """
    with quiet_peft():
        from peft import get_peft_model_state_dict

    learned: dict[str, Tensor] = get_peft_model_state_dict(model)
    learned |= {f"head.{name}": tensor for name, tensor in model.get_submodule("head").state_dict().items()}
    settings: Any = model.peft_config
    settings = replace(
        settings["default"],
        base_model_name_or_path=base,
        modules_to_save=["head"] if config.num_classes else None,
        inference_mode=True,
    )
    make_folder(folder)
    metadata = model_metadata(config, info) | {_BASE_DIGEST: _digest_of_base(model)}
    write_safetensors(folder / WEIGHTS, {f"{_PREFIX}{name}": tensor for name, tensor in learned.items()}, metadata)
    with whole_file(folder / CONFIG) as part:
        part.write_text(_as_json(settings), encoding="utf-8")


def _as_json(settings: Any) -> str:
    content = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.to_dict().items()}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _digest_of_base(model: nn.Module) -> str:
    """Returns the digest of the weights that an adapter's training does not change: all weights except the head."""
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items()}
    kept = {name: tensor for name, tensor in state.items() if ".lora_" not in name and not name.startswith("head.")}
    # The counters of batch norms are left out: some training loops increase them, but no output depends on them.
    return digest({name: tensor for name, tensor in kept.items() if not name.endswith("num_batches_tracked")})


def read_adapter(folder: Path, read: Callable[[str], StoredWeights]) -> StoredWeights:
    """Reads an adapter and its base weights, and returns the merged weights.

    Args:
        folder: a folder that `write_adapter` or PEFT's `save_pretrained` wrote.
        read: reads the base weights, from a published name, a path or a repository of the Hub.

    Raises:
        XCiTError: if PEFT is not installed, the folder is damaged or contains no adapter for an XCiT, or the base
            weights can't be loaded or are not the weights on which the adapter was trained.
    """
    need_packages("an adapter", "peft")
    with quiet_peft():
        from peft import PeftConfig, PeftModel

    path = folder / WEIGHTS
    try:
        settings = PeftConfig.from_pretrained(str(folder))
        with safe_open(path, framework="pt") as file:
            metadata, shapes = file.metadata() or {}, {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise XCiTError(f"{folder} has an {CONFIG} but no {WEIGHTS}") from None
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise XCiTError(f"{folder}: not an adapter of PEFT, or damaged: {brief(error)}") from None
    base = settings.base_model_name_or_path
    if not base:
        raise XCiTError(
            f"{folder / CONFIG} does not state the base model: set base_model_name_or_path to its name or path"
        )
    try:
        stored = read(base)
    except XCiTError as error:
        raise XCiTError(f"{folder} adapts {base} (base_model_name_or_path in {CONFIG}): {error}") from None
    stated = read_metadata(replace(stored, metadata=metadata, path=path)) or _described(stored, shapes)
    model = CLASSIFIER.require(empty_model(stated.config), str(folder)).eval()
    kept = {name: tensor for name, tensor in stored.state.items() if not name.startswith("head.")}
    head = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("head.")}
    own_head = {
        name: tensor for name, tensor in stored.state.items() if name in head and tensor.shape == head[name].shape
    }
    load_state(model, kept | head | own_head, str(stored.path))
    if metadata.get(_BASE_DIGEST, found := _digest_of_base(model)) != found:
        raise XCiTError(
            f"{folder}: the weights of {base} have changed since this adapter was trained: use the earlier weights of "
            f"{base}, or train the adapter again"
        )
    try:
        with quiet_peft():
            adapted: Any = PeftModel.from_pretrained(model, str(folder))
            merged = adapted.merge_and_unload()
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise XCiTError(f"{folder}: its adapter does not fit {base}: {brief(error)}") from None
    state = {name: tensor.detach() for name, tensor in merged.state_dict().items()}
    return StoredWeights(state, "xcit", model_metadata(stated.config, stated.info), (), path)


def _described(stored: StoredWeights, shapes: dict[str, list[int]]) -> Statement:
    """Describes the model of an adapter that PEFT itself wrote. Such an adapter has no metadata of this package.

    Returns the description of the base model. If the adapter contains a head with another number of classes, the number
    of classes is taken from the adapter, and there are no class names.
    """
    stated = describe(stored)
    CLASSIFIER.require(empty_model(stated.config), str(stored.path))
    head = shapes.get(f"{_PREFIX}head.weight")
    if head is None or head[0] == stated.config.num_classes:
        return stated
    info = None if stated.info is None else replace(stated.info, class_names=(), class_ids=(), is_multi_label=False)
    return replace(stated, config=replace(stated.config, num_classes=head[0]), info=info)
