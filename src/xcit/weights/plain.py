"""Checks which tensors can be weights: dense tensors of real numbers."""

from collections.abc import Iterable

import torch
from torch import Tensor


def tensor_problem(tensor: Tensor) -> str:
    """Returns why a tensor can't be used as weights, or "" if it can. The tensor's values are not read.

    A file can hold tensors of any type. torch would convert complex numbers to real ones with a warning, and raise many
    different errors for other types.
    """
    if tensor.layout != torch.strided:
        return f"a sparse tensor ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_quantized:
        return f"quantised ({_type(tensor)})"
    if tensor.is_meta:
        return "without numbers (on torch's meta device)"
    if tensor.is_complex():
        return f"of complex numbers ({_type(tensor)})"
    return ""


def unstored_bytes(tensors: Iterable[Tensor]) -> int:
    """Returns the bytes by which strides of 0 make these tensors larger than their storage."""
    sizes = ((each.numel() * each.element_size(), each.untyped_storage().nbytes()) for each in tensors)
    return sum(size for size, stored in sizes if size > stored)


def type_problem(tensor: Tensor, own: Tensor) -> str:
    """Returns why a tensor's dtype does not fit the model's own tensor, "" if it fits.

    Integers in place of weights are codes, for example of a quantised model, and must not be used as weights.
    """
    if own.is_floating_point() and not tensor.is_floating_point():
        return f"of type {_type(tensor)}, where the model has floating-point numbers"
    return ""


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
