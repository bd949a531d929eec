"""Which tensors can be weights: dense real numbers."""

from collections.abc import Iterable

import torch
from torch import Tensor


def tensor_problem(tensor: Tensor) -> str:
    """What keeps a tensor from being weights, "" if nothing does. Only its description is looked at, not its numbers.

    A file can hold tensors of any kind: torch would cast complex numbers to real ones with a warning, and end in errors
    of many types for the others.
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
    """Bytes of those tensors that a stride of 0 makes larger than what is stored of them."""
    sizes = ((each.numel() * each.element_size(), each.untyped_storage().nbytes()) for each in tensors)
    return sum(size for size, stored in sizes if size > stored)


def type_problem(tensor: Tensor, own: Tensor) -> str:
    """What keeps a tensor from standing for a model's own by its type, "" if nothing does.

    Whole numbers in place of weights are codes, of a quantised model for instance, and would be taken at face value.
    """
    if own.is_floating_point() and not tensor.is_floating_point():
        return f"of type {_type(tensor)}, where the model has floating-point numbers"
    return ""


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
