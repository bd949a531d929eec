"""`xcit features`: images to embeddings in a file."""

from pathlib import Path

import click

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
from xcit.errors import XCiTError

OUT_TYPES = ("cls_token", "featmap", "avg_featmap", "raw")


def _layers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of block numbers such as -1 or 3,7,11") from None


@click.command(cls=CommandWithNumbers)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="FILE.npz, .parquet, .safetensors; or .npy or .zarr for a map at full size.",
)
@model_options
@file_options
@click.option(
    "--out-type",
    type=click.Choice(OUT_TYPES),
    show_default="what the model pools: cls_token, or avg_featmap",
    help="What to keep.",
)
@click.option(
    "--layers", callback=_layers, default="-1", show_default=True, help="Blocks, as -1 or 3,7,11; from the end if < 0."
)
@full_size_options("Take images as they are, however large: neither resized nor cropped.")
@compute_options(batch_size=32)
def features(
    inputs: tuple[str, ...],
    out: Path,
    model: str | None,
    weights: str | None,
    how: FileOptions,
    out_type: str | None,
    layers: tuple[int, ...],
    batch_size: int,
    device: str | None,
    dtype: str,
    full_size: bool,
    memory: str | None,
    scratch: str | None,
    token_dtype: str | None,
    part: PartOptions,
) -> int:
    """Write features of images (files, folders or patterns) to a file, with their file names.

    An image that can't be read is named with the reason, the others go on, and the exit status is 1. With --full-size
    an image of any size goes through as it is, in bounded memory; its map of tokens (--out-type featmap) goes to
    FILE.npy or FILE.zarr, float32 (H, W, D), as it comes, with the place of its cells (FILE.json, or the array's
    attributes) and a picture of its principal components (FILE.png).
    """
    from typing import cast

    from xcit.cli.full_size import full_size_of
    from xcit.cli.progress import progress_bar
    from xcit.cli.results import status_of
    from xcit.data.features import open_feature_file
    from xcit.images.read import find_images
    from xcit.inference.classify import extract_features_each, prepare_model
    from xcit.inference.full_size import write_feature_map
    from xcit.inference.reading import Unreadable
    from xcit.models.xcit import OutType

    if out.suffix in (".npy", ".zarr"):
        if not (full_size and out_type == "featmap" and len(layers) == 1):
            raise XCiTError(
                f"{out}: a {out.suffix} file is for one map: --full-size --out-type featmap and one of --layers"
            )
        paths = find_images(inputs)
        if len(paths) != 1:
            raise XCiTError(f"{out}: a {out.suffix} file is for the map of one image, not of {len(paths)}")
        place = checked_device(device)
        network, _, _ = prepare_model(load_model(model, weights, place), place, checked_dtype(dtype))
        with full_size_of(full_size, memory, scratch, token_dtype, part, num_images=1) as whole:
            assert whole is not None
            shape = write_feature_map(paths[0], network, out, layer=layers[0], full_size=whole)
        click.echo(f"{out}: float32 {list(shape)}")
        return 0
    with open_feature_file(out) as file:
        paths = find_images(inputs)
        place = checked_device(device)
        network = load_model(model, weights, place, how)
        num_unreadable = 0
        with (
            full_size_of(full_size, memory, scratch, token_dtype, part, num_images=len(paths)) as whole,
            progress_bar("features", 1 if full_size else len(paths)) as bar,
        ):
            for result in extract_features_each(
                paths,
                network,
                out_type=cast(OutType | None, out_type),
                layers=layers,
                batch_size=batch_size,
                device=place,
                dtype=checked_dtype(dtype),
                full_size=whole,
            ):
                if isinstance(result, Unreadable):
                    num_unreadable += 1
                    click.echo(f"xcit: {result.reason}", err=True)
                else:
                    file.add(result.source, result.layers)
                bar.advance(1)
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in file.shapes.items())
    click.echo(f"{out}: {len(paths) - num_unreadable} images; {shapes}")
    return status_of(num_unreadable, len(paths))
