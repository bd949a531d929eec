"""`xcit linear`: trains a linear classifier on a model's features, and measures the accuracy."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xcit.cli.answering import say_model
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
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; by default runs/linear/MODEL.")
@click.option("--resume", is_flag=True, help="Resume from the last checkpoint in the run's folder, if there is one.")
@click.option(
    "--no-augmentation",
    is_flag=True,
    help="Train on centre crops. This is fast, because the features of each image are computed only one time. But it "
    "is not the published protocol.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=100, show_default=True, help="Number of training epochs.")
@click.option(
    "--lr",
    "lrs",
    callback=numbers(float),
    metavar="LR...",
    default="0.001",
    show_default=True,
    help="Learning rates for a batch size of 256, scaled in proportion to the batch size. One classifier is trained "
    "for each rate, and the best classifier is kept.",
)
@click.option(
    "--class-weights",
    callback=numbers(float),
    metavar="WEIGHT...",
    help="Weight of each class in the loss, in the order of the folders' names; by default all weights are equal.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Images per training step, in all processes together.",
)
@device_option
@one_voice()
def linear(
    model: str,
    data: str,
    class_map: str | None,
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
    """Train a linear classifier on the frozen features of MODEL (a name or a weights file), and measure the accuracy.

    DATA is a folder of images by class, for training (train) and for evaluation (val). The run's folder gets the same
    files as with `xcit train`. The file model.safetensors contains the backbone and the linear classifier, for
    `xcit predict`. After SIGTERM or Ctrl-C, the run is saved and ends with status 75.

    With several GPUs: torchrun --nproc-per-node 8 -m xcit linear MODEL --data DIR
    """
    need_packages("xcit linear", "timm")
    from xcit.cli import SOME_FAILED
    from xcit.measure.linear import train_linear
    from xcit.training.engine.progress import Stopped

    place = checked_device(device)
    network = load_model(model, weights, None, how)
    directory = out or Path("runs") / "linear" / Path(model).stem
    try:
        report = train_linear(
            network,
            data,
            directory,
            lrs=lrs,
            epochs=epochs,
            augmented=not no_augmentation,
            class_weights=class_weights or (),
            class_map=class_map or "",
            batch_size=batch_size,
            cache=not no_cache,
            resume=resume,
            num_workers=workers,
            device=place,
        )
    except Stopped as stopped:
        if not is_main():
            return 0
        click.echo(
            f"xcit: stopped by {stopped.signal}, saved in {stopped.checkpoint}; to resume, run the same command with "
            "--resume",
            err=True,
        )
        return STOPPED
    if not is_main():  # the status is 0, because torchrun ends all processes if one of them fails
        return 0
    _print_report(report, directory)
    say_model(network, model, weights)
    return SOME_FAILED if report.unreadable else 0


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
        click.echo(f"best learning rate, chosen on these images: {report.best.lr:g}")
    weights = directory / "model.safetensors"
    click.echo(f"use it: xcit predict IMAGE... --model {shlex.quote(str(weights))}")
    if report.unreadable:
        click.echo(f"xcit: {len(report.unreadable)} images could not be read and were left out", err=True)
