"""Where in a file the weights lie: under which key, behind which prefix of their names, and beside what.

Who saves a model puts things around it: a training loop keys ("state_dict", "model_ema"), Lightning and wrapping
modules prefixes ("model.", "module."), averaging a counter, robustness code its normalisation. Each set of weights in a
file has a label of all that is around it, such as "state_dict.model", by which it is chosen.
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
"""Mean and standard deviation, a number a channel each."""

_PLAIN = ("state_dict", "model", "model_state_dict", "net", "network", "module", "weights", "params")
"""Last parts of labels, the first is taken before the others: the model as it was trained."""

_AVERAGED = ("state_dict_ema", "model_ema", "ema_model", "ema_state_dict", "ema", "averaged_model", "params_ema")
"""Likewise, of averaged weights: taken where there are no others."""

# Wrappers of modules anywhere in a name: torch.compile, FSDP, activation checkpointing. "module." is one at the start.
_WRAPPERS = re.compile(r"(?:^module\.|(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)")

# XCA's temperature is what no other architecture has; a detector's or DINO's backbone is no prefix.
_XCIT = re.compile(r"((?:.+?\.)??)(?:backbone\.(?:xcit\.)?)?(?:blocks|xca_layers)\.\d+\.(?:attn|xca)\.temperature")

_NORMALIZATION = re.compile(r"((?:.+\.)?)(mean|mu|std|sigma)")

_MOST_CHANNELS = 1024

_SHOWN = 6
"""Names that an error shows before it says how many more there are."""


@dataclass(frozen=True)
class Found:
    """One set of weights in a file.

    Attributes:
        tensors: by name, without what wraps the model.
        label: what was around them, by dots; "" is nothing.
        beside: names, as in the file, of tensors that belong to no model.
        normalization: what the file does to images before the model, where it says so.
    """

    tensors: dict[str, Tensor]
    label: str = ""
    beside: tuple[str, ...] = ()
    normalization: Normalization | None = None

    @property
    def last(self) -> str:
        """The innermost part of the label."""
        return self.label.rpartition(".")[2]


def split_key(path: str | Path) -> tuple[Path, str | None]:
    """A path and the key after its "#", as in "last.ckpt#state_dict_ema"; a file of just that name has no key."""
    text = str(path)
    name, mark, key = text.rpartition("#")
    if not mark or not name or not key or "/" in key or Path(text).exists():
        return Path(text), None
    return Path(name), key


def unwrap(loaded: object, path: Path, key: str | None) -> Found:
    """The weights that are meant in what was read of a file.

    Args:
        loaded: a state, or one under keys, however deep.
        path: of the file, for errors.
        key: the label of the wanted weights, or a part of it at either end; none takes the trained model before its
            average, and DINO's teacher before the student.

    Raises:
        XCiTError: if there are none, or it is not clear which are meant.
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
    # No XCiT: what the file has instead is for the caller to say.
    for wanted in ("teacher", *_PLAIN, *_AVERAGED, ""):
        for where, state in states:
            if where == wanted:
                return Found({_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}, where)
    raise XCiTError(
        f"{path} has no weights under 'model', 'state_dict' or 'teacher'; its top-level keys are: "
        f"{_some(map(str, loaded)) or 'none'}"
    )


def _states(loaded: Mapping[Any, Any], where: str = "", depth: int = 3) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """All mappings that hold named tensors, each with the keys that lead there."""
    tensors = {name: value.detach() for name, value in loaded.items() if _is_tensor(name, value)}
    if tensors:
        yield where, tensors
    for name, value in loaded.items():
        if isinstance(name, str) and isinstance(value, dict) and depth:
            yield from _states(value, f"{where}.{name}" if where else name, depth - 1)


def _is_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _sets(state: Mapping[str, Tensor], where: str, path: Path) -> list[Found]:
    """The XCiTs in one mapping, by what stands before their names."""
    tensors = {_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    if len(tensors) < len(state):
        raise XCiTError(f"{path} holds two states in one: some names occur with and without 'module.'")
    prefixes = dict.fromkeys(match[1] for name in tensors if (match := _XCIT.fullmatch(name)))
    normalization, of_images = _normalization(tensors)
    # A counter, of averaging, is a scalar that belongs to no module.
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
    """Mean and standard deviation of the images among the tensors, if they are there, and the names of the two."""
    by_place: dict[str, dict[str, str]] = {}
    for name in tensors:
        if match := _NORMALIZATION.fullmatch(name):
            by_place.setdefault(match[1], {})["mean" if match[2] in ("mean", "mu") else "std"] = name
    for names in by_place.values():
        # A number a channel: what is larger, or no plain tensor, is something else of that name.
        if len(names) == 2 and all(_is_short(tensors[name]) for name in names.values()):
            mean, std = (tensors[names[which]].flatten() for which in ("mean", "std"))
            if len(mean) == len(std) > 0 and bool((std > 0).all()):
                # Shortest decimals that give the same float32: 0.4914, not 0.49140000343.
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
    if {"teacher", "student"} <= labels:  # in DINO the teacher is the model that is kept
        order = ("teacher", *order)
    # A key at the top before one within it.
    known = [each for each in found if each.last in order]
    if not known:
        raise XCiTError(
            f"{path} holds several sets of weights: choose one with key (--key) {' or '.join(_labels(found))}"
        )

    def rank(each: Found) -> tuple[int, int]:
        # Flat weights stand behind those under a usual key, as in a file of both.
        return (order.index(each.last) if each.label else len(_PLAIN) + 1, each.label.count("."))

    return min(known, key=rank)


def _labels(found: Iterable[Found]) -> list[str]:
    return [each.label for each in found if each.label]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
