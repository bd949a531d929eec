"""`xcit knn`: measures a model's features with a k-nearest-neighbour classifier."""

import click

from xcit.cli.answering import say_model
from xcit.cli.options import (
    CommandWithNumbers,
    FileOptions,
    checked_device,
    checked_dtype,
    compute_options,
    feature_options,
    file_options,
    holdout_option,
    load_model,
    numbers,
)
from xcit.cli.processes import is_main, one_voice


@click.command(cls=CommandWithNumbers)
@feature_options
@file_options
@click.option(
    "--k", "ks", callback=numbers(int), metavar="K...", help="Numbers of neighbours; by default 10 20 100 200."
)
@click.option(
    "--temperature",
    type=float,
    default=0.07,
    show_default=True,
    help="A neighbour's vote has the weight exp(similarity / temperature).",
)
@holdout_option
@compute_options(batch_size=128)
@one_voice()
def knn(
    model: str,
    data: str,
    class_map: str | None,
    weights: str | None,
    how: FileOptions,
    no_cache: bool,
    workers: int,
    ks: tuple[int, ...] | None,
    temperature: float,
    holdout: float | None,
    batch_size: int,
    device: str | None,
    dtype: str,
) -> int:
    """Measure the features of MODEL (a name or a weights file) with a k-nearest-neighbour classifier.

    DATA is a folder of images by class. Each validation image (val) is classified by the votes of its nearest
    neighbours among the training images (train). Nothing is trained. If an image can't be read, its name and the reason
    are printed, the other images are processed, and the exit status is 1.

    With several GPUs: torchrun --nproc-per-node 8 -m xcit knn MODEL --data DIR
    """
    from xcit.cli import SOME_FAILED
    from xcit.measure.knn import evaluate_knn

    place = checked_device(device)
    network = load_model(model, weights, None, how)
    report = evaluate_knn(
        network,
        data,
        ks=ks,
        temperature=temperature,
        holdout=holdout or 0,
        class_map=class_map or "",
        cache=not no_cache,
        batch_size=batch_size,
        num_workers=workers,
        device=place,
        dtype=checked_dtype(dtype),
    )
    if is_main():
        for reason in report.unreadable:
            click.echo(f"xcit: {reason}", err=True)
        click.echo(f"neighbours among {report.num_train} images, votes of exp(similarity / {report.temperature:g})")
        for accuracy in report.accuracies:
            click.echo(
                f"k {accuracy.k:4d}   top-1 {accuracy.top1:6.2f}%   top-5 {accuracy.top5:6.2f}%   "
                f"({accuracy.num_right1} and {accuracy.num_right5} of {report.num_val} images)"
            )
        say_model(network, model, weights)
        if report.unreadable:
            click.echo(f"xcit: {len(report.unreadable)} images could not be read and were left out", err=True)
            # The other processes return 0, because torchrun ends all processes if one of them fails.
            return SOME_FAILED
    return 0
