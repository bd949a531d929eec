"""Options that several verbs share."""

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
    """Several options as one decorator, in the order in which they are given."""

    def add(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def grouped(kind: type[Any], argument: str, *options: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Like `together`, of options that come as one argument of this name, a dataclass that has a field for each."""
    names = [field.name for field in fields(kind)]

    def add(function: Function) -> Function:
        @wraps(function)
        def with_one(**values: Any) -> Any:
            return function(**{argument: kind(**{name: values.pop(name) for name in names})}, **values)

        return cast(Function, together(*options)(with_one))

    return add


device_option = click.option("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one, else cpu.")

key_option = click.option("--key", metavar="KEY", help="Which weights of a file, if it has several.")


def compute_options(batch_size: int | None) -> Callable[[Function], Function]:
    """Adds --batch-size with this default (none leaves it out), --device and --dtype."""
    size = click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=batch_size,
        show_default=True,
        help="Images a forward pass.",
    )
    dtype = click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Precision.")
    return together(*([] if batch_size is None else [size]), device_option, dtype)


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """What the options of `file_options` say; none leaves it as the name or the file has it."""

    key: str | None = None
    stem_strides: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None

    def apply(self, model: Any, name: str) -> None:
        """Changes how a model has images prepared, and says on standard error where that is assumed."""
        from xcit.cli.processes import is_main
        from xcit.inference.preparing import prepare_otherwise

        prepare_otherwise(model, name, mean=self.mean, std=self.std, size=self.size)
        info = model.info
        if getattr(info, "assumed", False) and is_main():
            click.echo(
                f"xcit: {name}: how to prepare images is assumed: {info.preprocessing.sentence()}; --mean, --std and "
                "--size say otherwise",
                err=True,
            )


def file_options(function: Function) -> Function:
    """Adds --key, --stem-strides, --mean, --std and --size, which come as one argument: `how`, a `FileOptions`.

    The command's class is `CommandWithNumbers`.
    """
    number = "NUMBER..."
    add = grouped(
        FileOptions,
        "how",
        click.option("--key", metavar="KEY", help="Which weights of a file, if it has several: student, model_ema."),
        click.option(
            "--stem-strides", callback=numbers(int), metavar=number, help="Of the stem's convolutions, as 1 1 2 2."
        ),
        click.option(
            "--mean", callback=numbers(float), metavar=number, help="Of pixels in 0..1: one a channel, or one for all."
        ),
        click.option("--std", callback=numbers(float), metavar=number, help="Standard deviation; see --mean."),
        click.option("--size", type=click.IntRange(min=1), metavar="N", help="Pixels a side of the model's input."),
    )
    return add(function)


def file_with_key(name: str, key: str | None) -> str:
    """A path or URL of weights with the key that is meant; a name of the zoo has no key.

    Raises:
        XCiTError: if there is a key, and no file.
    """
    from xcit.errors import XCiTError
    from xcit.zoo.names import is_file

    if key is None:
        return name
    if not (is_file(name) or "://" in name):
        raise XCiTError(f"--key {key} chooses among the weights of a file, and {name} is none")
    return f"{name}#{key}"


model_options = together(
    click.option(
        "--model", help="A name (`xcit list`), a file, a folder or hf-hub:USER/REPO; the packaged if left out."
    ),
    click.option("--weights", metavar="FILE", help="A file or URL with weights for --model, in any format."),
)


@dataclass(frozen=True, kw_only=True)
class FullSizeOptions:
    """What the options of `full_size_options` say; but for `full_size`, none leaves it as it is."""

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
        """The options that were given beside --full-size."""
        names = {"value_range": "range", "token_dtype": "token-dtype"}
        given = (field.name for field in fields(self)[1:] if getattr(self, field.name) is not None)
        return [f"--{names.get(name, name)}" for name in given]


def full_size_options(help_: str) -> Callable[[Function], Function]:
    """Adds --full-size with this help, and what goes with it; all come as one argument: `large`, a `FullSizeOptions`.

    The command's class is `CommandWithNumbers`.
    """
    return grouped(
        FullSizeOptions,
        "large",
        click.option("--full-size", is_flag=True, help=help_),
        click.option(
            "--memory",
            metavar="SIZE",
            help="With --full-size: the most to add to the loaded model, as 4GB; half of what is free if left out.",
        ),
        click.option("--scratch", metavar="DIR", help="With --full-size: folder for tokens that do not fit."),
        click.option(
            "--token-dtype",
            type=click.Choice(DTYPES[:2]),
            help="With --full-size: precision of tokens between blocks; bfloat16 halves them and is not exact.",
        ),
        click.option("--level", type=click.IntRange(min=0), help="With --full-size: of a pyramid, 0 the largest."),
        click.option(
            "--mpp", type=float, metavar="NUMBER", help="With --full-size: micrometres a pixel of a slide, as 0.5."
        ),
        click.option(
            "--bands",
            callback=numbers(int),
            metavar="NUMBER...",
            help="With --full-size: the channels in the model's order, counted from 1, as 3 2 1.",
        ),
        click.option(
            "--range",
            "value_range",
            callback=numbers(float),
            metavar="LOW,HIGH",
            help="With --full-size: the values that become 0 and 1, as 0,3000; those beyond are clipped.",
        ),
        click.option(
            "--region",
            callback=numbers(int),
            metavar="X,Y,WIDTH,HEIGHT",
            help="With --full-size: the part that is taken, in pixels.",
        ),
        click.option(
            "--mask",
            metavar="FILE",
            help="With --full-size: an image of any size; what is 0 in it takes no part and is left empty in maps.",
        ),
    )


def window_options(help_: str) -> Callable[[Function], Function]:
    """Adds --slide with this help, --window and --stride, for `sliding_window`."""
    return together(
        click.option("--slide", is_flag=True, help=help_),
        click.option(
            "--window", type=click.IntRange(min=1), default=512, show_default=True, help="Its side in pixels."
        ),
        click.option(
            "--stride", type=click.IntRange(min=1), help="Pixels from window to window; two thirds if left out."
        ),
    )


def sliding_window(slide: bool, size: int, stride: int | None) -> "SlidingWindow | None":
    """The window that the options of `window_options` mean, none where an image is taken whole."""
    from xcit.inference.segment import SlidingWindow

    return SlidingWindow(size=size, stride=stride or max(1, round(size * 2 / 3))) if slide else None


holdout_option = click.option(
    "--holdout",
    type=click.FloatRange(min=0),
    metavar="N|SHARE",
    help="Measure on the training images that a run with this holdout leaves out: so many, or below 1 a share.",
)

feature_options = together(
    click.argument("model"),
    click.option("--data", required=True, help="A folder with train/CLASS/... and val/CLASS/..., or fashion-mnist."),
    click.option("--weights", metavar="FILE", help="A file or URL with weights for MODEL, in any format."),
    click.option("--no-cache", is_flag=True, help="Keep no features, and use none that were kept."),
    click.option(
        "--workers", type=click.IntRange(min=0), default=2, show_default=True, help="Processes that read images."
    ),
)
"""Whose features, of what."""


def numbers(kind: type[int] | type[float]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """An option's callback: one number or more, as `10 20` (in a `CommandWithNumbers`) or `10,20`, to a tuple."""

    def convert(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int | float, ...] | None:
        try:
            return None if text is None else tuple(kind(part) for part in text.split(","))
        except ValueError:
            what = "whole numbers" if kind is int else "numbers"
            raise click.BadParameter(f"{text!r} is no list of {what} such as 1 2 or 1,2") from None

    return convert


class CommandWithNumbers(click.Command):
    """A command whose options with a metavar such as `K...` take all the numbers that follow them: --k 10 20."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Joins the numbers after such an option by commas."""
        options = (option for option in self.params if isinstance(option, click.Option))
        lists = {name for option in options if (option.metavar or "").endswith("...") for name in option.opts}
        joined: list[str] = []
        is_value = False  # whether the last word is the first number of such an option, or more of them
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
    """A model with weights, ready for images: the packaged one for none, else by name or file.

    Raises:
        XCiTError: if it can't be had, or it is a file that does not say how to prepare images.
    """
    from xcit.cli.progress import download_bar
    from xcit.errors import XCiTError
    from xcit.inference.classify import DEFAULT_MODEL
    from xcit.zoo import get_xcit
    from xcit.zoo.changes import Changes

    with download_bar() as downloaded:
        model = get_xcit(
            name or DEFAULT_MODEL,
            pretrained=weights or True,
            device=device,
            changes=Changes(stem_strides=how.stem_strides),
            key=how.key,
            progress=downloaded,
        )
    how.apply(model, weights or name or DEFAULT_MODEL)
    if model.info is None:
        raise XCiTError(
            f"{name}: the file does not say how to prepare images; give the model's name in its place, and "
            f"--weights {name}, or say it by --mean, --std and --size"
        )
    return model


def checked_device(name: str | None) -> "torch.device | None":
    """A device by name.

    Raises:
        XCiTError: if there is no such device on this machine.
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
    """One of `DTYPES` as torch's."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype
