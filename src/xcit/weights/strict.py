"""Loads a state dict into a module strictly: if names or shapes differ, nothing is loaded, and an error lists them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.weights.plain import tensor_problem, type_problem

_LINES = 9
"""The largest number of differing names in an error message."""

_HEAD = ("head.weight", "head.bias")


def check_state(expected: Mapping[str, Sequence[int]], state: Mapping[str, Tensor], what: str) -> None:
    """Checks that the names and shapes in a state dict are those of a model.

    Args:
        expected: the model's tensor names and shapes.
        state: the state dict. Its `num_batches_tracked` may be missing, as in old files.
        what: name of the state dict, for example the path of its file; the error message begins with it.

    Raises:
        XCiTError: if a name or a shape differs; the message lists the differences.
    """
    missing = {name for name in expected if name not in state and not _is_counter(name)}
    unexpected = {name for name in state if name not in expected}
    reshaped = {name for name in expected if name in state and tuple(state[name].shape) != tuple(expected[name])}
    kinds = [
        ("missing", [f"{name} {_shape(expected[name])}" for name in expected if name in missing]),
        ("unexpected", [f"{name} {_shape(state[name].shape)}" for name in state if name in unexpected]),
        (
            "other shape",
            [
                f"{name} is {_shape(state[name].shape)}, the model's is {_shape(expected[name])}"
                for name in expected
                if name in reshaped
            ],
        ),
    ]
    kinds = [(kind, lines) for kind, lines in kinds if lines]
    if not kinds:
        return
    message = [f"{what} does not fit the model: " + ", ".join(f"{len(lines)} {kind}" for kind, lines in kinds)]
    shown = _LINES // len(kinds)
    for kind, lines in kinds:
        message += [f"  {kind}: {line}" for line in lines[:shown]]
        if len(lines) > shown:
            message.append(f"  ... and {len(lines) - shown} more {kind}")
    if missing | unexpected | reshaped <= set(_HEAD):
        message += _head_advice(expected, state)
    raise XCiTError("\n".join(message))


def load_state(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Copies a state dict into a module. The module keeps its device and dtype.

    Args:
        module: the module.
        state: the state dict, with the names and shapes of the module. If `num_batches_tracked` is missing, the module
            keeps its own value.
        what: name of the state dict, for example the path of its file; the error message begins with it.

    Raises:
        XCiTError: if a name or shape differs, or a tensor can't be used as weights. The module is then unchanged.
    """
    own = module.state_dict()
    check_state({name: tensor.shape for name, tensor in own.items()}, state, what)
    for name, tensor in state.items():
        if problem := tensor_problem(tensor) or type_problem(tensor, own[name]):
            raise XCiTError(f"{what} does not fit the model: {name} is {problem}")
    counters = {name: tensor for name, tensor in own.items() if name not in state}
    module.load_state_dict({**state, **counters})


def nonfinite(state: Mapping[str, Tensor]) -> list[str]:
    """Returns the names of the tensors that contain infinity or NaN."""
    return [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _head_advice(expected: Mapping[str, Sequence[int]], state: Mapping[str, Tensor]) -> list[str]:
    """Returns a list with one line of advice if the numbers of classes differ, else an empty list."""
    wanted = expected[_HEAD[0]][0] if _HEAD[0] in expected else 0
    found = state[_HEAD[0]].shape[0] if _HEAD[0] in state and state[_HEAD[0]].ndim else 0
    if wanted == found:
        return []
    if not wanted:
        return [
            f"The file has a classifier of {found} classes, but the model has none: pass num_classes={found} to load "
            "the classifier."
        ]
    if not found:
        return [
            f"The file has no classifier, but the model has a classifier of {wanted} classes: pass num_classes=0 to "
            f"load the backbone, then call reset_classifier({wanted}) for a new classifier."
        ]
    return [
        f"The file has {found} classes, the model has {wanted}: pass num_classes={found} to load the file's "
        f"classifier; then call reset_classifier({wanted}) if you want a new classifier."
    ]
