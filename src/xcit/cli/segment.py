"""`xcit segment`: segments images, and writes label maps."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
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
    FullSizeOptions,
    checked_dtype,
    compute_options,
    exif_option,
    file_options,
    full_size_options,
    sliding_window,
    window_options,
)
from xcit.cli.processes import one_voice
from xcit.errors import XCiTError
from xcit.extras import need_packages
from xcit.writing import make_folder, whole_file

if TYPE_CHECKING:
    from xcit.inference.reading import Unreadable
    from xcit.inference.segment import Segmentation
    from xcit.inference.segment_full_size import LargeSegmentation

_HELP = """Assign a class to each pixel of images: files, folders (searched recursively) or patterns.

If an image can't be read, its name and the reason are printed, the other images are processed, and the exit status is
1.

\b
For each image, the folder --out gets
  NAME-labels.png   the class of each pixel, as a palette image
  NAME-overlay.png  the classes' colours over the image, with a legend

The folder also gets areas.json: for each image, the share of pixels of each class. If the images are in several
folders, --out gets the same subfolders.

--slide moves a window over each image, and averages the logits where windows overlap. With --slide --full-size, the
image is not resized, and the memory for the logits does not grow with the image.

\b
--full-size without --slide processes images of any size in stripes, in
bounded memory. The labels are the same as without stripes. The files are:
  NAME-labels.tif   the class of each pixel: a tiled TIFF with a palette and
                    overviews, georeferenced if the image is georeferenced;
                    255 means unlabelled
  NAME-overlay.png  the classes' colours over a small copy of the image

In this mode, georeferenced images, slides and many other formats are read row by row, and --memory limits the memory.
If a run that uses scratch files is killed, the same command continues the run.

--polygons also writes NAME-labels.geojson: the outlines of all areas, in map coordinates, or in the pixel coordinates
that QuPath reads.

For many images, --parquet writes a folder of Parquet parts instead of these files. If the command is killed, --resume
continues it. With --parquet, INPUT may also be a list, a URL, tar shards, FILE.parquet or a data set, as in xcit
predict. With several GPUs, the images are divided among them:
torchrun --nproc-per-node 8 -m xcit segment INPUT... --out DIR --parquet
"""


@click.command(cls=CommandWithNumbers, help=_HELP)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--model",
    required=True,
    metavar="NAME|FILE",
    help="A segmenter: a name (see xcit list --task semantic-segmentation) or a file.",
)
@click.option("--weights", metavar="FILE|URL", help="A file or URL with weights for --model.")
@file_options
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the results.")
@click.option("--parquet", is_flag=True, help="Write a folder of Parquet parts instead, for many images; see --resume.")
@exif_option
@bulk_options(part_size=128)
@window_options("Segment each image with a sliding window.")
@full_size_options("Process images of any size at their own size, in stripes.")
@click.option("--keep-size", is_flag=True, hidden=True)
@click.option("--polygons", is_flag=True, help="Also write the outlines of all areas to NAME-labels.geojson.")
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
    large: FullSizeOptions,
    keep_size: bool,
    polygons: bool,
    no_overlays: bool,
    device: str | None,
    dtype: str,
) -> int:
    """Segments images, writes the results, and returns the exit status."""
    from xcit.cli.full_size import full_size_of
    from xcit.cli.results import status_of
    from xcit.inference.segment import prepare_segmenter, segment_each
    from xcit.inference.segment_full_size import segment_large_each
    from xcit.progress import progress_bar
    from xcit.zoo import check_task

    over = sliding_window(slide, window, stride)
    if over is not None:
        _check_no_stripes(large)
    large = replace(large, full_size=large.full_size or keep_size)
    if polygons or (large.full_size and not slide and not parquet):
        need_packages("writing label maps as TIFF and polygons", "rasterio")
    check_task(model, "semantic-segmentation")
    images, paths, places = inputs_and_places(inputs, out, parquet, bulk, ignore_exif=ignore_exif)
    if parquet and polygons:
        raise XCiTError("give --polygons or --parquet, not both: --parquet writes no other files")
    computer, precision = placed(device), checked_dtype(dtype)
    built = load_dense(model, weights, how)
    network, info, _ = prepare_segmenter(built, computer, precision, what=model)
    num_images = len(paths) if images is None else images.num_images or 2
    files = _Files(overlays=not no_overlays, polygons=polygons)
    with full_size_of(large, num_images=num_images) as whole:
        each = partial(segment_each, model=network, window=over, full_size=whole, device=computer, dtype=precision)
        if images is not None:
            return write_bulk(out, images, built, bulk, columns=_columns(), results=each, row=_row)
        if whole is not None and over is None:
            files.write_all(segment_large_each(paths, network, info, whole), places)
        else:
            with progress_bar("segment", len(paths)) as bar:
                files.write_all(each(paths), places, bar.advance)
    if files.areas or not (out / "areas.json").exists():  # keep an earlier result if no image could be read
        with whole_file(out / "areas.json") as file:
            file.write_text(json.dumps(files.areas, indent=1) + "\n", encoding="utf-8")
    click.echo(f"{out}: label maps of {len(files.areas)} images")
    say_model(built, model, weights)
    return status_of(len(paths) - len(files.areas), len(paths))


def _check_no_stripes(large: FullSizeOptions) -> None:
    """Checks that a command with --slide has no option for images in stripes, such as --memory.

    --full-size itself is allowed: with --slide, the images are then not resized.

    Raises:
        XCiTError: if an option for images in stripes was given.
    """
    for name in large.given():
        raise XCiTError(f"{name} needs images in stripes, but --slide uses a window: leave out {name} or --slide")


class _Files:
    """Writes the files of results. `areas` contains, for each image, the share of pixels of each class."""

    def __init__(self, *, overlays: bool, polygons: bool) -> None:
        self._overlays, self._polygons = overlays, polygons
        self.areas: dict[str, dict[str, float]] = {}

    def write_all(
        self,
        results: "Iterable[Segmentation | LargeSegmentation | Unreadable]",
        places: Sequence[Path],
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Writes the files of each result as soon as the result is computed."""
        from xcit.inference.reading import Unreadable

        for place, result in zip(places, results, strict=True):
            if isinstance(result, Unreadable):
                click.echo(f"xcit: {result.reason}", err=True)
            else:
                self.areas[result.source] = result.areas()
                self._write(result, place)
            advance(1)

    def _write(self, result: "Segmentation | LargeSegmentation", place: Path) -> None:
        from xcit.inference.segment import Segmentation

        make_folder(place.parent)
        if isinstance(result, Segmentation):
            with whole_file(beside(place, "-labels.png")) as part:
                result.picture().save(part, format="PNG")
        else:
            result.write_tiff(beside(place, "-labels.tif"))
        if self._overlays:
            with whole_file(beside(place, "-overlay.png")) as part:
                result.overlay().save(part, format="PNG")
        if self._polygons:
            result.write_polygons(beside(place, "-labels.geojson"))


def _columns() -> list[Any]:
    import pyarrow as pa

    share = pa.struct([("name", pa.string()), ("share", pa.float64())])
    sizes = [pa.field(name, pa.int32()) for name in ("height", "width")]
    return [*sizes, pa.field("labels", pa.binary()), pa.field("areas", pa.list_(share))]


def _row(result: "Segmentation") -> dict[str, Any]:
    """Converts a result to the columns of a Parquet part; the label map is stored as a palette PNG."""
    buffer = io.BytesIO()
    result.picture().save(buffer, format="PNG")
    height, width = result.labels.shape
    areas = [{"name": name, "share": share} for name, share in result.areas().items()]
    return {"height": height, "width": width, "labels": buffer.getvalue(), "areas": areas}
