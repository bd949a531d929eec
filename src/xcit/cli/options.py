"""Options that several verbs share."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import torch

Function = TypeVar("Function", bound=Callable[..., Any])

DTYPES = ("float32", "bfloat16", "float16")


def compute_options(batch_size: int) -> Callable[[Function], Function]:
    """Adds --batch-size, --device and --dtype."""

    def add(function: Function) -> Function:
        for option in (
            click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Precision."),
            click.option("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one, else cpu."),
            click.option(
                "--batch-size",
                type=click.IntRange(min=1),
                default=batch_size,
                show_default=True,
                help="Images a forward pass.",
            ),
        ):
            function = option(function)
        return function

    return add


def checked_device(name: str | None) -> "torch.device | None":
    """A device by name.

    Raises:
        XCiTError: if there is no such device on this machine.
    """
    if name is None:
        return None
    import torch

    from xcit.errors import XCiTError

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise XCiTError(f"--device {name}: not on this machine ({str(error).splitlines()[0]})") from None
    return device


def checked_dtype(name: str) -> "torch.dtype":
    """One of `DTYPES` as torch's."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype
