"""`xcit make-data`: creates data sets for experiments."""

from pathlib import Path

import click

KINDS = ("fashion-scenes",)
TASKS = ("segmentation", "detection")


@click.command("make-data")
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--task", type=click.Choice(TASKS), required=True, help="Task for which the data set is created.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="New folder for the data set."
)
@click.option(
    "--train",
    "num_train",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="Number of training scenes.",
)
@click.option(
    "--val", "num_val", type=click.IntRange(min=1), default=200, show_default=True, help="Number of validation scenes."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the random scenes: the same seed gives the same data set.",
)
def make_data(kind: str, task: str, out: Path, num_train: int, num_val: int, seed: int) -> None:
    """Create a data set with exact labels in the folder --out.

    fashion-scenes: each image (scene) shows several overlapping garments of Fashion-MNIST on a textured background.
    Training scenes use Fashion-MNIST's training images, and validation scenes use its test images. For segmentation,
    the folder gets images, label maps and classes.txt. For detection, it gets images, and boxes and masks in COCO's
    format. `xcit train --data` can read both kinds of data set.
    """
    from xcit.data.detection_scenes import write_detection_scenes
    from xcit.data.fashion_scenes import write_segmentation_scenes
    from xcit.progress import progress_bar

    write = write_detection_scenes if task == "detection" else write_segmentation_scenes
    with progress_bar(kind, num_train + num_val, "scenes") as bar:
        write(out, num_train=num_train, num_val=num_val, seed=seed, report=bar.advance)
    click.echo(f"{out}: {num_train} scenes to train on, {num_val} to measure on")
