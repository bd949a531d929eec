"""The command line, which only parses arguments and prints. A command's module is imported when the command is used."""

import io
import sys
from importlib import import_module

import click

from xcit import __version__
from xcit.errors import XCiTError
from xcit.terminal import guard_terminal

USER_ERROR = 2
"""Exit status of a command that was stopped by a user's mistake."""

SOME_FAILED = 1
"""Exit status of a command that finished, but could not process some inputs."""

INTERRUPTED = 130

_VERBS = {
    "list": ("models", "list_", "List the models."),
    "info": ("models", "info", "Show all that is known about a model."),
    "predict": ("predict", "predict", "Classify images."),
    "features": ("features", "features", "Write features of images to a file."),
    "attention": ("attention", "attention", "Draw what the class token attends to."),
    "detect": ("detect", "detect", "Find objects: boxes, classes and masks."),
    "segment": ("segment", "segment", "Assign a class to each pixel of images."),
    "test": ("test", "test", "Measure a checkpoint on labelled images."),
    "knn": ("knn", "knn", "Measure a k-nearest-neighbour classifier on a model's features."),
    "linear": ("linear", "linear", "Train and measure a linear classifier on a model's features."),
    "train": ("train", "train", "Train a model with a recipe."),
    "config": ("train", "config", "Print a recipe's full config."),
    "make-data": ("make_data", "make_data", "Create a data set for experiments."),
    "bench": ("bench", "bench", "Measure a model's speed and memory on this machine."),
    "complexity": ("bench", "complexity", "Show how a model's cost grows with the image size."),
    "max-size": (
        "max_size",
        "max_size",
        "Show the largest image that a model can process in a given amount of memory.",
    ),
    "fetch": ("weights", "fetch", "Download weights, for example for a machine without network."),
    "export": ("export", "export", "Export a model to a file for another runtime."),
    "convert": ("weights", "convert", "Convert a checkpoint to another format."),
    "verify": ("weights", "verify", "Check a checkpoint: digest, names, shapes, values."),
}
"""Maps a command to its module, its function and its short help.

The short help is in this table, so that `xcit --help` imports no command.
"""


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        file, function, _ = _VERBS[cmd_name]
        command: click.Command = getattr(import_module(f"xcit.cli.{file}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, _, text) in _VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _VERBS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], _VERBS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(_VERBS)}"
            ctx.fail(f"no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="xcit")
def _xcit() -> None:
    """XCiT (Cross-Covariance Image Transformers): classify, extract features, measure, train.

    `xcit predict` without arguments classifies the packaged images with the packaged model.

    Environment variables: XCIT_CACHE is the folder for downloaded weights. XCIT_MIRROR is a folder or URL with
    copies of the weights. XCIT_DATA is the folder of data sets that are known by name. XCIT_OFFLINE=1 forbids
    downloads.
    """


def main() -> None:
    """Runs the command line."""
    run(_xcit, "xcit")


def run(command: click.Command, name: str) -> None:
    """Runs a command and ends the process. After a user's mistake, prints one message and exits with status 2.

    If the program that reads the output ends early, as in `xcit list | head`, click ends the process without a message.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names may contain characters that the terminal's encoding does not have. Standard error escapes them by
        # default.
        sys.stdout.reconfigure(errors="backslashreplace")
    guard_terminal()
    try:
        status = command.main(prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(USER_ERROR)
    except XCiTError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror}")
    except (KeyboardInterrupt, click.Abort):
        click.echo("xcit: interrupted", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> None:
    from xcit.cli.lines import say

    say(f"xcit: error: {message}", err=True, indent=2)
    sys.exit(USER_ERROR)
