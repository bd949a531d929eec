"""`xcit linear`: a model's features measured by a linear classifier that is trained on them."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xcit.cli.lines import say
from xcit.cli.options import (
    CommandWithNumbers,
    FileOptions,
    checked_device,
    device_option,
    feature_options,
    file_options,
    load_model,
    numbers,
)
from xcit.cli.processes import STOPPED, is_main, one_voice
from xcit.extras import need_packages

if TYPE_CHECKING:
    from xcit.measure.linear import LinearReport


@click.command(cls=CommandWithNumbers)
@feature_options
@file_options
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder; runs/linear/MODEL if left out.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in the run's folder, if there is one.")
@click.option(
    "--no-augmentation",
    is_flag=True,
    help="Train on centre crops, whose features are computed once: fast, and not the published protocol.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=100, show_default=True, help="Epochs of training.")
@click.option(
    "--lr",
    "lrs",
    callback=numbers(float),
    metavar="LR...",
    default="0.001",
    show_default=True,
    help="Learning rates for a batch of 256, in proportion for others; with several the best is kept.",
)
@click.option(
    "--class-weights",
    callback=numbers(float),
    metavar="WEIGHT...",
    help="What each class counts in the loss, in the order of their folders' names; all the same if left out.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Images a step, over all processes.",
)
@device_option
@one_voice()
def linear(
    model: str,
    data: str,
    weights: str | None,
    how: FileOptions,
    no_cache: bool,
    workers: int,
    out: Path | None,
    resume: bool,
    no_augmentation: bool,
    epochs: int,
    lrs: tuple[float, ...],
    class_weights: tuple[float, ...] | None,
    batch_size: int,
    device: str | None,
) -> int:
    """Train a linear classifier on the frozen features of MODEL, a name or a weights file, and measure it.

    DATA has images by class to train on (train) and to measure on (val). The run's folder gets what `xcit train` gives;
    its model.safetensors is the whole classifier, for `xcit predict`. SIGTERM or Ctrl-C saves and ends with status 75.

    With several GPUs: torchrun --nproc-per-node 8 -m xcit linear MODEL --data DIR
    """
    need_packages("xcit linear", "timm")
    from xcit.cli import SOME_FAILED
    from xcit.measure.linear import train_linear
    from xcit.training.display import run_display
    from xcit.training.engine.progress import Stopped

    place = checked_device(device)
    network = load_model(model, weights, None, how)
    directory = out or Path("runs") / "linear" / Path(model).stem
    images = "centre crops" if no_augmentation else "random crops"
    try:
        with run_display(f"linear probe of {model}: {epochs} epochs of {images}; files in {directory}") as display:
            report = train_linear(
                network,
                data,
                directory,
                lrs=lrs,
                epochs=epochs,
                augmented=not no_augmentation,
                class_weights=class_weights or (),
                batch_size=batch_size,
                cache=not no_cache,
                resume=resume,
                num_workers=workers,
                device=place,
                extracting=_extraction_bar,
                report=display.report,
                announce=display.announce,
            )
    except Stopped as stopped:
        if not is_main():
            return 0
        click.echo(
            f"xcit: stopped by {stopped.signal}, saved in {stopped.checkpoint}; go on by the same command with "
            "--resume",
            err=True,
        )
        return STOPPED
    if not is_main():  # which ends well, for torchrun ends all processes when the first of them does not
        return 0
    _print_report(report, directory)
    return SOME_FAILED if report.unreadable else 0


@contextmanager
def _extraction_bar(num_images: int) -> Iterator[Callable[[int], None]]:
    from xcit.cli.progress import progress_bar

    with progress_bar("features", num_images) as bar:
        yield bar.advance


def _print_report(report: "LinearReport", directory: Path) -> None:
    for reason in report.unreadable:
        click.echo(f"xcit: {reason}", err=True)
    for accuracy in report.accuracies:
        say(
            f"lr {accuracy.lr:<7g} top-1 {accuracy.top1:6.2f}%   top-5 {accuracy.top5:6.2f}%   "
            f"loss {accuracy.loss:.4f}   ({accuracy.num_right1} and {accuracy.num_right5} of {report.num_val} images)",
            indent=11,
        )
    if len(report.accuracies) > 1:
        click.echo(f"best by these very images: lr {report.best.lr:g}")
    weights = directory / "model.safetensors"
    click.echo(f"use it: xcit predict IMAGE... --model {shlex.quote(str(weights))}")
    if report.unreadable:
        click.echo(f"xcit: {len(report.unreadable)} images could not be read and did not count", err=True)
