"""Options that several verbs share."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import torch

    from xcit.models import XCiT

Function = TypeVar("Function", bound=Callable[..., Any])

DTYPES = ("float32", "bfloat16", "float16")


def compute_options(batch_size: int | None) -> Callable[[Function], Function]:
    """Adds --batch-size with this default (none leaves it out), --device and --dtype."""

    def add(function: Function) -> Function:
        options = [
            click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Precision."),
            click.option("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one, else cpu."),
        ]
        if batch_size is not None:
            size = click.IntRange(min=1)
            help_ = "Images a forward pass."
            options.append(click.option("--batch-size", type=size, default=batch_size, show_default=True, help=help_))
        for option in options:
            function = option(function)
        return function

    return add


def model_options(function: Function) -> Function:
    """Adds --model and --weights."""
    for option in (
        click.option("--weights", metavar="FILE", help="A file or URL with weights for --model, in any format."),
        click.option("--model", help="A name (see `xcit list`) or a weights file; the packaged model if left out."),
    ):
        function = option(function)
    return function


def load_model(name: str | None, weights: str | None, device: "torch.device | None") -> "XCiT":
    """A model with weights, ready for images: the packaged one for none, else by name or file.

    Raises:
        XCiTError: if it can't be had, or it is a file that does not say how to prepare images.
    """
    from xcit.cli.progress import download_bar
    from xcit.errors import XCiTError
    from xcit.inference import DEFAULT_MODEL
    from xcit.zoo import get_model

    with download_bar() as downloaded:
        model = get_model(name or DEFAULT_MODEL, pretrained=weights or True, device=device, progress=downloaded)
    if model.info is None:
        raise XCiTError(
            f"{name}: the file does not say how to prepare images; give the model's name beside it: "
            f"--model NAME --weights {name}"
        )
    return model


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
        torch.zeros(1, device=device).cpu()  # there and back, for the meta device gives nothing back
    except (RuntimeError, AssertionError) as error:
        raise XCiTError(f"--device {name}: not on this machine ({str(error).splitlines()[0]})") from None
    return device


def checked_dtype(name: str) -> "torch.dtype":
    """One of `DTYPES` as torch's."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype
