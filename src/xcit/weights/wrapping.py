"""Finds the sets of weights in a file, and selects one of them.

Programs that save a model add keys, prefixes and tensors. A training loop adds keys ("state_dict", "model_ema").
Lightning and wrapper modules add prefixes to the tensor names ("model.", "module."). Weight averaging adds a counter,
and code for adversarial robustness adds mean and standard deviation of the images. Each set of weights in a file has a
label made of its keys and prefixes, such as "state_dict.model". The argument `key` selects a set by its label, or by
the beginning or the end of its label.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from xcit.errors import XCiTError, some_of
from xcit.weights.pickles import MOST_TENSORS
from xcit.weights.plain import tensor_problem

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation, with one number per channel."""

_PLAIN = ("state_dict", "model", "model_state_dict", "net", "network", "module", "weights", "params")
"""The last parts of the labels of weights that are not averaged, in the order of preference."""

_AVERAGED = ("state_dict_ema", "model_ema", "ema_model", "ema_state_dict", "ema", "averaged_model", "params_ema")
"""The last parts of the labels of averaged weights. Such weights are selected only if there are no other weights."""

# The prefixes of wrappers. The prefixes of torch.compile, FSDP and activation checkpointing can be anywhere in a name;
# "module." can only be at the beginning.
_WRAPPERS = re.compile(r"(?:^module\.|(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)")

# The name of XCA's temperature, which no other architecture has. Group 1 is the prefix of a wrapper; the `backbone.` of
# a detector or of DINO is not part of group 1.
_XCIT = re.compile(r"((?:.+?\.)??)(?:backbone\.(?:xcit\.)?)?(?:blocks|xca_layers)\.\d+\.(?:attn|xca)\.temperature")

_NORMALIZATION = re.compile(r"((?:.+\.)?)(mean|mu|std|sigma)")

_MOST_CHANNELS = 1024

_SHOWN = 6
"""The largest number of names in an error message; further names are only counted."""


@dataclass(frozen=True)
class Found:
    """One set of weights in a file.

    Attributes:
        tensors: the tensors by their names without prefixes of wrappers.
        label: the keys and prefixes of this set, joined by dots; "" if there are none.
        beside: names of tensors in the same state dict that do not belong to this set.
        normalization: mean and standard deviation of the images; None if the file does not contain them.
    """

    tensors: dict[str, Tensor]
    label: str = ""
    beside: tuple[str, ...] = ()
    normalization: Normalization | None = None

    @property
    def last(self) -> str:
        """The last part of the label."""
        return self.label.rpartition(".")[2]


def split_key(path: str | Path) -> tuple[Path, str | None]:
    """Splits "last.ckpt#state_dict_ema" into path and key. If a file with the whole name exists, the key is None."""
    text = str(path)
    name, mark, key = text.rpartition("#")
    if not mark or not name or not key or "/" in key or Path(text).exists():
        return Path(text), None
    return Path(name), key


def unwrap(loaded: object, path: Path, key: str | None) -> Found:
    """Selects one set of weights from the content of a file.

    Args:
        loaded: a state dict, or a dict that contains state dicts, possibly in nested dicts.
        path: the file, for error messages.
        key: the label of the weights to select, or the beginning or end of the label. None selects the weights that
            are meant for inference: DINO's teacher rather than the student, and the model itself rather than its
            average.

    Raises:
        XCiTError: if there are no weights, or if there are several sets and none of them is preferred.
    """
    if not isinstance(loaded, dict):
        raise XCiTError(f"{path} contains a {type(loaded).__name__.lstrip('_')}, not named tensors")
    states = list(_states(loaded))
    if max((len(state) for _, state in states), default=0) > MOST_TENSORS:
        raise XCiTError(f"{path} contains a state dict of more than {MOST_TENSORS:,} tensors, too many for an XCiT")
    found = [each for where, state in states for each in _sets(state, where, path)]
    if key is not None:
        chosen = [each for each in found if _is_meant(each.label, key)]
        chosen = chosen or [Found(state, where) for where, state in states if where == key]
        if not chosen and any(where == "" for where, _ in states) and not _labels(found):
            raise XCiTError(f"{path} contains one set of weights, which needs no key: leave out the key {key!r}")
        if not chosen:
            there = f"; weights are under: {', '.join(_labels(found))}" if found else ""
            raise XCiTError(
                f"{path} has no weights under {key!r}; its top-level keys are: "
                f"{some_of(map(str, loaded), _SHOWN)}{there}"
            )
        return chosen[0] if len(chosen) == 1 else _preferred(chosen, path)
    if found:
        return found[0] if len(found) == 1 else _preferred(found, path)
    # There is no XCiT in the file. The caller raises an error that lists the tensors, so some tensors are returned.
    for wanted in ("teacher", *_PLAIN, *_AVERAGED, ""):
        for where, state in states:
            if where == wanted:
                return Found({_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}, where)
    raise XCiTError(
        f"{path} has no weights under 'model', 'state_dict' or 'teacher'; its top-level keys are: "
        f"{some_of(map(str, loaded), _SHOWN) or 'none'}"
    )


def _states(loaded: Mapping[Any, Any], where: str = "", depth: int = 3) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yields each state dict in nested dicts as (keys joined by dots, state dict); `depth` limits the nesting."""
    tensors = {name: value.detach() for name, value in loaded.items() if _is_tensor(name, value)}
    if tensors:
        yield where, tensors
    for name, value in loaded.items():
        if isinstance(name, str) and isinstance(value, dict) and depth:
            yield from _states(value, f"{where}.{name}" if where else name, depth - 1)


def _is_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _sets(state: Mapping[str, Tensor], where: str, path: Path) -> list[Found]:
    """Returns the sets of weights in one state dict: one for each prefix with an XCiT.

    Args:
        state: the state dict.
        where: the keys of the state dict in the file, joined by dots.
        path: the file, for error messages.
    """
    tensors = {_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    if len(tensors) < len(state):
        raise XCiTError(f"{path} contains two state dicts in one: some names occur with and without 'module.'")
    prefixes = dict.fromkeys(match[1] for name in tensors if (match := _XCIT.fullmatch(name)))
    normalization, of_images = _normalization(tensors)
    # The counter of averaged weights is a scalar, and its name has no prefix.
    counters = {name for name, tensor in tensors.items() if "." not in name and tensor.ndim == 0}
    found = []
    for prefix in prefixes:
        others = tuple(other for other in prefixes if other != prefix and len(other) > len(prefix))
        own = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix) and not (name in of_images | counters or name.startswith(others))
        }
        beside = tuple(
            name
            for name in tensors
            if name in of_images | counters or not name.startswith((prefix, *(p for p in prefixes if p)))
        )
        inner = ".".join(part for part in prefix.split(".") if part not in ("", "module"))
        label = ".".join(part for part in (where, inner) if part)
        found.append(Found({_WRAPPERS.sub("", n): t for n, t in own.items()}, label, beside, normalization))
    return found


def _normalization(tensors: Mapping[str, Tensor]) -> tuple[Normalization | None, set[str]]:
    """Returns mean and standard deviation of the images (None if they are not in the file), and their tensor names."""
    by_place: dict[str, dict[str, str]] = {}
    for name in tensors:
        if match := _NORMALIZATION.fullmatch(name):
            by_place.setdefault(match[1], {})["mean" if match[2] in ("mean", "mu") else "std"] = name
    for names in by_place.values():
        # Mean and standard deviation have one number per channel. Larger tensors with these names are other tensors.
        if len(names) == 2 and all(_is_short(tensors[name]) for name in names.values()):
            mean, std = (tensors[names[which]].flatten() for which in ("mean", "std"))
            if len(mean) == len(std) > 0 and bool((std > 0).all()):
                # Each float32 becomes the shortest decimal number that rounds to it: 0.4914, not 0.49140000343.
                means, stds = (tuple(float(str(value)) for value in each.float().numpy()) for each in (mean, std))
                return (means, stds), set(names.values())
    return None, set()


def _is_short(tensor: Tensor) -> bool:
    return not tensor_problem(tensor) and tensor.numel() <= _MOST_CHANNELS


def _is_meant(label: str, key: str) -> bool:
    return key == label or label.startswith(f"{key}.") or label.endswith(f".{key}")


def _preferred(found: list[Found], path: Path) -> Found:
    labels = {each.last for each in found}
    order: tuple[str, ...] = ("", *_PLAIN, *_AVERAGED)
    if {"teacher", "student"} <= labels:  # DINO's result is the teacher
        order = ("teacher", *order)
    # Among labels with the same last part, the label with the fewest parts is preferred.
    known = [each for each in found if each.last in order]
    if not known:
        raise XCiTError(
            f"{path} contains several sets of weights: choose one with key (--key) {' or '.join(_labels(found))}"
        )

    def rank(each: Found) -> tuple[int, int]:
        # Weights under one of `_PLAIN` are preferred to weights without a key.
        return (order.index(each.last) if each.label else len(_PLAIN) + 1, each.label.count("."))

    return min(known, key=rank)


def _labels(found: Iterable[Found]) -> list[str]:
    return [each.label for each in found if each.label]
