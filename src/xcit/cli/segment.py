"""`xcit segment`: segments images, and writes label maps."""

import io
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xcit.cli.answering import say_model
from xcit.cli.bulk import BulkOptions, bulk_options, placed, write_bulk
from xcit.cli.dense import inputs_and_places, load_dense
from xcit.cli.files import beside
from xcit.cli.options import (
    CommandWithNumbers,
    FileOptions,
    checked_dtype,
    compute_options,
    exif_option,
    file_options,
    sliding_window,
    window_options,
)
from xcit.cli.processes import one_voice
from xcit.writing import make_folder, whole_file

if TYPE_CHECKING:
    from xcit.inference.segment import Segmentation

_HELP = """Give each pixel of images a class: files, folders (searched through) or patterns.

If an image can't be read, it is named with the reason, the others are processed, and the exit status is 1.

\b
For each image the folder --out gets
  NAME-labels.png   the class of each pixel, as a palette image of its size
  NAME-overlay.png  the classes' colours over the image, with a legend
and once areas.json: each image's share of each class. Images of several
folders keep their folders below --out.

--slide moves a window over an image and averages where windows overlap. With --full-size the image is not scaled, and
memory does not grow with it: for maps and panoramas of any size.

For many images --parquet writes a folder of Parquet parts instead. If it is killed, --resume continues it. INPUT may
also be a list, a URL, tar shards, FILE.parquet or a data set, as in xcit predict. With several GPUs the images are
divided among them: torchrun --nproc-per-node 8 -m xcit segment INPUT... --out DIR --parquet
"""


@click.command(cls=CommandWithNumbers, help=_HELP)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--model", required=True, metavar="NAME|FILE", help="A segmenter, see xcit list --task.")
@click.option("--weights", metavar="FILE|URL", help="Weights to load into the model of that name.")
@file_options
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the results.")
@click.option("--parquet", is_flag=True, help="Write Parquet parts instead; for many images, see --resume.")
@exif_option
@bulk_options(part_size=128)
@window_options("Go over each image by a window.")
@click.option("--full-size", is_flag=True, help="Keep images at their own size.")
@click.option("--keep-size", is_flag=True, hidden=True)
@click.option("--no-overlays", is_flag=True, help="Do not write NAME-overlay.png.")
@compute_options(batch_size=None)
@one_voice()
def segment(
    inputs: tuple[str, ...],
    bulk: BulkOptions,
    ignore_exif: bool,
    parquet: bool,
    model: str,
    weights: str | None,
    how: FileOptions,
    out: Path,
    slide: bool,
    window: int,
    stride: int | None,
    full_size: bool,
    keep_size: bool,
    no_overlays: bool,
    device: str | None,
    dtype: str,
) -> int:
    """Segments and writes; returns the exit status."""
    from xcit.cli.progress import progress_bar
    from xcit.cli.results import status_of
    from xcit.inference.reading import Unreadable
    from xcit.inference.segment import prepare_segmenter, segment_each
    from xcit.zoo import check_task

    over = sliding_window(slide, window, stride)
    check_task(model, "semantic-segmentation")
    images, paths, places = inputs_and_places(inputs, out, parquet, bulk, ignore_exif=ignore_exif)
    computer, precision = placed(device), checked_dtype(dtype)
    built = load_dense(model, weights, how)
    network, _, _ = prepare_segmenter(built, computer, precision, what=model)
    whole = full_size or keep_size
    each = partial(segment_each, model=network, window=over, full_size=whole, device=computer, dtype=precision)
    if images is not None:
        return write_bulk(out, images, built, bulk, columns=_columns(), results=each, row=_row)
    results = each(paths)
    areas: dict[str, dict[str, float]] = {}
    with progress_bar("segment", len(paths)) as bar:
        for place, result in zip(places, results, strict=True):
            if isinstance(result, Unreadable):
                click.echo(f"xcit: {result.reason}", err=True)
            else:
                areas[result.source] = result.areas()
                make_folder(place.parent)
                with whole_file(beside(place, "-labels.png")) as part:
                    result.picture().save(part, format="PNG")
                if not no_overlays:
                    with whole_file(beside(place, "-overlay.png")) as part:
                        result.overlay().save(part, format="PNG")
            bar.advance(1)
    if areas or not (out / "areas.json").exists():  # keep an earlier result if no image could be read
        with whole_file(out / "areas.json") as part:
            part.write_text(json.dumps(areas, indent=1) + "\n", encoding="utf-8")
    click.echo(f"{out}: label maps of {len(areas)} images")
    say_model(built, model, weights)
    return status_of(len(paths) - len(areas), len(paths))


def _columns() -> list[Any]:
    import pyarrow as pa

    share = pa.struct([("name", pa.string()), ("share", pa.float64())])
    sizes = [pa.field(name, pa.int32()) for name in ("height", "width")]
    return [*sizes, pa.field("labels", pa.binary()), pa.field("areas", pa.list_(share))]


def _row(result: "Segmentation") -> dict[str, Any]:
    """Returns a result's columns; the label map is a palette PNG."""
    buffer = io.BytesIO()
    result.picture().save(buffer, format="PNG")
    height, width = result.labels.shape
    areas = [{"name": name, "share": share} for name, share in result.areas().items()]
    return {"height": height, "width": width, "labels": buffer.getvalue(), "areas": areas}
