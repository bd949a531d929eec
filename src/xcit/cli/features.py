"""`xcit features`: writes features of images to a file or a folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xcit.cli.answering import say_model
from xcit.cli.bulk import (
    BulkOptions,
    bulk_options,
    check_no_full_size,
    check_small,
    open_words,
    parts_folder,
    placed,
    write_bulk,
)
from xcit.cli.files import say_passed_by
from xcit.cli.options import (
    CommandWithNumbers,
    FileOptions,
    FullSizeOptions,
    checked_device,
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

if TYPE_CHECKING:
    from xcit.data.inputs import Inputs
    from xcit.models import XCiT

OUT_TYPES = ("cls_token", "featmap", "avg_featmap", "raw")


def block_numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    """Parses block numbers such as `3,7,11` to a tuple. This function is a callback for click options."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of block numbers such as -1 or 3,7,11") from None


@click.command(cls=CommandWithNumbers)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--out",
    required=True,
    metavar="FILE|DIR",
    help="FILE.npz, FILE.parquet or FILE.safetensors; FILE.npy or FILE.zarr for one map with --full-size; or DIR for "
    "Parquet parts, for many images (see --resume).",
)
@model_options
@file_options
@click.option(
    "--out-type",
    type=click.Choice(OUT_TYPES),
    show_default="the feature that the model pools: cls_token or avg_featmap",
    help="Class token, map of the patch tokens, mean of the map, or all tokens (raw).",
)
@click.option(
    "--layers",
    callback=block_numbers,
    default="-1",
    show_default=True,
    help="Numbers of the blocks, such as -1 or 3,7,11; a negative number counts from the end.",
)
@full_size_options("Process images of any size at their own size, without resizing or cropping.")
@exif_option
@bulk_options(part_size=1024)
@compute_options(batch_size=32)
@one_voice()
def features(
    inputs: tuple[str, ...],
    bulk: BulkOptions,
    ignore_exif: bool,
    out: str,
    model: str | None,
    weights: str | None,
    how: FileOptions,
    out_type: str | None,
    layers: tuple[int, ...],
    batch_size: int,
    device: str | None,
    dtype: str,
    large: FullSizeOptions,
) -> int:
    """Write features of images (files, folders or patterns) to a file, together with the names of the images.

    If an image can't be read, its name and the reason are printed, the other images are processed, and the exit status
    is 1.

    With --full-size, an image of any size is processed at its own size in bounded memory. With --out-type featmap, the
    map of one image can be written to FILE.npy or FILE.zarr, as float32 (H, W, D). The position of the map's cells in
    the image is written to FILE.json, or to the attributes of the Zarr array. A picture of the map's principal
    components is written to FILE.png.

    INPUT may also be @FILE (a list with one path or URL per line), a URL (https, s3, gs, ...), tar shards (wds:PATTERN,
    FILE.tar), FILE.parquet, or a data set (fashion-mnist, cifar10, cifar100, hf:NAME).

    For many images, --out DIR (without suffix, or with a slash at the end) writes a folder of Parquet parts. If the
    command is killed, --resume continues it. With several GPUs, the images are divided among them:
    torchrun --nproc-per-node 8 -m xcit features INPUT... --out DIR
    """
    from typing import cast

    from xcit.cli.full_size import full_size_of
    from xcit.cli.results import status_of
    from xcit.data.features import open_feature_file
    from xcit.inference.classify import extract_features_each, prepare_model
    from xcit.inference.full_size import write_feature_map
    from xcit.inference.reading import Unreadable
    from xcit.models.xcit import OutType
    from xcit.progress import progress_bar

    if Path(out).suffix in (".npy", ".zarr"):
        from xcit.data.inputs import as_stored
        from xcit.images.find import find_images
        from xcit.images.passed_by import PassedBy

        path = Path(out)
        if not (large.full_size and out_type == "featmap" and len(layers) == 1):
            raise XCiTError(
                f"{out}: a {path.suffix} file contains one map: give --full-size, --out-type featmap and one block"
            )
        passed_by = PassedBy()
        paths = find_images(inputs, passed_by)
        say_passed_by(passed_by)
        if len(paths) != 1:
            raise XCiTError(f"{out}: a {path.suffix} file contains the map of one image, not of {len(paths)}")
        place = checked_device(device)
        loaded = load_model(model, weights, place, how)
        network, _, _ = prepare_model(loaded, place, checked_dtype(dtype))
        with full_size_of(large, num_images=1) as whole:
            assert whole is not None
            image = as_stored(paths[0]) if ignore_exif else paths[0]
            shape = write_feature_map(image, network, path, layer=layers[0], full_size=whole)
        click.echo(f"{out}: float32 {list(shape)}")
        say_model(loaded, model, weights)
        return 0
    folder = parts_folder(out)
    if folder is not None:
        check_no_full_size(large.full_size, out)
        images = open_words(inputs, bulk, ignore_exif=ignore_exif)
        computer = placed(device)
        network = load_model(model, weights, computer, how)
        settings = {"out_type": out_type, "layers": layers, "batch_size": batch_size, "device": computer}
        return _write_parts(folder, images, network, bulk, settings | {"dtype": checked_dtype(dtype)})
    check_small(bulk, "give a folder, as in --out features")
    with open_feature_file(Path(out)) as file:
        images = open_words(inputs, bulk, ignore_exif=ignore_exif)
        place = checked_device(device)
        network = load_model(model, weights, place, how)
        num_images = num_unreadable = 0
        with (
            full_size_of(large, num_images=images.num_images or 2) as whole,
            progress_bar("features", 1 if large.full_size else images.num_images) as bar,
        ):
            for result in extract_features_each(
                images.images(),
                network,
                out_type=cast(OutType | None, out_type),
                layers=layers,
                batch_size=batch_size,
                device=place,
                dtype=checked_dtype(dtype),
                full_size=whole,
            ):
                num_images += 1
                if isinstance(result, Unreadable):
                    num_unreadable += 1
                    click.echo(f"xcit: {result.reason}", err=True)
                else:
                    file.add(result.source, result.layers)
                bar.advance(1)
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in file.shapes.items())
    click.echo(f"{out}: {num_images - num_unreadable} images; {shapes}")
    say_model(network, model, weights)
    return status_of(num_unreadable, num_images)


def _write_parts(folder: Path, images: "Inputs", network: "XCiT", bulk: BulkOptions, settings: dict[str, Any]) -> int:
    from functools import partial

    from xcit.inference.classify import Features, extract_features_each, prepare_model

    need_packages("Parquet", "pyarrow")
    import pyarrow as pa

    def row(result: Features) -> dict[str, Any]:
        arrays = {f"block_{index}": array.ravel() for index, array in result.layers.items()}
        return arrays | {f"block_{index}_shape": list(array.shape) for index, array in result.layers.items()}

    num_blocks = network.config.depth + network.config.cls_depth
    blocks = sorted({index % num_blocks for index in settings["layers"]})
    columns = [
        field
        for index in blocks
        for field in (
            pa.field(f"block_{index}", pa.list_(pa.float32())),
            pa.field(f"block_{index}_shape", pa.list_(pa.int32())),
        )
    ]
    fused, _, _ = prepare_model(network, settings["device"], settings["dtype"])  # fused once, not for each part
    results = partial(extract_features_each, model=fused, **settings)
    return write_bulk(folder, images, network, bulk, columns=columns, results=results, row=row)
