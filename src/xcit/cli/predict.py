"""`xcit predict`: classifies images."""

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


@click.command(cls=CommandWithNumbers)
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@model_options
@file_options
@click.option("--topk", type=click.IntRange(min=1), default=5, show_default=True, help="Number of classes per image.")
@click.option("--json", "json_path", metavar="FILE", help="Write JSON to FILE; - means standard output.")
@click.option("--csv", "csv_path", metavar="FILE", help="Write CSV to FILE; - means standard output.")
@full_size_options("Process images of any size at their own size, without resizing or cropping.")
@click.option("--out", metavar="DIR", help="Write a folder of Parquet parts, for many images; see --resume.")
@exif_option
@bulk_options(part_size=1024)
@compute_options(batch_size=32)
@one_voice()
def predict(
    inputs: tuple[str, ...],
    bulk: BulkOptions,
    ignore_exif: bool,
    out: str | None,
    model: str | None,
    weights: str | None,
    how: FileOptions,
    topk: int,
    json_path: str | None,
    csv_path: str | None,
    batch_size: int,
    device: str | None,
    dtype: str,
    large: FullSizeOptions,
) -> int:
    """Classify images: files, folders (searched recursively) or patterns such as 'photos/**/*.jpg'.

    Without INPUT, the packaged images are classified. If an image can't be read, its name and the reason are printed,
    the other images are processed, and the exit status is 1. With --full-size, an image of any size is processed at its
    own size in bounded memory. TIFF and other formats for large images (docs/any-resolution.md) are then read row by
    row.

    INPUT may also be @FILE (a list with one path or URL per line), a URL (https, s3, gs, ...), tar shards (wds:PATTERN,
    FILE.tar), FILE.parquet, or a data set (fashion-mnist, cifar10, cifar100, hf:NAME).

    For many images, --out DIR writes a folder of Parquet parts. If the command is killed, --resume continues it. With
    several GPUs, the images are divided among them: torchrun --nproc-per-node 8 -m xcit predict INPUT... --out DIR
    """
    from xcit.cli.full_size import full_size_of
    from xcit.cli.results import open_results, status_of
    from xcit.inference.classify import predict_each
    from xcit.inference.reading import Unreadable
    from xcit.progress import progress_bar

    images = open_words(inputs or tuple(map(str, packaged_images())), bulk, ignore_exif=ignore_exif)
    if out is not None:
        if json_path or csv_path:
            raise XCiTError("give --out, or --json or --csv, not both")
        folder = parts_folder(out)
        if folder is None:
            raise XCiTError(f"{out}: --out must be a folder for Parquet parts: give --out {out}/, --json or --csv")
        check_no_full_size(large.full_size, out)
        computer = placed(device)
        network = load_model(model, weights, computer, how)
        settings = {"topk": topk, "batch_size": batch_size, "device": computer, "dtype": checked_dtype(dtype)}
        return _predict_parts(folder, images, network, bulk, settings)
    check_small(bulk, "give --out DIR")
    place = checked_device(device)
    network = load_model(model, weights, place, how)
    num_images = num_unreadable = 0
    with (
        open_results(json_path, csv_path) as results,
        full_size_of(large, num_images=images.num_images or 2) as whole,
        progress_bar("predict", 1 if large.full_size else images.num_images) as bar,
    ):
        for result in predict_each(
            images.images(),
            network,
            topk=topk,
            batch_size=batch_size,
            device=place,
            dtype=checked_dtype(dtype),
            full_size=whole,
        ):
            num_images += 1
            num_unreadable += isinstance(result, Unreadable)
            results.add(result)
            bar.advance(1)
    say_model(network, model, weights)
    return status_of(num_unreadable, num_images)


def _predict_parts(folder: Path, images: "Inputs", network: "XCiT", bulk: BulkOptions, settings: dict[str, Any]) -> int:
    from functools import partial

    from xcit.inference.classify import Prediction, predict_each, prepare_model

    need_packages("Parquet", "pyarrow")
    import pyarrow as pa

    def row(result: Prediction) -> dict[str, Any]:
        return {"classes": [{"index": one.index, "name": one.name, "score": one.score} for one in result.classes]}

    scored = pa.struct([("index", pa.int32()), ("name", pa.string()), ("score", pa.float32())])
    fused, _, _ = prepare_model(network, settings["device"], settings["dtype"])  # fused once, not for each part
    return write_bulk(
        folder,
        images,
        network,
        bulk,
        columns=[pa.field("classes", pa.list_(scored))],
        results=partial(predict_each, model=fused, **settings),
        row=row,
    )


def packaged_images() -> list[Path]:
    """Returns the paths of the packaged images, which are from Fashion-MNIST's test split.

    The name of each file is the true class of the image.
    """
    return sorted((Path(__file__).parents[1] / "zoo" / "packaged" / "images").glob("*.png"))
