"""Uses that our modules do not support, each with an error of one line that says what to do instead."""

from typing import Any, NoReturn

import torch.fx
from torch import Tensor

from xcit.errors import XCiTError


class NotScripted:
    """A module that TorchScript's compiler can't compile, because it chooses among forms by the types of its layers."""

    def __prepare_scriptable__(self) -> NoReturn:
        """Raises an error; `torch.jit.script` calls this method first, on a module and on each module within it."""
        raise XCiTError(
            f"torch.jit.script can't compile {type(self).__name__}: use torch.jit.trace(model, images), whose graph "
            "serves every size, or torch.export"
        )


def refuse_symbols(*values: Any) -> None:
    """Raises an error if `torch.fx` is tracing, because the computation depends on sizes that are unknown then.

    Raises:
        XCiTError: if one of the values is a symbol of the tracer.
    """
    if any(isinstance(value, torch.fx.Proxy) for value in values):
        raise XCiTError(
            "torch.fx can't trace into an XCiT's blocks and position code: give its tracer "
            "xcit.models.FX_LEAF_MODULES as leaf modules, or take a graph from torch.export or torch.jit.trace"
        )


def check_batch(images: Tensor, num_channels: int) -> None:
    """Checks that the argument of a model is a batch of images that its layers accept.

    Raises:
        XCiTError: if the argument is not a floating-point tensor, is empty, or has another shape or number of channels.
    """
    form = f"(batch, {num_channels}, height, width)"
    if not isinstance(images, Tensor):
        raise XCiTError(
            f"images must be a tensor {form}, not {type(images).__name__}: torch.from_numpy makes one of an array, and "
            "xcit.predict takes pictures as they are"
        )
    shape = tuple(images.shape)
    if images.ndim != 4:
        one = images.ndim == 3 and shape[0] == num_channels
        raise XCiTError(f"images must be {form}, not {shape}{': images[None] is a batch of one' if one else ''}")
    if shape[1] != num_channels:
        is_last = shape[3] == num_channels
        hint = f": they are {shape}, with the channels last; images.permute(0, 3, 1, 2) has them first" * is_last
        raise XCiTError(f"images have {shape[1]} channels, the model takes {num_channels}{hint}")
    if not images.is_floating_point():
        raise XCiTError(
            f"images must be floating-point and normalised, not {str(images.dtype).removeprefix('torch.')}: "
            "(images / 255 - mean) / std, or xcit.predict, which takes pictures as they are"
        )
    if type(shape[0]) is int and not shape[0]:  # torch.export has symbols in place of sizes
        raise XCiTError(f"the batch is empty: {shape}")
