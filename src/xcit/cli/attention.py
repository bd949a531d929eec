"""`xcit attention`: draws a model's attention as pictures, and writes it as arrays."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xcit.cli.answering import say_model
from xcit.cli.bulk import BulkOptions, bulk_options, check_no_full_size, check_small, open_words, placed, write_bulk
from xcit.cli.dense import stored_or_upright
from xcit.cli.files import beside, images_outside, result_names
from xcit.cli.options import (
    CommandWithNumbers,
    FileOptions,
    FullSizeOptions,
    checked_dtype,
    compute_options,
    exif_option,
    file_options,
    full_size_options,
    load_model,
    model_options,
)
from xcit.cli.processes import one_voice
from xcit.errors import XCiTError
from xcit.extras import need_packages
from xcit.writing import make_folder, whole_file

if TYPE_CHECKING:
    from xcit.data.inputs import Inputs
    from xcit.explain import ChannelAttentionMaps, ClassAttentionMaps
    from xcit.models import XCiT

_HELP = """Draw what the class token attends to in images: files, folders (searched recursively) or patterns.

Images keep their own size unless --resize is given. Without INPUT, the packaged images are used. If an image can't be
read, its name and the reason are printed, the other images are processed, and the exit status is 1.

\b
For each image, the folder --out gets
  NAME-attention.png  the image, the mean map of all heads (drawn over the
                      image), and the map of each head
  NAME-overlay.png    only the mean map, drawn over the image, at the image's
                      size
  NAME.npz            with --arrays: the maps as arrays
  NAME.tif            with --tiff: the mean map and the map of each head,
                      float32; a GeoTIFF if the image is georeferenced
  NAME-xca.png        with --xca: covariance of the channels in each block

With --xca, the folder also gets one file temperatures.png. If the images are in several folders, --out gets the same
subfolders.

For many images, --parquet writes the maps to a folder of Parquet parts instead of these files. If the command is
killed, --resume continues it. With --parquet, INPUT may also be a list, a URL, tar shards, FILE.parquet or a data set,
as in xcit predict. With several GPUs, the images are divided among them:
torchrun --nproc-per-node 8 -m xcit attention INPUT... --out DIR --parquet
"""


@click.command(cls=CommandWithNumbers, help=_HELP)
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the results.")
@model_options
@file_options
@click.option(
    "--block",
    type=int,
    default=-1,
    show_default=True,
    help="Number of the class attention block, from 0; a negative number counts from the end.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="SHARE",
    help="In each map, show only the largest cells that together make up SHARE of the map's sum. For example, 0.6 is "
    "60 percent. By default, all cells are shown.",
)
@click.option(
    "--resize",
    type=click.IntRange(min=1),
    metavar="N",
    help="Resize each image first, so that its short side has N pixels.",
)
@click.option("--arrays", is_flag=True, help="Also write the maps as arrays, to NAME.npz.")
@click.option("--tiff", is_flag=True, help="Also write the maps to NAME.tif.")
@click.option("--xca", is_flag=True, help="Also draw the covariance of the channels and the temperatures of XCA.")
@click.option(
    "--no-figures",
    is_flag=True,
    help="Do not write NAME-attention.png. This is faster, for example for frames of a video.",
)
@click.option("--parquet", is_flag=True, help="Write a folder of Parquet parts instead, for many images; see --resume.")
@bulk_options(part_size=128)
@exif_option
@full_size_options("Process images of any size in bounded memory. A picture shows a large image as a small copy.")
@compute_options(batch_size=None)
@one_voice()
def attention(
    inputs: tuple[str, ...],
    bulk: BulkOptions,
    parquet: bool,
    ignore_exif: bool,
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
    """Computes, draws and writes attention maps; returns the exit status."""
    from xcit.cli.full_size import full_size_of
    from xcit.cli.predict import packaged_images
    from xcit.cli.results import status_of
    from xcit.draw.attention import draw_temperatures, require_matplotlib
    from xcit.explain import channel_attention, class_attention_each
    from xcit.inference.reading import Unreadable, readable
    from xcit.progress import progress_bar

    if large.full_size and (xca or resize):
        raise XCiTError(f"give --full-size, or {'--xca' if xca else '--resize'}, not both")
    if parquet:
        for name, is_given in (
            ("--xca", xca), ("--tiff", tiff), ("--arrays", arrays), ("--threshold", threshold is not None)
        ):  # fmt: skip
            if is_given:
                raise XCiTError(f"give --parquet or {name}, not both: --parquet writes only complete maps")
        check_no_full_size(large.full_size, str(out))
        need_packages("Parquet", "pyarrow")
        images = open_words(inputs or tuple(map(str, packaged_images())), bulk, ignore_exif=ignore_exif)
        computer = placed(device)
        loaded = load_model(model, weights, computer, how)
        settings = {"block": block, "resize": resize, "device": computer, "dtype": checked_dtype(dtype)}
        return _write_parts(out, images, loaded, bulk, settings)
    check_small(bulk, "give --parquet")
    require_matplotlib()
    paths = images_outside(inputs, out) if inputs else packaged_images()
    places = [out / name for name in result_names(paths)]
    make_folder(out)
    computer, precision = placed(device), checked_dtype(dtype)
    loaded = load_model(model, weights, computer, how)
    network = loaded.fuse().to(precision)  # fused once, not for each image
    channels: ChannelAttentionMaps | None = None
    num_unreadable = 0
    with (
        full_size_of(large, num_images=len(paths)) as whole,
        progress_bar("attention", 1 if large.full_size else len(paths)) as bar,
    ):
        results = class_attention_each(
            stored_or_upright(paths, ignore_exif=ignore_exif),
            network,
            block=block,
            resize=resize,
            device=computer,
            dtype=precision,
            full_size=whole,
        )
        for place, result in zip(places, results, strict=True):
            if isinstance(result, Unreadable):
                num_unreadable += 1
                click.echo(f"xcit: {result.reason}", err=True)
            else:
                if xca:  # `result.image` is used, so that the file is not read a second time
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
    say_model(loaded, model, weights)
    return status_of(num_unreadable, len(paths))


def _write_parts(out: Path, images: "Inputs", network: "XCiT", bulk: BulkOptions, settings: dict[str, Any]) -> int:
    from functools import partial

    import pyarrow as pa

    from xcit.explain import class_attention_each
    from xcit.inference.classify import prepare_model

    def row(maps: "ClassAttentionMaps") -> dict[str, Any]:
        height, width = maps.image.shape[:2]
        return {
            "height": height,
            "width": width,
            "block": maps.block,
            "patch_size": maps.patch_size,
            "heads": maps.heads.ravel(),
            "heads_shape": list(maps.heads.shape),
            "class_token": maps.class_token,
        }

    numbers = {
        "heads": pa.list_(pa.float32()),
        "heads_shape": pa.list_(pa.int32()),
        "class_token": pa.list_(pa.float32()),
    }
    columns = [
        *(pa.field(name, pa.int32()) for name in ("height", "width", "block", "patch_size")),
        *(pa.field(name, kind) for name, kind in numbers.items()),
    ]
    fused, _, _ = prepare_model(network, settings["device"], settings["dtype"])  # fused once, not for each part
    results = partial(class_attention_each, model=fused, **settings)
    return write_bulk(out, images, network, bulk, columns=columns, results=results, row=row)


def _write(
    place: Path,
    maps: "ClassAttentionMaps",
    channels: "ChannelAttentionMaps | None",
    *,
    figure: bool,
    arrays: bool,
    threshold: float | None,
) -> None:
    """Writes the files of one image. The path of each file is `place` plus an ending."""
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
