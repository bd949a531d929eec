"""Options that several commands share."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    import torch

    from xcit.inference.segment import SlidingWindow
    from xcit.models import XCiT

Function = TypeVar("Function", bound=Callable[..., Any])

DTYPES = ("float32", "bfloat16", "float16")


def together(*options: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Returns a decorator that adds several options to a command, in the given order."""

    def add(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def grouped(kind: type[Any], argument: str, *options: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Returns a decorator that adds several options to a command, and passes their values as one argument.

    Args:
        kind: the class of the argument, a dataclass with a field for each option.
        argument: the name of the argument.
        options: the options.
    """
    names = [field.name for field in fields(kind)]

    def add(function: Function) -> Function:
        @wraps(function)
        def with_one(**values: Any) -> Any:
            return function(**{argument: kind(**{name: values.pop(name) for name in names})}, **values)

        return cast(Function, together(*options)(with_one))

    return add


device_option = click.option("--device", help="cpu, cuda, cuda:1, ...; by default a GPU if there is one, else cpu.")

key_option = click.option("--key", metavar="KEY", help="Which weights to use, if the file has several sets.")


def compute_options(batch_size: int | None) -> Callable[[Function], Function]:
    """Returns a decorator that adds --batch-size, --device and --dtype to a command.

    Args:
        batch_size: default of --batch-size; None leaves --batch-size out.
    """
    size = click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=batch_size,
        show_default=True,
        help="Images per forward pass.",
    )
    dtype = click.option(
        "--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Dtype of the model."
    )
    return together(*([] if batch_size is None else [size]), device_option, dtype)


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """The values of the options that `file_options` adds. None keeps the value that belongs to the model."""

    key: str | None = None
    stem_strides: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None

    def changes(self, weights: str | None) -> bool:
        """Returns whether `weights`, --key or --stem-strides is given and changes a model's weights or architecture."""
        return not (weights is None and self.key is None and self.stem_strides is None)

    def apply(self, model: Any, name: str) -> None:
        """Applies --mean, --std and --size to a model, and prints a line if its preprocessing is only assumed."""
        from xcit.cli.processes import is_main
        from xcit.inference.preparing import prepare_otherwise

        prepare_otherwise(model, name, mean=self.mean, std=self.std, size=self.size)
        info = model.info
        if getattr(info, "assumed", False) and is_main():
            click.echo(
                f"xcit: {name}: the preprocessing is assumed: {info.preprocessing.sentence()}; --mean, --std and "
                "--size change it",
                err=True,
            )


def file_options(function: Function) -> Function:
    """Adds --key, --stem-strides, --mean, --std and --size to a command, which must be a `CommandWithNumbers`.

    The command gets the values of these options as one argument: `how`, a `FileOptions`.
    """
    number = "NUMBER..."
    add = grouped(
        FileOptions,
        "how",
        click.option(
            "--key",
            metavar="KEY",
            help="Which weights to use, if the file has several sets, such as student or model_ema.",
        ),
        click.option(
            "--stem-strides",
            callback=numbers(int),
            metavar=number,
            help="Strides of the stem's convolutions, such as 1 1 2 2.",
        ),
        click.option(
            "--mean",
            callback=numbers(float),
            metavar=number,
            help="Mean for the normalisation of pixels in 0..1: one number per channel, or one for all.",
        ),
        click.option(
            "--std",
            callback=numbers(float),
            metavar=number,
            help="Standard deviation for the normalisation; see --mean.",
        ),
        click.option(
            "--size",
            type=click.IntRange(min=1),
            metavar="N",
            help="Side of the model's input, in pixels; for segmenters and detectors the short side.",
        ),
    )
    return add(function)


def file_with_key(name: str, key: str | None) -> str:
    """Returns `name#key` for a path or URL of weights, or the name itself if the key is None.

    Raises:
        XCiTError: if there is a key, but the name is not a file or a URL.
    """
    from xcit.errors import XCiTError
    from xcit.zoo.names import is_file

    if key is None:
        return name
    if not (is_file(name) or "://" in name):
        raise XCiTError(f"--key {key} selects weights in a file, but {name} is not a file")
    return f"{name}#{key}"


model_options = together(
    click.option(
        "--model", help="A name (see `xcit list`), a file, a folder or hf-hub:USER/REPO; by default the packaged model."
    ),
    click.option("--weights", metavar="FILE", help="A file or URL with weights for --model, in any format."),
)


@dataclass(frozen=True, kw_only=True)
class FullSizeOptions:
    """The values of the options that `full_size_options` adds; None means that an option was not given."""

    full_size: bool = False
    memory: str | None = None
    scratch: str | None = None
    token_dtype: str | None = None
    level: int | None = None
    mpp: float | None = None
    bands: tuple[int, ...] | None = None
    value_range: tuple[float, ...] | None = None
    region: tuple[int, ...] | None = None
    mask: str | None = None

    def given(self) -> list[str]:
        """Returns the names of the options that were given, except --full-size."""
        names = {"value_range": "range", "token_dtype": "token-dtype"}
        given = (field.name for field in fields(self)[1:] if getattr(self, field.name) is not None)
        return [f"--{names.get(name, name)}" for name in given]


def full_size_options(help_: str) -> Callable[[Function], Function]:
    """Returns a decorator that adds --full-size, and the options that need it, to a `CommandWithNumbers`.

    The command gets the values of these options as one argument: `large`, a `FullSizeOptions`.

    Args:
        help_: help text of --full-size.
    """
    return grouped(
        FullSizeOptions,
        "large",
        click.option("--full-size", is_flag=True, help=help_),
        click.option(
            "--memory",
            metavar="SIZE",
            help="With --full-size: limit of the memory in addition to the loaded model, such as 4GB; by default half "
            "of the free memory.",
        ),
        click.option(
            "--scratch", metavar="DIR", help="With --full-size: folder for tokens that do not fit into memory."
        ),
        click.option(
            "--token-dtype",
            type=click.Choice(DTYPES[:2]),
            help="With --full-size: dtype of the tokens between blocks; "
            "bfloat16 halves the size of the tokens, but rounds their values.",
        ),
        click.option(
            "--level",
            type=click.IntRange(min=0),
            help="With --full-size: level of the image pyramid to read; level 0 has the full resolution.",
        ),
        click.option(
            "--mpp",
            type=float,
            metavar="NUMBER",
            help="With --full-size: resolution to read from a slide, in micrometres per pixel, such as 0.5.",
        ),
        click.option(
            "--bands",
            callback=numbers(int),
            metavar="NUMBER...",
            help="With --full-size: channels of the image to use, from 1, in the model's order, such as 3 2 1.",
        ),
        click.option(
            "--range",
            "value_range",
            callback=numbers(float),
            metavar="LOW,HIGH",
            help="With --full-size: pixel values that are scaled to 0 and 1, such as 0,3000; values outside this "
            "range are clipped.",
        ),
        click.option(
            "--region",
            callback=numbers(int),
            metavar="X,Y,WIDTH,HEIGHT",
            help="With --full-size: part of the image to process, in pixels.",
        ),
        click.option(
            "--mask",
            metavar="FILE",
            help="With --full-size: mask image of any size; pixels are left out where the mask is 0.",
        ),
    )


def window_options(help_: str) -> Callable[[Function], Function]:
    """Returns a decorator that adds --slide, --window and --stride to a command; see `sliding_window`.

    Args:
        help_: help text of --slide.
    """
    return together(
        click.option("--slide", is_flag=True, help=help_),
        click.option(
            "--window",
            type=click.IntRange(min=1),
            default=512,
            show_default=True,
            help="Side of the sliding window, in pixels.",
        ),
        click.option(
            "--stride",
            type=click.IntRange(min=1),
            help="Step of the sliding window in pixels; by default two thirds of --window.",
        ),
    )


def sliding_window(slide: bool, size: int, stride: int | None) -> "SlidingWindow | None":
    """Returns the window that the options of `window_options` describe, or None without --slide."""
    from xcit.inference.segment import SlidingWindow

    return SlidingWindow(size=size, stride=stride or max(1, round(size * 2 / 3))) if slide else None


exif_option = click.option(
    "--ignore-exif", is_flag=True, help="Read the pixels as they are stored, without the rotation in the EXIF data."
)

class_map_option = click.option(
    "--class-map",
    metavar="FILE",
    help="JSON or CSV file that maps the name of each folder or label to a class of the model (by name or index).",
)

holdout_option = click.option(
    "--holdout",
    type=click.FloatRange(min=0),
    metavar="N|SHARE",
    help="Measure on the training images that the training run held out. Give the holdout of the run: a number of "
    "images, or a share below 1.",
)

feature_options = together(
    click.argument("model"),
    click.option("--data", required=True, help="A folder with train/CLASS/... and val/CLASS/..., or fashion-mnist."),
    class_map_option,
    click.option("--weights", metavar="FILE", help="A file or URL with weights for MODEL, in any format."),
    click.option("--no-cache", is_flag=True, help="Neither read nor write cached features."),
    click.option(
        "--workers",
        type=click.IntRange(min=0),
        default=2,
        show_default=True,
        help="Number of processes that read images.",
    ),
)
"""Adds MODEL, --data, --class-map, --weights, --no-cache and --workers to commands that measure features."""


def numbers(kind: type[int] | type[float]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Returns a callback for a click option. It converts text such as `10,20` to a tuple of numbers.

    In a `CommandWithNumbers`, the user can also write `10 20`.
    """

    def convert(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int | float, ...] | None:
        try:
            return None if text is None else tuple(kind(part) for part in text.split(","))
        except ValueError:
            what = "whole numbers" if kind is int else "numbers"
            raise click.BadParameter(f"{text!r} is no list of {what} such as 1 2 or 1,2") from None

    return convert


class CommandWithNumbers(click.Command):
    """A command in which an option accepts several numbers, as in --k 10 20, if the option's metavar ends in `...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Joins the numbers after an option with commas, before click parses the arguments."""
        options = (option for option in self.params if isinstance(option, click.Option))
        lists = {name for option in options if (option.metavar or "").endswith("...") for name in option.opts}
        joined: list[str] = []
        is_value = False  # whether the next number belongs to an option that accepts several numbers
        for word in args:
            if is_value and _is_number(word):
                joined[-1] += f",{word}"
                continue
            name, equals, _ = word.partition("=")
            is_value = name in lists if equals else bool(lists.intersection(joined[-1:]))
            joined.append(word)
        return super().parse_args(ctx, joined)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def load_model(
    name: str | None, weights: str | None, device: "torch.device | None", how: FileOptions = FileOptions()
) -> "XCiT":
    """Returns a classifier or backbone by name or file, with its weights and preprocessing.

    Args:
        name: a name or a file; None means the packaged model.
        weights: a file or URL with weights; None means the weights that belong to the name.
        device: where the model is loaded; None means the CPU.
        how: the user's options for the file and the preprocessing.

    Raises:
        XCiTError: if the model can't be loaded, or its preprocessing is unknown.
    """
    from xcit.deploy import exported_or
    from xcit.errors import XCiTError
    from xcit.inference.classify import DEFAULT_MODEL
    from xcit.progress import download_bar
    from xcit.zoo import get_xcit
    from xcit.zoo.changes import Changes
    from xcit.zoo.kinds import CLASSIFIER

    with download_bar() as downloaded:
        model = exported_or(
            name or DEFAULT_MODEL,
            CLASSIFIER,
            lambda: get_xcit(
                name or DEFAULT_MODEL,
                pretrained=weights or True,
                device=device,
                changes=Changes(stem_strides=how.stem_strides),
                key=how.key,
                progress=downloaded,
            ),
            changed=how.changes(weights),
        )
    how.apply(model, weights or name or DEFAULT_MODEL)
    if model.info is None:
        raise XCiTError(
            f"{name}: the file does not say how to prepare images; give the model's name instead, with "
            f"--weights {name}, or give --mean, --std and --size"
        )
    return model


def checked_device(name: str | None) -> "torch.device | None":
    """Returns the device with this name, or None if the name is None.

    Raises:
        XCiTError: if this machine has no such device.
    """
    if name is None:
        return None
    from xcit.errors import XCiTError
    from xcit.machine import find_device

    try:
        return find_device(name)
    except XCiTError as error:
        raise XCiTError(f"--{error}") from None


def checked_dtype(name: str) -> "torch.dtype":
    """Returns the torch dtype with this name, which is one of `DTYPES`."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype
