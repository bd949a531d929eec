"""`xcit attention`: what a model attends to, as pictures and arrays."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xcit.cli.files import beside, images_outside, result_names
from xcit.cli.options import (
    CommandWithNumbers,
    FileOptions,
    FullSizeOptions,
    checked_device,
    checked_dtype,
    compute_options,
    file_options,
    full_size_options,
    load_model,
    model_options,
)
from xcit.errors import XCiTError
from xcit.writing import make_folder, whole_file

if TYPE_CHECKING:
    from xcit.explain import ChannelAttentionMaps, ClassAttentionMaps

_HELP = """Draw what the class token attends to in images: files, folders (searched through) or patterns.

Images keep their own size, whatever it is, unless --resize is given. Without INPUT the packaged images are drawn. An
image that can't be read is named with the reason, the others go on, and the exit status is 1.

\b
For each image the folder --out gets
  NAME-attention.png  the image, the mean of the heads over it, every head
  NAME-overlay.png    the mean over the image alone, at the image's size
  NAME.npz            with --arrays: the numbers
  NAME.tif            with --tiff: the mean of the heads and every head,
                      float32, a GeoTIFF where the image is one
  NAME-xca.png        with --xca: covariance of the channels, block by block
and with --xca, once, temperatures.png. Images of several folders keep their
folders below --out.
"""


@click.command(cls=CommandWithNumbers, help=_HELP)
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the results.")
@model_options
@file_options
@click.option(
    "--block", type=int, default=-1, show_default=True, help="Class attention block from 0; from the end if < 0."
)
@click.option(
    "--threshold",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="SHARE",
    help="Show the fewest cells that hold this share of a map, such as 0.6; all if left out.",
)
@click.option("--resize", type=click.IntRange(min=1), metavar="N", help="Scale the short side to N pixels first.")
@click.option("--arrays", is_flag=True, help="Write the numbers too.")
@click.option("--tiff", is_flag=True, help="Write the maps as TIFF too, on the image's place on the ground.")
@click.option("--xca", is_flag=True, help="Draw XCA's covariance of the channels and its temperatures too.")
@click.option("--no-figures", is_flag=True, help="Write no NAME-attention.png: faster, as for the frames of a video.")
@full_size_options("Stream images from their files, however large; the pictures show them small.")
@compute_options(batch_size=None)
def attention(
    inputs: tuple[str, ...],
    out: Path,
    model: str | None,
    weights: str | None,
    how: FileOptions,
    block: int,
    threshold: float | None,
    resize: int | None,
    arrays: bool,
    tiff: bool,
    xca: bool,
    no_figures: bool,
    device: str | None,
    dtype: str,
    large: FullSizeOptions,
) -> int:
    """Draws and writes; gives the exit status."""
    from xcit.cli.full_size import full_size_of
    from xcit.cli.predict import packaged_images
    from xcit.cli.progress import progress_bar
    from xcit.cli.results import status_of
    from xcit.draw.attention import draw_temperatures, require_matplotlib
    from xcit.explain import channel_attention, class_attention_each
    from xcit.inference.reading import Unreadable, default_device, readable

    if large.full_size and (xca or resize):
        raise XCiTError(f"give --full-size, or {'--xca' if xca else '--resize'}, not both")
    require_matplotlib()
    paths = images_outside(inputs, out) if inputs else packaged_images()
    places = [out / name for name in result_names(paths)]
    make_folder(out)
    computer, precision = checked_device(device) or default_device(), checked_dtype(dtype)
    network = load_model(model, weights, computer, how).fuse().to(precision)  # once, not for each image
    channels: ChannelAttentionMaps | None = None
    num_unreadable = 0
    with (
        full_size_of(large, num_images=len(paths)) as whole,
        progress_bar("attention", 1 if large.full_size else len(paths)) as bar,
    ):
        results = class_attention_each(
            paths, network, block=block, resize=resize, device=computer, dtype=precision, full_size=whole
        )
        for place, result in zip(places, results, strict=True):
            if isinstance(result, Unreadable):
                num_unreadable += 1
                click.echo(f"xcit: {result.reason}", err=True)
            else:
                if xca:  # of the image as it was read for the first
                    (inside,) = channel_attention(result.image, network, device=computer, dtype=precision)
                    channels = replace(readable(inside), source=result.source)
                _write(place, result, channels, figure=not no_figures, arrays=arrays, threshold=threshold)
                if tiff:
                    with whole_file(beside(place, ".tif")) as unfinished:
                        result.write_tiff(unfinished)
            bar.advance(1)
    if channels is not None:
        assert network.info is not None
        with whole_file(out / "temperatures.png") as unfinished:
            draw_temperatures(channels.temperatures, network.info.name, unfinished)
    click.echo(f"{out}: attention of {len(paths) - num_unreadable} images")
    return status_of(num_unreadable, len(paths))


def _write(
    place: Path,
    maps: "ClassAttentionMaps",
    channels: "ChannelAttentionMaps | None",
    *,
    figure: bool,
    arrays: bool,
    threshold: float | None,
) -> None:
    """Writes the files of one image, whose names begin with `place`."""
    make_folder(place.parent)
    with whole_file(beside(place, "-overlay.png")) as part:
        maps.overlay(threshold=threshold).save(part, format="PNG")
    if figure:
        with whole_file(beside(place, "-attention.png")) as part:
            maps.draw(part, threshold=threshold)
    if channels is not None:
        with whole_file(beside(place, "-xca.png")) as part:
            channels.draw(part)
    if arrays:
        with whole_file(beside(place, ".npz")) as part:
            _write_arrays(part, maps, channels, threshold)


def _write_arrays(
    path: Path, maps: "ClassAttentionMaps", channels: "ChannelAttentionMaps | None", threshold: float | None
) -> None:
    import numpy as np

    from xcit.explain import largest_cells

    arrays: dict[str, Any] = {"heads": maps.heads, "mean": maps.mean, "class_token": maps.class_token}
    arrays |= {"block": maps.block, "patch_size": maps.patch_size * maps.scale}
    if threshold is not None:
        arrays |= {"heads_kept": largest_cells(maps.heads, threshold), "mean_kept": largest_cells(maps.mean, threshold)}
    if channels is not None:
        arrays |= {"covariance": channels.covariance, "channel_attention": channels.attention}
        arrays |= {"temperatures": channels.temperatures}
    with path.open("wb") as file:
        np.savez(file, **arrays)
