"""Products of many rows with one matrix. In inference on processors from AMD, oneDNN computes the products.

On a CPU, torch computes float32 products with MKL. On processors from AMD, MKL reaches only half of the speed of
oneDNN. Torch contains oneDNN too, but uses it only for convolutions and for 16-bit products. So on processors from AMD,
the functions of this module call oneDNN directly. They use torch's usual operators if gradients are needed, or if the
model is being compiled or exported, or if the operations are being counted.

Shapes: `B` batch, `N` rows, `D` and `E` widths.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from xcit.machine import is_amd

_MIN_ROWS = 16
"""Smallest number of rows for oneDNN; with fewer rows, MKL is faster."""


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """Computes `F.linear`, and then the exact GELU if `gelu` is true.

    The shapes are: rows (..., D), weight (E, D), bias (E,), result (..., E).
    """
    if not isinstance(rows, Tensor):  # a proxy of torch.fx: nothing is known about its tensor
        return F.gelu(F.linear(rows, weight, bias)) if gelu else F.linear(rows, weight, bias)
    if _is_for_onednn(rows, weight, bias):
        activation: tuple[str, list[None], str] = ("gelu", [], "none") if gelu else ("none", [], "")
        bias = None if bias is None else bias.contiguous()  # the operator ignores the bias's strides
        found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, *activation)
        return found
    found = F.linear(rows, weight, bias)
    if not gelu:
        return found
    # GELU works in place, unless the backward pass needs its input, or a transform of `torch.func` is active, which may
    # not support an operation in place.
    is_alone = not torch.compiler.is_compiling() and not found.requires_grad and not _is_transformed()
    return torch.ops.aten.gelu_(found) if is_alone else F.gelu(found)


def affine(tokens: Tensor, matrix: Tensor, row: Tensor) -> Tensor:
    """Computes X P + p for each image: tokens (B, N, D), matrix (B, D, E) and row (B, 1, E) give (B, N, E)."""
    if _is_for_onednn(tokens[:1], matrix, row):
        return _stacked([linear(x, p.mT, r[0]) for x, p, r in zip(tokens, matrix, row, strict=True)])
    return torch.baddbmm(row, tokens, matrix)


def gram_matrix(tokens: Tensor) -> Tensor:
    """Computes X^T X for each image: tokens (B, N, D) give (B, D, D)."""
    if _is_for_onednn(tokens[:1], tokens):
        return _stacked([linear(x.mT, x.mT) for x in tokens])
    return tokens.mT @ tokens


def _stacked(results: list[Tensor]) -> Tensor:
    """Stacks the results of single images. The result of one image is not copied."""
    return results[0][None] if len(results) == 1 else torch.stack(results)


def _is_for_onednn(rows: Tensor, *others: Tensor | None) -> bool:
    """Returns whether oneDNN may compute a product of these tensors, and is faster than torch's usual operator."""
    # This check comes before the check of the number of rows, so that a graph is not specialised for this number.
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit._trace.is_tracing():
        return False
    if not _is_onednn_faster() or rows.numel() < _MIN_ROWS * rows.shape[-1] or not torch.backends.mkldnn.enabled:
        return False
    # For oneDNN's operator, there is no derivative and no autocast, and torch's FLOP counter does not count it.
    if torch.is_autocast_enabled("cpu") or torch._C._len_torch_dispatch_stack() or _is_transformed():
        return False
    with_gradient = torch.is_grad_enabled()
    return all(
        type(one) in (Tensor, nn.Parameter)
        and one.dtype == torch.float32
        and one.device.type == "cpu"
        and not (with_gradient and one.requires_grad)
        for one in (rows, *others)
        if one is not None
    )


def _is_transformed() -> bool:
    """Returns whether a transform of `torch.func` or forward-mode differentiation is active."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


@cache
def _is_onednn_faster() -> bool:
    return is_amd() and torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
