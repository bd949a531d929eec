"""Downloads every published checkpoint, measures it by its own protocol, and compares it with the published figures.

    python benchmarks/reproduce.py --imagenet DIR --coco DIR --ade20k DIR [--cifar] [--linear]
    torchrun --nproc-per-node 8 benchmarks/reproduce.py ...  # one process per GPU, each with its own models

It measures

- 42 ImageNet classifiers, by two published protocols;
- 4 DINO backbones, by nearest neighbours among all training images; with --linear also by linear probes of 100 epochs;
- 16 segmenters and 8 detectors;
- the accuracy of the robust classifiers on images without attack (robust classifiers for CIFAR only with --cifar).

DIR is the folder of a data set in the structure of its download (see docs/training.md, docs/segmentation.md and
docs/detection.md). The CIFAR images are read from the folder XCIT_DATA, or downloaded to it.

All data sets are checked before a checkpoint is downloaded. Each result is saved in --out immediately. After a stop,
the same command continues, and repeats the measurements that failed. The page docs/reproduced.md is written after each
result, and marks differences of more than 0.1 percentage points. The checkpoints (18 GB) stay in the folder XCIT_CACHE.
The exit status is 1 if a measurement failed or a figure differs, else 0. With torchrun it is always 0.
"""

import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import click
from filelock import FileLock, Timeout
from reproduction.page import DIFFERS, page
from reproduction.plan import Measurement, plan

from xcit.cli import SOME_FAILED, run
from xcit.cli.options import checked_device
from xcit.errors import XCiTError, printable_line
from xcit.machine import processor
from xcit.progress import progress_bar
from xcit.writing import make_folder, whole_file

PAGE = Path(__file__).parents[1] / "docs" / "reproduced.md"


@click.command(help=__doc__)
@click.option("--imagenet", metavar="DIR", help="ImageNet-1k: folder with val; with train too for nearest neighbours.")
@click.option("--coco", metavar="DIR", help="COCO 2017: folder with val2017 and annotations.")
@click.option("--ade20k", metavar="DIR", help="The folder ADEChallengeData2016, or the folder that contains it.")
@click.option("--cifar", is_flag=True, help="Measure the robust models of CIFAR-10 and CIFAR-100.")
@click.option("--linear", is_flag=True, help="Train linear probes of the DINO backbones too.")
@click.option("--only", "patterns", multiple=True, metavar="PATTERN", help="A model or a pattern; can be repeated.")
@click.option("--out", type=click.Path(path_type=Path), default="runs/reproduced", show_default=True)
@click.option("--page", "page_path", type=click.Path(path_type=Path), default=PAGE, help="Default: docs/reproduced.md.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--workers", type=click.IntRange(min=0), default=4, show_default=True, help="Processes that read images.")
@click.option("--device", help="cpu, cuda, ...; by default this process's GPU if there is one.")
def command(
    imagenet: str | None,
    coco: str | None,
    ade20k: str | None,
    cifar: bool,
    linear: bool,
    patterns: tuple[str, ...],
    out: Path,
    page_path: Path,
    batch_size: int,
    workers: int,
    device: str | None,
) -> int:
    """Makes all measurements that have no result yet; returns the exit status."""
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    # Each process measures its own models, and must not behave as a member of a process group.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"):
        os.environ.pop(name, None)
    folders = {"ImageNet-1k": imagenet, "COCO": coco, "ADE20K": ade20k}
    folders |= {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100"} if cifar else {}
    data = {dataset: folder for dataset, folder in folders.items() if folder is not None}
    if not data:
        raise click.UsageError("give a data set: --imagenet, --coco, --ade20k or --cifar")
    measurements = _wanted(patterns)
    todo = [
        one for one in measurements if one.dataset in data and not one.impossible and (linear or one.method != "linear")
    ]
    if not todo:
        raise XCiTError(
            "none of these models can be measured on these data sets: `xcit list` shows each model's data set"
        )

    from reproduction.data_sets import check_data

    for dataset in dict.fromkeys(one.dataset for one in todo):
        num_images = check_data(dataset, data[dataset])
        click.echo(f"{dataset}: {num_images:,} images in {data[dataset]}", err=True)
    make_folder(out)
    place = device or (f"cuda:{local_rank}" if _has_gpu() else "cpu")
    first = rank * len(todo) // world_size  # so that processes rarely reach the same measurement
    status, since = 0, time.time()
    for one in [*todo[first:], *todo[:first]]:
        status |= _measure(one, data[one.dataset], out, since, place, batch_size, workers)
        text = _write_page(page_path, measurements, out)
    # If one process ends with a status other than 0, torchrun stops the others.
    return SOME_FAILED if world_size == 1 and (status or DIFFERS in text) else 0


def _wanted(patterns: Sequence[str]) -> list[Measurement]:
    from xcit.zoo import find_record, list_models

    if not patterns:
        return plan()
    names = dict.fromkeys(
        name
        for pattern in patterns
        for name in (list_models(pattern) if set("*?[") & set(pattern) else [find_record(pattern).name])
    )
    if not names:
        raise XCiTError(f"no model matches {' or '.join(patterns)}; `xcit list` shows all")
    return plan([find_record(name) for name in names])


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _measure(one: Measurement, data: str, out: Path, since: float, device: str, batch_size: int, workers: int) -> int:
    """Makes a measurement and writes its result; returns 1 if it fails, else 0.

    The measurement is skipped if it is already done (see `is_done`), or if another process is making it now.
    """
    import torch
    from reproduction.measuring import How, Measured, measure
    from reproduction.results import Result, is_done

    where = data if data in ("cifar10", "cifar100") else str(Path(data).resolve())
    try:
        with FileLock(out / f"{one.key}.lock", timeout=0):
            if is_done(out, one, where, since):
                return 0
            place = checked_device(device)
            assert place is not None
            failure, measured = "", Measured(figures={}, num_images=0, num_unreadable=0)
            try:
                with progress_bar(one.key) as bar:
                    how = How(
                        device=place,
                        batch_size=batch_size,
                        num_workers=workers,
                        probes=out / "linear",
                        started=bar.set_total,
                        report=bar.advance,
                    )
                    measured = measure(one, data, how)
            except (XCiTError, torch.OutOfMemoryError) as error:
                failure = printable_line(str(error))
            Result(
                key=one.key,
                data=where,
                figures=measured.figures,
                num_images=measured.num_images,
                num_unreadable=measured.num_unreadable,
                machine=torch.cuda.get_device_name(place) if place.type == "cuda" else processor(),
                versions=(
                    f"Python {platform.python_version()}",
                    *(f"{name} {version(name)}" for name in ("xcit", "torch")),
                ),
                note=measured.note,
                failure=failure,
            ).write(out)
    except Timeout:  # another process is making this measurement
        return 0
    if failure:
        click.echo(f"{one.record.name}: {failure}", err=True)
        return 1
    figures = ", ".join(
        f"{metric} {measured.figures[metric]:.2f} (published {value:.2f})" for metric, value in one.published.items()
    )
    click.echo(f"{one.record.name}, {one.method} by {one.protocol}: {figures}")
    return 0


def _write_page(path: Path, measurements: Sequence[Measurement], out: Path) -> str:
    from reproduction.results import read_results

    with FileLock(out / "page.lock"):
        text = page(measurements, read_results(out, measurements), "python benchmarks/reproduce.py")
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    run(command, "reproduce.py")
