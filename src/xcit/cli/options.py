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
    """Returns one decorator that adds several options, in the order in which they are given."""

    def add(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def grouped(kind: type[Any], argument: str, *options: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Like `together`, but the command gets the options as one argument: a dataclass with a field for each option."""
    names = [field.name for field in fields(kind)]

    def add(function: Function) -> Function:
        @wraps(function)
        def with_one(**values: Any) -> Any:
            return function(**{argument: kind(**{name: values.pop(name) for name in names})}, **values)

        return cast(Function, together(*options)(with_one))

    return add


device_option = click.option("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one, else cpu.")

key_option = click.option("--key", metavar="KEY", help="Which weights to use, if the file has several sets.")


def compute_options(batch_size: int | None) -> Callable[[Function], Function]:
    """Adds --batch-size with this default (None leaves it out), --device and --dtype."""
    size = click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=batch_size,
        show_default=True,
        help="Images per forward pass.",
    )
    dtype = click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Precision.")
    return together(*([] if batch_size is None else [size]), device_option, dtype)


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """The values of the options of `file_options`; None keeps the value of the name or the file."""

    key: str | None = None
    stem_strides: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None

    def changes(self, weights: str | None) -> bool:
        """Whether these options, or `weights`, make a model that differs from the named one."""
        return not (weights is None and self.key is None and self.stem_strides is None)

    def apply(self, model: Any, name: str) -> None:
        """Changes a model's preprocessing, and prints on standard error if it is assumed."""
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
    """Adds --key, --stem-strides, --mean, --std and --size, passed as one argument: `how`, a `FileOptions`.

    The class of the command is `CommandWithNumbers`.
    """
    number = "NUMBER..."
    add = grouped(
        FileOptions,
        "how",
        click.option("--key", metavar="KEY", help="Which weights to use, if a file has several: student, model_ema."),
        click.option(
            "--stem-strides",
            callback=numbers(int),
            metavar=number,
            help="Strides of the stem's convolutions, as 1 1 2 2.",
        ),
        click.option(
            "--mean",
            callback=numbers(float),
            metavar=number,
            help="For pixels in 0..1: one per channel, or one for all.",
        ),
        click.option("--std", callback=numbers(float), metavar=number, help="Standard deviation; see --mean."),
        click.option("--size", type=click.IntRange(min=1), metavar="N", help="Side of the model's input, in pixels."),
    )
    return add(function)


def file_with_key(name: str, key: str | None) -> str:
    """Appends the key to a path or URL of weights; a name of the zoo has no key.

    Raises:
        XCiTError: if there is a key, but no file.
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
        "--model", help="A name (`xcit list`), a file, a folder or hf-hub:USER/REPO; by default the packaged model."
    ),
    click.option("--weights", metavar="FILE", help="A file or URL with weights for --model, in any format."),
)


@dataclass(frozen=True, kw_only=True)
class FullSizeOptions:
    """The values of the options of `full_size_options`; None means that an option was not given."""

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
        """Returns the options that were given."""
        names = {"value_range": "range", "token_dtype": "token-dtype"}
        given = (field.name for field in fields(self)[1:] if getattr(self, field.name) is not None)
        return [f"--{names.get(name, name)}" for name in given]


def full_size_options(help_: str) -> Callable[[Function], Function]:
    """Adds --full-size with this help and its related options, passed as one argument: `large`, a `FullSizeOptions`.

    The command's class is `CommandWithNumbers`.
    """
    return grouped(
        FullSizeOptions,
        "large",
        click.option("--full-size", is_flag=True, help=help_),
        click.option(
            "--memory",
            metavar="SIZE",
            help="With --full-size: most memory beside the loaded model, as 4GB; by default half of what is free.",
        ),
        click.option("--scratch", metavar="DIR", help="With --full-size: folder for tokens that do not fit."),
        click.option(
            "--token-dtype",
            type=click.Choice(DTYPES[:2]),
            help="With --full-size: dtype of tokens between blocks; bfloat16 halves their size, and is not exact.",
        ),
        click.option(
            "--level", type=click.IntRange(min=0), help="With --full-size: level of a pyramid, 0 is the largest."
        ),
        click.option(
            "--mpp", type=float, metavar="NUMBER", help="With --full-size: micrometres per pixel of a slide, as 0.5."
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
            help="With --full-size: the values that become 0 and 1, as 0,3000; others are clipped.",
        ),
        click.option(
            "--region",
            callback=numbers(int),
            metavar="X,Y,WIDTH,HEIGHT",
            help="With --full-size: the part to use, in pixels.",
        ),
        click.option(
            "--mask",
            metavar="FILE",
            help="With --full-size: an image of any size; pixels that are 0 in it do not count (empty in maps).",
        ),
    )


def window_options(help_: str) -> Callable[[Function], Function]:
    """Adds --slide with this help, --window and --stride, for `sliding_window`."""
    return together(
        click.option("--slide", is_flag=True, help=help_),
        click.option(
            "--window", type=click.IntRange(min=1), default=512, show_default=True, help="Side of the window in pixels."
        ),
        click.option(
            "--stride", type=click.IntRange(min=1), help="Pixels from window to window; by default two thirds of it."
        ),
    )


def sliding_window(slide: bool, size: int, stride: int | None) -> "SlidingWindow | None":
    """Returns the window that the options of `window_options` describe; None if an image is taken as a whole."""
    from xcit.inference.segment import SlidingWindow

    return SlidingWindow(size=size, stride=stride or max(1, round(size * 2 / 3))) if slide else None


exif_option = click.option(
    "--ignore-exif", is_flag=True, help="Take pixels as they are stored, not as a viewer turns them by EXIF."
)

class_map_option = click.option(
    "--class-map",
    metavar="FILE",
    help="JSON or CSV: which class is meant by the name of a folder or label, by name or index.",
)

holdout_option = click.option(
    "--holdout",
    type=click.FloatRange(min=0),
    metavar="N|SHARE",
    help="Measure on the training images that a run with this holdout held out: a number, or a share below 1.",
)

feature_options = together(
    click.argument("model"),
    click.option("--data", required=True, help="A folder with train/CLASS/... and val/CLASS/..., or fashion-mnist."),
    class_map_option,
    click.option("--weights", metavar="FILE", help="A file or URL with weights for MODEL, in any format."),
    click.option("--no-cache", is_flag=True, help="Do not cache features, and use no cached ones."),
    click.option(
        "--workers", type=click.IntRange(min=0), default=2, show_default=True, help="Processes that read images."
    ),
)
"""MODEL, --data, --class-map, --weights, --no-cache and --workers, for commands that measure features."""


def numbers(kind: type[int] | type[float]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Returns an option's callback: `10 20` (in a `CommandWithNumbers`) or `10,20` becomes a tuple of numbers."""

    def convert(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int | float, ...] | None:
        try:
            return None if text is None else tuple(kind(part) for part in text.split(","))
        except ValueError:
            what = "whole numbers" if kind is int else "numbers"
            raise click.BadParameter(f"{text!r} is no list of {what} such as 1 2 or 1,2") from None

    return convert


class CommandWithNumbers(click.Command):
    """A command in which options with a metavar such as `K...` take all the numbers that follow: --k 10 20."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Joins the numbers after such an option by commas."""
        options = (option for option in self.params if isinstance(option, click.Option))
        lists = {name for option in options if (option.metavar or "").endswith("...") for name in option.opts}
        joined: list[str] = []
        is_value = False  # whether the last word holds numbers of such an option
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
    """Returns a model with weights and preprocessing, by name or file; None means the packaged model.

    Raises:
        XCiTError: if the model can't be loaded, or is a file without preprocessing.
    """
    from xcit.cli.progress import download_bar
    from xcit.deploy import exported_or
    from xcit.errors import XCiTError
    from xcit.inference.classify import DEFAULT_MODEL
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
            f"{name}: the file does not say how to prepare images; give the model's name in its place, and "
            f"--weights {name}, or say it by --mean, --std and --size"
        )
    return model


def checked_device(name: str | None) -> "torch.device | None":
    """Returns a device by name.

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
    """Returns the dtype of torch for one of `DTYPES`."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype
