"""Checks that the state in a checkpoint fits this run, before any part of the state is loaded.

A file that is damaged, or that another program wrote, can contain anything. The first problem is reported as an error
of one line, and the run stays unchanged.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.weights.plain import tensor_problem, type_problem

_MOST_STEPS = 2**53
"""Upper limit of the number of steps of a run. A checkpoint with more steps is damaged."""

_SET_BY_TORCH = frozenset(
    ("amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay", "nesterov")
)
"""Entries of a parameter group that some versions of torch do not write. If they are missing, torch sets defaults."""

_MOMENTS = {torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"), torch.optim.SGD: ("momentum_buffer",)}


def check_counts(state: Mapping[str, Any], source: str) -> None:
    """Checks that a state has all entries, and that all its numbers are valid.

    The numbers are the position, the loss scale, and the number and size of the batches.

    Args:
        state: the state from a checkpoint.
        source: path of the checkpoint, for error messages.

    Raises:
        XCiTError: if an entry is wrong or missing.
    """

    def check(condition: bool, what: str) -> None:
        if not condition:
            raise XCiTError(f"{source}: damaged, or not a checkpoint of a run: {what}")

    for name in ("model", "optimizer", "ema", "scaler", "position", "num_steps", "batch_size"):
        check(name in state, f"it has no {name!r}")
    for name in ("num_steps", "batch_size"):
        check(_is_count(state[name]) and state[name] > 0, f"{name} is not a number above 0")
    position = state["position"]
    check(isinstance(position, dict), "its position is not a dictionary")
    check(position.keys() == {"epoch", "step", "losses", "best"}, "its position has missing or unknown entries")
    check(_is_count(position["epoch"]) and _is_count(position["step"]), "epoch and step are not whole numbers from 0")
    check(position["step"] <= state["num_steps"], "its step is after the end of the epoch")
    check((position["epoch"] + 1) * state["num_steps"] < _MOST_STEPS, "it is in an epoch that no run reaches")
    check(_is_number(position["losses"]), "its losses are not a number")
    check(position["best"] is None or _is_number(position["best"]), "its best figure is not a number")
    scaler = state["scaler"]
    check(isinstance(scaler, dict), "its loss scale is not a dictionary")
    check(
        all(isinstance(name, str) and _is_finite(value) for name, value in scaler.items()),
        "its loss scale is not finite",
    )
    check(not scaler or (scaler.keys() >= {"scale", "_growth_tracker"} and scaler["scale"] > 0), "its loss scale is 0")


def check_tensors(own: Mapping[str, Tensor], theirs: object, source: str) -> None:
    """Checks that the tensors in a checkpoint have the same names, shapes and types as the tensors of a model.

    Args:
        own: state dict of the model.
        theirs: the weights from the checkpoint.
        source: path of the checkpoint, for error messages.

    Raises:
        XCiTError: if a name, a shape or a type is different.
    """
    if not isinstance(theirs, dict):
        raise XCiTError(f"{source}: damaged: its weights are not a dictionary")
    missing = [name for name in own if name not in theirs]
    unknown = [name for name in theirs if name not in own]
    if missing or unknown:
        named = [f"missing {missing[0]!r}"] if missing else []
        named += [f"unexpected {unknown[0]!r}"] if unknown else []
        raise XCiTError(
            f"{source} does not fit this run: {len(missing)} tensors are missing, {len(unknown)} unexpected: "
            f"{', '.join(named)}"
        )
    for name, tensor in own.items():
        _check_tensor(theirs[name], tensor, name, source)


def check_optimizer(optimizer: torch.optim.Optimizer, theirs: object, source: str) -> None:
    """Checks that the state of an optimiser in a checkpoint fits the optimiser of this run.

    Each parameter group and each parameter is checked.

    Args:
        optimizer: the optimiser of this run.
        theirs: the state of the optimiser from the checkpoint.
        source: path of the checkpoint, for error messages.

    Raises:
        XCiTError: if the state does not fit.
    """

    def check(condition: bool, what: str) -> None:
        if not condition:
            raise XCiTError(
                f"{source} does not fit this run: its optimiser's state is damaged, or from another optimiser: {what}"
            )

    check(isinstance(theirs, dict), "it is not a dictionary")
    assert isinstance(theirs, dict)
    groups, moments = theirs.get("param_groups"), theirs.get("state")
    check(isinstance(groups, list) and isinstance(moments, dict), "parameter groups or moments are missing")
    assert isinstance(groups, list) and isinstance(moments, dict)
    check(
        all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups),
        "an invalid parameter group",
    )
    own = [len(group["params"]) for group in optimizer.param_groups]
    sizes = [len(group["params"]) for group in groups]
    if own != sizes and sum(own) == sum(sizes):
        raise XCiTError(
            f"{source} was written by an optimiser with {sizes} parameters in its groups, but this run has "
            f"{own}: keep optimizer.undecayed, optimizer.layer_decay and optimizer.weight_decay as they were"
        )
    check(own == sizes, f"{sum(sizes)} parameters, not {sum(own)}")
    numbers = list(chain.from_iterable(group["params"] for group in groups))
    check(
        all(_is_count(number) for number in numbers) and numbers == list(range(sum(own))),
        "the numbering of its parameters",
    )
    for mine, group in zip(optimizer.param_groups, groups, strict=True):
        for name, value in mine.items():
            if name != "params" and not (name in _SET_BY_TORCH and name not in group):
                check(name in group and _is_alike(group[name], value), f"{name} of a group")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = _MOMENTS[type(optimizer)]
    for number, values in moments.items():
        check(_is_count(number) and number < len(parameters), "a parameter that does not exist")
        check(isinstance(values, dict) and set(values) == set(names), f"the moments of parameter {number}")
        for name in names:
            what, value = f"{name} of parameter {number}", values[name]
            if name == "step":
                is_plain = isinstance(value, Tensor) and not tensor_problem(value) and value.numel() == 1
                check(_is_finite(float(value) if is_plain else value), what)
            elif value is not None or name != "momentum_buffer":
                _check_tensor(value, parameters[number], what, source)


def _check_tensor(theirs: object, own: Tensor, name: str, source: str) -> None:
    if not isinstance(theirs, Tensor):
        raise XCiTError(f"{source} does not fit this run: {name} is not a tensor, but of type {type(theirs).__name__}")
    if theirs.shape != own.shape:
        raise XCiTError(
            f"{source} does not fit this run: size mismatch of {name}: {list(theirs.shape)}, this run's shape is "
            f"{list(own.shape)}"
        )
    if problem := tensor_problem(theirs) or type_problem(theirs, own):
        raise XCiTError(f"{source} does not fit this run: {name} is {problem}")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_finite(value: object) -> bool:
    return (type(value) is int and abs(value) < _MOST_STEPS) or (type(value) is float and math.isfinite(value))


def _is_alike(value: object, own: object) -> bool:
    """Returns whether a value from a checkpoint has the same type as this run's value of the same setting.

    A number must be finite. A sequence must have the same length as this run's sequence.
    """
    if isinstance(own, bool) or own is None:
        return value is None or isinstance(value, bool)
    if isinstance(own, int | float):
        return _is_finite(value)
    if isinstance(own, Sequence) and not isinstance(own, str):
        return isinstance(value, Sequence) and len(value) == len(own) and all(map(_is_finite, value))
    return type(value) is type(own)
