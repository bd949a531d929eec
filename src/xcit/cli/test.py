"""`xcit test`: measures a checkpoint on labelled images."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xcit.cli.lines import say
from xcit.cli.options import (
    CommandWithNumbers,
    FileOptions,
    checked_device,
    checked_dtype,
    class_map_option,
    compute_options,
    file_options,
    file_with_key,
    holdout_option,
    sliding_window,
    window_options,
)

if TYPE_CHECKING:
    from xcit.streaming import Budget

PROTOCOLS = ("mmpretrain", "official")


@click.command(cls=CommandWithNumbers)
@click.argument("config")
@click.argument("checkpoint")
@click.option(
    "--data",
    required=True,
    help="A folder (ImageNet's val, images by class, images with label maps, or COCO), or a known name such as "
    "fashion-mnist.",
)
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    help="Published preprocessing to use for ImageNet's images; by default mmpretrain's.",
)
@file_options
@window_options("For segmentation: use a sliding window instead of the whole image.")
@holdout_option
@class_map_option
@click.option(
    "--ignore",
    type=click.IntRange(0, 255),
    metavar="LABEL",
    help="For segmentation: label of pixels that are not counted.",
)
@click.option(
    "--ignore-exif",
    is_flag=True,
    help="Boxes and label maps refer to the stored pixels, not to the pixels after the EXIF rotation.",
)
@click.option(
    "--full-size", is_flag=True, help="For segmentation and detection: process images at their own size, in stripes."
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="With --full-size: limit of the memory in addition to the loaded model, such as 4GB.",
)
@click.option("--scratch", metavar="DIR", help="With --full-size: folder for tokens that do not fit into memory.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results; by default runs/test/CONFIG.")
@click.option(
    "--workers", type=click.IntRange(min=0), default=2, show_default=True, help="Number of processes that read images."
)
@compute_options(batch_size=64)
def test(
    config: str,
    checkpoint: str,
    data: str,
    protocol: str | None,
    how: FileOptions,
    slide: bool,
    window: int,
    stride: int | None,
    holdout: float | None,
    class_map: str | None,
    ignore: int | None,
    ignore_exif: bool,
    full_size: bool,
    memory: str | None,
    scratch: str | None,
    out: Path | None,
    workers: int,
    batch_size: int,
    device: str | None,
    dtype: str,
) -> int:
    """Measure CHECKPOINT (a file, a URL or a name) on labelled images, with the task and preprocessing of CONFIG.

    CONFIG is the name of a recipe, the path of an mmpretrain config with a recipe's name as its file name, or a
    run's config.yaml. For classification, the command prints top-1, top-5 and loss, and writes report.json,
    confusion.csv and confusion.png. For segmentation, it prints mIoU, mAcc and aAcc, and writes report.json, iou.csv
    and confusion.csv. For detection, it prints COCO's twelve metrics for boxes and for masks, and writes report.json.
    """
    from typing import cast

    from xcit.cli import SOME_FAILED
    from xcit.extras import install_hint
    from xcit.measure.classification import ClassificationResult
    from xcit.measure.test import test as measure
    from xcit.zoo.records import Protocol

    result = measure(
        config,
        file_with_key(checkpoint, how.key),
        data,
        protocol=cast("Protocol | None", protocol),
        mean=how.mean,
        std=how.std,
        size=how.size,
        stem_strides=how.stem_strides,
        window=sliding_window(slide, window, stride),
        holdout=holdout,
        class_map=class_map,
        ignore_index=ignore,
        ignore_exif=ignore_exif,
        full_size=full_size,
        memory=_budget(full_size, memory, scratch),
        batch_size=batch_size,
        num_workers=workers,
        device=checked_device(device),
        dtype=checked_dtype(dtype),
    )
    for problem in result.problems:
        click.echo(f"xcit: {problem}", err=True)
    for line in (f"images {result.report.num_images}", *result.lines()):
        click.echo(line)
    written = result.write(out or _folder(config), config=config, checkpoint=checkpoint, data=data)
    for path in written:
        click.echo(f"wrote  {path}")
    if isinstance(result, ClassificationResult) and written[-1].suffix != ".png":
        click.echo(
            f"the confusion matrix was not drawn, because matplotlib is not installed ({install_hint('matplotlib')})",
            err=True,
        )
    say(f"xcit: model {result.model}", err=True, indent=2)
    num_unreadable = len(result.report.unreadable)
    if not num_unreadable:
        return 0
    click.echo(f"xcit: {num_unreadable} images could not be read and were not measured", err=True)
    return SOME_FAILED


def _budget(full_size: bool, memory: str | None, scratch: str | None) -> "Budget | None":
    """Returns the memory limit and the scratch folder for --full-size, or None without --full-size.

    Raises:
        XCiTError: if --memory or --scratch is given without --full-size.
    """
    from xcit.errors import XCiTError
    from xcit.streaming import Budget, as_budget

    if full_size:
        return Budget(memory=as_budget(memory).memory, scratch=None if scratch is None else Path(scratch))
    for name, value in (("--memory", memory), ("--scratch", scratch)):
        if value is not None:
            raise XCiTError(f"{name} is for images at their own size: give --full-size too")
    return None


def _folder(config: str) -> Path:
    path = Path(config)
    # The configs of all runs have the same name, config.yaml, so the name of the run's folder is used.
    return Path("runs") / "test" / (path.parent.name if path.name == "config.yaml" else path.stem)
