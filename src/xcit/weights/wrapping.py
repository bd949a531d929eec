"""Finds the weights in a file: their key, the prefix of their names, and the other tensors beside them.

Programs that save a model add something around it. A training loop adds keys ("state_dict", "model_ema"), Lightning and
wrapping modules add prefixes ("model.", "module."), averaging adds a counter, and robustness code adds its
normalisation. Each set of weights in a file has a label made of these parts, such as "state_dict.model". A key chooses
a set by its label.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from xcit.errors import XCiTError
from xcit.weights.pickles import MOST_TENSORS
from xcit.weights.plain import tensor_problem

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation, with one number per channel."""

_PLAIN = ("state_dict", "model", "model_state_dict", "net", "network", "module", "weights", "params")
"""Last parts of the labels of trained models, in the order of preference."""

_AVERAGED = ("state_dict_ema", "model_ema", "ema_model", "ema_state_dict", "ema", "averaged_model", "params_ema")
"""Last parts of the labels of averaged weights, which are taken if there are no others."""

# Wrappers that can be anywhere in a name: torch.compile, FSDP, activation checkpointing. "module." can only be first.
_WRAPPERS = re.compile(r"(?:^module\.|(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)")

# No other architecture has XCA's temperature. The `backbone.` of a detector or of DINO is not a prefix.
_XCIT = re.compile(r"((?:.+?\.)??)(?:backbone\.(?:xcit\.)?)?(?:blocks|xca_layers)\.\d+\.(?:attn|xca)\.temperature")

_NORMALIZATION = re.compile(r"((?:.+\.)?)(mean|mu|std|sigma)")

_MOST_CHANNELS = 1024

_SHOWN = 6
"""Number of names that an error shows before it says how many more there are."""


@dataclass(frozen=True)
class Found:
    """One set of weights in a file.

    Attributes:
        tensors: the tensors by name, without the prefixes of wrappers.
        label: the keys and prefixes around them, joined by dots; "" if there are none.
        beside: names, as in the file, of tensors that do not belong to the model.
        normalization: the normalisation of images, if the file contains it.
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
    """Splits "last.ckpt#state_dict_ema" into path and key; if a file has this whole name, there is no key."""
    text = str(path)
    name, mark, key = text.rpartition("#")
    if not mark or not name or not key or "/" in key or Path(text).exists():
        return Path(text), None
    return Path(name), key


def unwrap(loaded: object, path: Path, key: str | None) -> Found:
    """Returns the weights that are meant for use, from the contents of a file.

    Args:
        loaded: a state, or a mapping with a state under keys at any depth.
        path: the file, for error messages.
        key: the label of the wanted weights, or its beginning or end. None prefers the trained model to its average,
            and DINO's teacher to the student.

    Raises:
        XCiTError: if there are no weights, or several sets and it is not clear which one is meant.
    """
    if not isinstance(loaded, dict):
        raise XCiTError(f"{path} holds a {type(loaded).__name__.lstrip('_')}, not named tensors")
    states = list(_states(loaded))
    if max((len(state) for _, state in states), default=0) > MOST_TENSORS:
        raise XCiTError(f"{path} holds a state of more than {MOST_TENSORS:,} tensors, which is no XCiT's")
    found = [each for where, state in states for each in _sets(state, where, path)]
    if key is not None:
        chosen = [each for each in found if _is_meant(each.label, key)]
        chosen = chosen or [Found(state, where) for where, state in states if where == key]
        if not chosen and any(where == "" for where, _ in states) and not _labels(found):
            raise XCiTError(f"{path} holds one set of weights, under no key, and so none under {key!r}")
        if not chosen:
            there = f"; weights are under: {', '.join(_labels(found))}" if found else ""
            raise XCiTError(
                f"{path} has no weights under {key!r}; its top-level keys are: {_some(map(str, loaded))}{there}"
            )
        return chosen[0] if len(chosen) == 1 else _preferred(chosen, path)
    if found:
        return found[0] if len(found) == 1 else _preferred(found, path)
    # There is no XCiT in the file. The caller reports the contents of the file instead.
    for wanted in ("teacher", *_PLAIN, *_AVERAGED, ""):
        for where, state in states:
            if where == wanted:
                return Found({_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}, where)
    raise XCiTError(
        f"{path} has no weights under 'model', 'state_dict' or 'teacher'; its top-level keys are: "
        f"{_some(map(str, loaded)) or 'none'}"
    )


def _states(loaded: Mapping[Any, Any], where: str = "", depth: int = 3) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yields all mappings that hold named tensors, with the keys that lead to them."""
    tensors = {name: value.detach() for name, value in loaded.items() if _is_tensor(name, value)}
    if tensors:
        yield where, tensors
    for name, value in loaded.items():
        if isinstance(name, str) and isinstance(value, dict) and depth:
            yield from _states(value, f"{where}.{name}" if where else name, depth - 1)


def _is_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _sets(state: Mapping[str, Tensor], where: str, path: Path) -> list[Found]:
    """Returns the XCiTs in one mapping, separated by the prefixes of their names."""
    tensors = {_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    if len(tensors) < len(state):
        raise XCiTError(f"{path} holds two states in one: some names occur with and without 'module.'")
    prefixes = dict.fromkeys(match[1] for name in tensors if (match := _XCIT.fullmatch(name)))
    normalization, of_images = _normalization(tensors)
    # The counter of averaged weights is a scalar that belongs to no module.
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
    """Returns mean and standard deviation of the images, if they are among the tensors, and the names of both."""
    by_place: dict[str, dict[str, str]] = {}
    for name in tensors:
        if match := _NORMALIZATION.fullmatch(name):
            by_place.setdefault(match[1], {})["mean" if match[2] in ("mean", "mu") else "std"] = name
    for names in by_place.values():
        # There is one number per channel. Larger tensors with these names are something else.
        if len(names) == 2 and all(_is_short(tensors[name]) for name in names.values()):
            mean, std = (tensors[names[which]].flatten() for which in ("mean", "std"))
            if len(mean) == len(std) > 0 and bool((std > 0).all()):
                # The shortest decimals that give the same float32: 0.4914, not 0.49140000343.
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
    # A key at the top level is preferred to one at a deeper level.
    known = [each for each in found if each.last in order]
    if not known:
        raise XCiTError(
            f"{path} holds several sets of weights: choose one with key (--key) {' or '.join(_labels(found))}"
        )

    def rank(each: Found) -> tuple[int, int]:
        # If a file has both, weights under a usual key are preferred to those without a key.
        return (order.index(each.last) if each.label else len(_PLAIN) + 1, each.label.count("."))

    return min(known, key=rank)


def _labels(found: Iterable[Found]) -> list[str]:
    return [each.label for each in found if each.label]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
