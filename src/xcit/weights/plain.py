"""Checks whether tensors can be used as weights: they must be dense tensors of real numbers."""

from collections.abc import Iterable

import torch
from torch import Tensor


def tensor_problem(tensor: Tensor) -> str:
    """Describes why a tensor can't be used as weights; returns "" if it can. The values are not read.

    This check is needed because a file can contain tensors of any type. Without the check, torch would convert
    complex numbers to real numbers with only a warning, and would raise exceptions of many classes for other types.
    """
    if tensor.layout != torch.strided:
        return f"a sparse tensor ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_quantized:
        return f"quantised ({_type(tensor)})"
    if tensor.is_meta:
        return "without values (on torch's meta device)"
    if tensor.is_complex():
        return f"of complex numbers ({_type(tensor)})"
    return ""


def unstored_bytes(tensors: Iterable[Tensor]) -> int:
    """Returns the total size, in bytes, of the tensors that are larger than their storage because of strides of 0."""
    sizes = ((each.numel() * each.element_size(), each.untyped_storage().nbytes()) for each in tensors)
    return sum(size for size, stored in sizes if size > stored)


def type_problem(tensor: Tensor, own: Tensor) -> str:
    """Describes why a tensor's dtype does not fit the model's tensor `own`; returns "" if it fits.

    Integers do not fit floating-point weights: they may be the codes of a quantised model, which are not weights.
    """
    if own.is_floating_point() and not tensor.is_floating_point():
        return f"of type {_type(tensor)}, where the model has floating-point numbers"
    return ""


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
