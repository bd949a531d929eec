"""Errors for unsupported uses of the models. Each message is one line that says what to do instead."""

from typing import Any, NoReturn

import torch.fx
from torch import Tensor

from xcit.errors import XCiTError


class NotScripted:
    """Base class of modules that `torch.jit.script` can't compile.

    Such a module checks the types of its layers to choose how it computes, and TorchScript does not support this.
    """

    def __prepare_scriptable__(self) -> NoReturn:
        """Raises an `XCiTError`. `torch.jit.script` calls this method of each module before it compiles the module."""
        raise XCiTError(
            f"torch.jit.script can't compile {type(self).__name__}: use torch.jit.trace(model, images), which gives a "
            "graph for images of every size, or torch.export"
        )


def refuse_symbols(*values: Any) -> None:
    """Raises an error if `torch.fx` is tracing: the computation depends on sizes that are unknown during tracing.

    Raises:
        XCiTError: if one of the values is a `torch.fx.Proxy`, which the tracer passes instead of a tensor or number.
    """
    if any(isinstance(value, torch.fx.Proxy) for value in values):
        raise XCiTError(
            "torch.fx can't trace into an XCiT's blocks and position code: pass xcit.models.FX_LEAF_MODULES to the "
            "tracer as leaf modules, or use torch.export or torch.jit.trace"
        )


def check_batch(images: Tensor, num_channels: int) -> None:
    """Checks that the argument of a model is a batch of images that its layers accept.

    Raises:
        XCiTError: if the argument is not a floating-point tensor, is empty, or has the wrong shape or number of
            channels.
    """
    form = f"(batch, {num_channels}, height, width)"
    if not isinstance(images, Tensor):
        raise XCiTError(
            f"images must be a tensor {form}, not {type(images).__name__}: torch.from_numpy converts an array, and "
            "xcit.predict accepts images without preprocessing"
        )
    shape = tuple(images.shape)
    if images.ndim != 4:
        one = images.ndim == 3 and shape[0] == num_channels
        raise XCiTError(f"images must be {form}, not {shape}{': images[None] is a batch of one' if one else ''}")
    if shape[1] != num_channels:
        is_last = shape[3] == num_channels
        hint = (
            f": they are {shape}, with the channels last; images.permute(0, 3, 1, 2) puts the channels first" * is_last
        )
        raise XCiTError(f"images have {shape[1]} channels, the model takes {num_channels}{hint}")
    if not images.is_floating_point():
        raise XCiTError(
            f"images must be floating-point and normalised, not {str(images.dtype).removeprefix('torch.')}: "
            "use (images / 255 - mean) / std, or xcit.predict, which accepts images without preprocessing"
        )
    if type(shape[0]) is int and not shape[0]:  # under torch.export, sizes may be symbols instead of integers
        raise XCiTError(f"the batch is empty: {shape}")
