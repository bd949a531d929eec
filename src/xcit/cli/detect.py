"""`xcit detect`: detects objects in images, and writes pictures and JSON in COCO's format."""

import json
from functools import partial
from importlib.util import find_spec
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
    device_option,
    exif_option,
    file_options,
    full_size_options,
)
from xcit.cli.processes import one_voice
from xcit.errors import XCiTError
from xcit.extras import install_hint, need_packages
from xcit.writing import make_folder, whole_file

if TYPE_CHECKING:
    from xcit.inference.detect import DetectedObjects
    from xcit.models.detection.mask_rcnn import MaskRCNN

_HELP = """Find objects in images: files, folders (searched recursively) or patterns.

If an image can't be read, its name and the reason are printed, the other images are processed, and the exit status is
1.

\b
For each image, the folder --out gets
  NAME-detections.png   the image with masks, boxes, class names and scores

The folder also gets detections.json: images, categories and annotations of all images in COCO's format. Each annotation
has a score, and its mask is COCO's compressed RLE.

An image is resized to the largest size at which its short side is at most --short-side, and its long side is at most
--long-side.

With --full-size, an image of any size is processed at its own size, in stripes. --memory limits the memory. The objects
are the same as without stripes: no object is cut at the edge of a stripe. The picture then shows a small copy of a
large image. If the image is georeferenced or a slide, NAME-detections.geojson contains the masks as polygons: in
map coordinates, or for a slide in the pixel coordinates that QuPath imports.

For many images, --parquet writes a folder of Parquet parts instead of these files. If the command is killed, --resume
continues it. With --parquet, INPUT may also be a list, a URL, tar shards, FILE.parquet or a data set, as in xcit
predict. With several GPUs, the images are divided among them:
torchrun --nproc-per-node 8 -m xcit detect INPUT... --out DIR --parquet
"""


@click.command(cls=CommandWithNumbers, help=_HELP)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--model",
    required=True,
    metavar="NAME|FILE",
    help="A detector: a name (see xcit list --task object-detection) or a file.",
)
@click.option("--weights", metavar="FILE|URL", help="A file or URL with weights for --model.")
@file_options
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the results.")
@click.option("--parquet", is_flag=True, help="Write a folder of Parquet parts instead, for many images; see --resume.")
@exif_option
@bulk_options(part_size=128)
@click.option(
    "--score",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Smallest score of an object in the results.",
)
@click.option(
    "--short-side",
    type=click.IntRange(min=1),
    help="Largest short side of a resized image, in pixels; by default the model's own.",
)
@click.option(
    "--long-side",
    type=click.IntRange(min=1),
    help="Largest long side of a resized image, in pixels; by default --short-side times the "
    "model's ratio of long side to short side.",
)
@click.option(
    "--max-objects",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Largest number of objects per image. If it is above 100, ten proposals per object are computed.",
)
@full_size_options("Process images of any size at their own size, in stripes.")
@click.option("--no-pictures", is_flag=True, help="Do not write NAME-detections.png.")
@device_option
@one_voice()
def detect(
    inputs: tuple[str, ...],
    bulk: BulkOptions,
    ignore_exif: bool,
    parquet: bool,
    model: str,
    weights: str | None,
    how: FileOptions,
    out: Path,
    score: float,
    short_side: int | None,
    long_side: int | None,
    max_objects: int,
    large: FullSizeOptions,
    no_pictures: bool,
    device: str | None,
) -> int:
    """Detects objects, writes the results, and returns the exit status."""
    from xcit.cli.full_size import full_size_of
    from xcit.cli.results import status_of
    from xcit.inference.detect import detect_each, prepare_detector
    from xcit.inference.reading import Unreadable
    from xcit.progress import progress_bar
    from xcit.zoo import check_task

    if large.full_size and (short_side or long_side):
        raise XCiTError("give --full-size, or --short-side and --long-side, not both")
    need_packages("xcit detect", "faster_coco_eval")
    check_task(model, "object-detection")
    images, paths, places = inputs_and_places(inputs, out, parquet, bulk, ignore_exif=ignore_exif)
    computer = placed(device)
    built = load_dense(model, weights, how)
    network = prepare_detector(built, computer, what=model)
    sides = _sides(network, short_side, long_side)
    content = _Annotations(network)
    num_images = len(paths) if images is None else images.num_images or 2
    with full_size_of(large, num_images=num_images) as whole:
        each = partial(
            detect_each,
            model=network,
            min_score=score,
            sides=sides,
            max_objects=max_objects,
            full_size=whole,
            device=computer,
        )
        if images is not None:
            return write_bulk(out, images, built, bulk, columns=_columns(), results=each, row=content.row)
        with progress_bar("detect", 1 if large.full_size else len(paths)) as bar:
            for place, result in zip(places, each(paths), strict=True):
                if isinstance(result, Unreadable):
                    click.echo(f"xcit: {result.reason}", err=True)
                else:
                    content.add(result)
                    _write(result, place, pictures=not no_pictures)
                    if large.full_size:  # the next image may take hours, so save the results so far
                        content.write(out)
                bar.advance(1)
    found = content.content
    if found["images"] or not (out / "detections.json").exists():  # keep an earlier result if no image could be read
        content.write(out)
    click.echo(f"{out}: {len(found['annotations'])} objects in {len(found['images'])} images")
    say_model(built, model, weights)
    return status_of(len(paths) - len(found["images"]), len(paths))


def _write(result: "DetectedObjects", place: Path, *, pictures: bool) -> None:
    """Writes the files of one image. The path of each file is `place` plus an ending."""
    if pictures or result.is_placed:
        make_folder(place.parent)
    if result.is_placed and find_spec("rasterio") is None:
        click.echo(
            f"xcit: {result.source}: polygons are not written, because rasterio is not installed "
            f"({install_hint('rasterio')})",
            err=True,
        )
    elif result.is_placed:
        result.write_geojson(beside(place, "-detections.geojson"))
    if pictures:
        with whole_file(beside(place, "-detections.png")) as file:
            result.picture().save(file, format="PNG")


def _sides(network: "MaskRCNN", short_side: int | None, long_side: int | None) -> tuple[int, int] | None:
    if short_side is None and long_side is None:
        return None
    own = network.config.short_side, network.config.long_side
    if short_side is None:
        return min(own[0], long_side or 0), long_side or 0
    return short_side, long_side or round(short_side * own[1] / own[0])


def _columns() -> list[Any]:
    import pyarrow as pa

    found = pa.struct(
        [
            ("category_id", pa.int32()),
            ("name", pa.string()),
            ("score", pa.float32()),
            ("bbox", pa.list_(pa.float32())),
            ("counts", pa.string()),
        ]
    )
    return [pa.field("height", pa.int32()), pa.field("width", pa.int32()), pa.field("objects", pa.list_(found))]


class _Annotations:
    """Collects detections in COCO's format, for detections.json and for Parquet parts."""

    def __init__(self, network: "MaskRCNN") -> None:
        info, count = network.info, network.num_classes
        names = info.class_names if info is not None and info.class_names else [str(i) for i in range(1, count + 1)]
        self._ids = info.category_ids if info is not None and info.category_ids else tuple(range(1, count + 1))
        categories = [{"id": number, "name": name} for number, name in zip(self._ids, names, strict=True)]
        self.content: dict[str, list[dict[str, Any]]] = {"images": [], "categories": categories, "annotations": []}

    def row(self, result: "DetectedObjects") -> dict[str, Any]:
        """Converts a result to the columns of a Parquet part; `counts` is COCO's compressed RLE of a mask."""
        height, width = result.size
        objects = [
            {
                "category_id": self._ids[one.label - 1],
                "name": one.name,
                "score": one.score,
                "bbox": one.box,
                "counts": one.mask["counts"],
            }
            for one in result.objects
        ]
        return {"height": height, "width": width, "objects": objects}

    def add(self, result: "DetectedObjects") -> None:
        """Adds an image and its objects."""
        from xcit.data.coco_masks import mask_area

        images, annotations = self.content["images"], self.content["annotations"]
        height, width = result.size
        images.append({"id": len(images) + 1, "file_name": result.source, "height": height, "width": width})
        for one in result.objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": self._ids[one.label - 1],
                    "bbox": [round(value, 3) for value in one.box],
                    "area": mask_area(one.mask, (height, width)),
                    "segmentation": one.mask,
                    "score": round(one.score, 6),
                    "iscrowd": 0,
                }
            )

    def write(self, folder: Path) -> None:
        """Writes the detections collected so far to detections.json in a folder."""
        with whole_file(folder / "detections.json") as file:
            file.write_text(json.dumps(self.content) + "\n", encoding="utf-8")
