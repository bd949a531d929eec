"""`xcit segment`: label maps of images as files."""

import json
from pathlib import Path

import click

from xcit.cli.files import beside, images_outside, make_folder, result_names, whole_file
from xcit.cli.options import (
    CommandWithNumbers,
    FileOptions,
    checked_device,
    checked_dtype,
    compute_options,
    file_options,
    sliding_window,
    window_options,
)

_HELP = """Give each pixel of images a class: files, folders (searched through) or patterns.

An image that can't be read is named with the reason, the others go on, and the exit status is 1.

\b
For each image the folder --out gets
  NAME-labels.png   the class of each pixel, as a palette image of its size
  NAME-overlay.png  the classes' colours over the image, with a legend
and once areas.json: each image's share of each class. Images of several
folders keep their folders below --out.

--slide goes over an image by a window and averages where windows overlap; with --keep-size the image is not scaled, and
memory does not grow with it: for maps and panoramas of any size.
"""


@click.command(cls=CommandWithNumbers, help=_HELP)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--model", required=True, metavar="NAME|FILE", help="A segmenter, see xcit list --task.")
@click.option("--weights", metavar="FILE|URL", help="Weights to load into the model of that name.")
@file_options
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the results.")
@window_options("Go over each image by a window.")
@click.option("--keep-size", is_flag=True, help="Take images at their own size, not at the model's.")
@click.option("--no-overlays", is_flag=True, help="Write no NAME-overlay.png.")
@compute_options(batch_size=None)
def segment(
    inputs: tuple[str, ...],
    model: str,
    weights: str | None,
    how: FileOptions,
    out: Path,
    slide: bool,
    window: int,
    stride: int | None,
    keep_size: bool,
    no_overlays: bool,
    device: str | None,
    dtype: str,
) -> int:
    """Segments and writes; gives the exit status."""
    from xcit.cli.progress import download_bar, progress_bar
    from xcit.cli.results import status_of
    from xcit.inference.reading import Unreadable, default_device
    from xcit.inference.segment import prepare_segmenter, segment_each
    from xcit.zoo import check_task, get_model

    over = sliding_window(slide, window, stride)
    check_task(model, "semantic-segmentation")
    paths = images_outside(inputs, out)
    places = [out / name for name in result_names(paths)]
    make_folder(out)
    computer, precision = checked_device(device) or default_device(), checked_dtype(dtype)
    with download_bar() as downloaded:
        built = get_model(
            model, pretrained=weights or True, stem_strides=how.stem_strides, key=how.key, progress=downloaded
        )
    how.apply(built, weights or model)
    network, _, _ = prepare_segmenter(built, computer, precision, what=model)
    results = segment_each(paths, network, window=over, keep_size=keep_size, device=computer, dtype=precision)
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
    with whole_file(out / "areas.json") as part:
        part.write_text(json.dumps(areas, indent=1) + "\n", encoding="utf-8")
    click.echo(f"{out}: label maps of {len(areas)} images")
    return status_of(len(paths) - len(areas), len(paths))
