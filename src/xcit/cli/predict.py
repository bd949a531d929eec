"""`xcit predict`: images to classes."""

from pathlib import Path

import click

from xcit.cli.answering import say_model
from xcit.cli.options import (
    CommandWithNumbers,
    FileOptions,
    PartOptions,
    checked_device,
    checked_dtype,
    compute_options,
    file_options,
    full_size_options,
    load_model,
    model_options,
)


@click.command(cls=CommandWithNumbers)
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@model_options
@file_options
@click.option("--topk", type=click.IntRange(min=1), default=5, show_default=True, help="Classes to show an image.")
@click.option("--json", "json_path", metavar="FILE", help="Write JSON to FILE, - for standard output.")
@click.option("--csv", "csv_path", metavar="FILE", help="Write CSV to FILE, - for standard output.")
@full_size_options("Take images as they are, however large: neither resized nor cropped.")
@compute_options(batch_size=32)
def predict(
    inputs: tuple[str, ...],
    model: str | None,
    weights: str | None,
    how: FileOptions,
    topk: int,
    json_path: str | None,
    csv_path: str | None,
    batch_size: int,
    device: str | None,
    dtype: str,
    full_size: bool,
    memory: str | None,
    scratch: str | None,
    token_dtype: str | None,
    part: PartOptions,
) -> int:
    """Classify images: files, folders (searched through) or patterns such as 'photos/**/*.jpg'.

    Without INPUT the packaged images are classified. An image that can't be read is named with the reason, the others
    go on, and the exit status is 1. With --full-size an image of any size goes through as it is, in bounded memory;
    TIFF and other large formats (docs/any-resolution.md) are read row by row.
    """
    from xcit.cli.full_size import full_size_of
    from xcit.cli.progress import progress_bar
    from xcit.cli.results import open_results, status_of
    from xcit.images.read import find_images
    from xcit.inference.classify import predict_each
    from xcit.inference.reading import Unreadable

    paths = find_images(inputs) if inputs else packaged_images()
    place = checked_device(device)
    network = load_model(model, weights, place, how)
    num_unreadable = 0
    with (
        open_results(json_path, csv_path) as results,
        full_size_of(full_size, memory, scratch, token_dtype, part, num_images=len(paths)) as whole,
        progress_bar("predict", 1 if full_size else len(paths)) as bar,
    ):
        for result in predict_each(
            paths, network, topk=topk, batch_size=batch_size, device=place, dtype=checked_dtype(dtype), full_size=whole
        ):
            num_unreadable += isinstance(result, Unreadable)
            results.add(result)
            bar.advance(1)
    say_model(network, model, weights)
    return status_of(num_unreadable, len(paths))


def packaged_images() -> list[Path]:
    """The images that this package ships: from Fashion-MNIST's test split, each named for its true class."""
    return sorted((Path(__file__).parents[1] / "zoo" / "packaged" / "images").glob("*.png"))
