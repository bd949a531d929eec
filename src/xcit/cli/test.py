"""`xcit test`: a checkpoint measured on labelled images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xcit.cli.options import checked_device, checked_dtype, compute_options, sliding_window, window_options

if TYPE_CHECKING:
    from xcit.segmenting import SlidingWindow
    from xcit.tasks.detection import DetectionConfig
    from xcit.tasks.segmentation import SegmentationConfig

PROTOCOLS = ("mmpretrain", "official")


@click.command()
@click.argument("config")
@click.argument("checkpoint")
@click.option(
    "--data",
    required=True,
    help="A folder (ImageNet's val, images by class, scenes with label maps, or COCO), or a known name.",
)
@click.option(
    "--protocol", type=click.Choice(PROTOCOLS), help="How ImageNet's images are resized; mmpretrain's if left out."
)
@window_options("Of segmentation: go over each image by a window, not whole.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results; runs/test/CONFIG if left out.")
@click.option("--workers", type=click.IntRange(min=0), default=2, show_default=True, help="Processes that read images.")
@compute_options(batch_size=64)
def test(
    config: str,
    checkpoint: str,
    data: str,
    protocol: str | None,
    slide: bool,
    window: int,
    stride: int | None,
    out: Path | None,
    workers: int,
    batch_size: int,
    device: str | None,
    dtype: str,
) -> int:
    """Measure CHECKPOINT (a file, a URL or a name) by the recipe CONFIG.

    CONFIG is a recipe's name, or the path of mmpretrain's config of that name. Prints top-1, top-5 and loss; writes
    report.json, confusion.csv and confusion.png. Of segmentation: mIoU, mAcc and aAcc; report.json, iou.csv and
    confusion.csv. Of detection: COCO's twelve numbers of boxes and of masks; report.json.
    """
    from typing import cast

    from xcit.cli.progress import progress_bar
    from xcit.evaluation import test as measure
    from xcit.evaluation import write_report
    from xcit.recipes import get_recipe
    from xcit.tasks.detection import DetectionConfig
    from xcit.tasks.segmentation import SegmentationConfig
    from xcit.zoo.records import Protocol

    recipe = get_recipe(config)
    folder = out or _folder(config)
    if isinstance(recipe, DetectionConfig):
        return _test_detections(recipe, config, checkpoint, data, folder, workers, device)
    if isinstance(recipe, SegmentationConfig):
        over = sliding_window(slide, window, stride)
        return _test_scenes(recipe, config, checkpoint, data, over, folder, workers, device, dtype)
    with progress_bar("test") as bar:
        result = measure(
            config,
            checkpoint,
            data,
            protocol=cast("Protocol | None", protocol),
            batch_size=batch_size,
            num_workers=workers,
            device=checked_device(device),
            dtype=checked_dtype(dtype),
            started=bar.set_total,
            report=bar.advance,
        )
    report = result.report
    for reason in report.unreadable:
        click.echo(f"xcit: {reason}", err=True)
    click.echo(f"images {report.num_images}")
    click.echo(f"top-1  {report.top1:.2f}%")
    click.echo(f"top-5  {report.top5:.2f}%")
    click.echo(f"loss   {report.loss:.4f}")
    written = write_report(result, folder, config=config, checkpoint=checkpoint, data=data)
    for path in written:
        click.echo(f"wrote  {path}")
    if written[-1].suffix != ".png":
        click.echo("no picture of the confusion matrix: it needs matplotlib (pip install 'xcit[train]')", err=True)
    return _status(report.unreadable, "images")


def _status(unreadable: Sequence[str], kind: str) -> int:
    """The exit status; says how many of the data could not be read, if any."""
    from xcit.cli import SOME_FAILED

    if not unreadable:
        return 0
    click.echo(f"xcit: {len(unreadable)} {kind} could not be read and were not measured", err=True)
    return SOME_FAILED


def _folder(config: str) -> Path:
    path = Path(config)
    # A run's own config.yaml is told apart by its folder.
    return Path("runs") / "test" / (path.parent.name if path.name == "config.yaml" else path.stem)


def _test_scenes(
    recipe: "SegmentationConfig",
    config: str,
    checkpoint: str,
    data: str,
    window: "SlidingWindow | None",
    folder: Path,
    workers: int,
    device: str | None,
    dtype: str,
) -> int:
    from xcit.cli.progress import progress_bar
    from xcit.scene_evaluation import test_scenes, write_scene_report

    with progress_bar("test") as bar:
        result = test_scenes(
            recipe,
            checkpoint,
            data,
            window=window,
            num_workers=workers,
            device=checked_device(device),
            dtype=checked_dtype(dtype),
            started=bar.set_total,
            report=bar.advance,
        )
    report = result.report
    for reason in report.unreadable:
        click.echo(f"xcit: {reason}", err=True)
    click.echo(f"images {report.num_images}")
    for name, value in report.figures().items():
        click.echo(f"{name:6s} {value:.2f}%")
    for path in write_scene_report(result, folder, config=config, checkpoint=checkpoint, data=data):
        click.echo(f"wrote  {path}")
    return _status(report.unreadable, "scenes")


def _test_detections(
    recipe: "DetectionConfig",
    config: str,
    checkpoint: str,
    data: str,
    folder: Path,
    workers: int,
    device: str | None,
) -> int:
    from xcit.cli.progress import progress_bar
    from xcit.detection_evaluation import test_detections, write_detection_report
    from xcit.tasks.average_precision import DESCRIPTIONS

    with progress_bar("test") as bar:
        result = test_detections(
            recipe,
            checkpoint,
            data,
            num_workers=workers,
            device=checked_device(device),
            started=bar.set_total,
            report=bar.advance,
        )
    report = result.report
    for line in (*result.problems, *report.unreadable):
        click.echo(f"xcit: {line}", err=True)
    click.echo(f"images {report.num_images}")
    for kind, values in (("boxes", report.precision.boxes), ("masks", report.precision.masks)):
        click.echo(kind)
        for description, value in zip(DESCRIPTIONS, values, strict=True):
            click.echo(f" {description} = {value / 100:.3f}")
    for path in write_detection_report(result, folder, config=config, checkpoint=checkpoint, data=data):
        click.echo(f"wrote  {path}")
    return _status(report.unreadable, "images")
