"""What verbs share that go over many images: inputs of every kind, and results as a folder of Parquet parts."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xcit.cli.options import Function, checked_device, grouped
from xcit.cli.processes import is_main
from xcit.errors import XCiTError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from xcit.data.inputs import Inputs
    from xcit.data.named import Split

_NO_ARGUMENTS = (
    *("inputs", "split", "model", "weights", "part_size"),
    *("out", "json_path", "csv_path", "parquet", "no_pictures", "no_overlays"),
    *("device", "batch_size", "resume"),
)
"""Parameters that rows do not depend on, or that the manifest has elsewhere."""


@dataclass(frozen=True, kw_only=True)
class BulkOptions:
    """What the options of `bulk_options` say."""

    split: "Split"
    part_size: int
    resume: bool


def bulk_options(part_size: int) -> Callable[[Function], Function]:
    """Adds --split, --resume and --part-size with this default, which come as one argument: `bulk`, a `BulkOptions`."""
    return grouped(
        BulkOptions,
        "bulk",
        click.option(
            "--split",
            type=click.Choice(["train", "val"]),
            default="val",
            show_default=True,
            help="Which images of a data set.",
        ),
        click.option(
            "--part-size",
            type=click.IntRange(min=1),
            default=part_size,
            show_default=True,
            metavar="N",
            help="Images of a Parquet part, which are in memory together.",
        ),
        click.option("--resume", is_flag=True, help="Go on with the Parquet parts that are there, or begin."),
    )


def parts_folder(out: str) -> Path | None:
    """The folder of Parquet parts that --out names, by a slash at its end or no suffix; none where it names a file."""
    from xcit.inference.bulk import MANIFEST

    path = Path(out)
    is_folder = out.endswith(("/", os.sep)) or not path.suffix or (path / MANIFEST).is_file()
    return path if is_folder else None


def num_processes() -> int:
    """How many processes torchrun started, 1 without it."""
    if "WORLD_SIZE" not in os.environ:
        return 1
    from xcit.training.engine.distribution import num_started_processes

    return num_started_processes()


def check_small(bulk: BulkOptions, way: str) -> None:
    """Checks that nothing is asked for that only Parquet parts give; `way` says how to ask for these.

    Raises:
        XCiTError: if something is.
    """
    if bulk.resume:
        raise XCiTError(f"--resume goes on with Parquet parts alone: {way}")
    if num_processes() > 1:
        raise XCiTError(f"several processes write one result as Parquet parts alone: {way}")


def check_resized(full_size: bool, out: str) -> None:
    """Checks that images of any size are not asked for as Parquet parts.

    Raises:
        XCiTError: if they are.
    """
    if full_size:
        raise XCiTError(f"{out}: --full-size has no Parquet parts: give a file, an image at a time")


def own_device(name: str | None) -> str | None:
    """The device of this process: of several on a machine with GPUs each has its own."""
    if num_processes() == 1 or name not in (None, "cuda"):
        return name
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else name


def open_words(inputs: tuple[str, ...], bulk: BulkOptions) -> "Inputs":
    """The images that are meant; see `open_inputs`."""
    from xcit.data.inputs import open_inputs

    return open_inputs(inputs, split=bulk.split, unit_size=bulk.part_size)


def write_bulk(
    folder: Path,
    inputs: "Inputs",
    network: "nn.Module",
    bulk: BulkOptions,
    *,
    columns: Any,
    results: Callable[[Iterable[Any]], Iterator[Any]],
    row: Callable[[Any], Mapping[str, Any]],
) -> int:
    """Writes the rows of this process, says what there is when all are done, and gives the exit status.

    Args:
        folder: for the parts.
        inputs: the images.
        network: whose digest the manifest gets.
        bulk: the options.
        columns: a row's columns after `file` and `error`, as pyarrow has fields.
        results: gives one result an image, in order.
        row: a result's columns.
    """
    from xcit.cli.progress import progress_bar
    from xcit.cli.results import status_of
    from xcit.inference.bulk import Job, Progress, Share, write_parts
    from xcit.inference.reading import Unreadable
    from xcit.weights.files import digest

    context = click.get_current_context()
    verb, values = context.info_name or "", context.params
    job = Job(
        verb=verb,
        model=values["weights"] or values["model"] or "packaged",
        digest=digest(network.state_dict()),
        arguments={name: value for name, value in values.items() if name not in _NO_ARGUMENTS and value is not None},
        columns=columns,
        results=results,
        row=row,
    )
    worked = is_main()
    share = Share(rank=int(os.environ.get("RANK", "0")) if num_processes() > 1 else 0, world_size=num_processes())
    own = [unit.num_images for unit in inputs.units[share.rank :: share.world_size]]
    total = sum(count or 0 for count in own) if None not in own else None
    with progress_bar(verb, total) as bar:

        def result_done(result: Any) -> None:
            nonlocal worked
            worked = True
            if isinstance(result, Unreadable):
                click.echo(f"xcit: {result.reason}", err=True)
            bar.advance(1)

        try:
            manifest = write_parts(
                folder,
                inputs,
                job,
                images_a_part=bulk.part_size,
                resume=bulk.resume,
                share=share,
                progress=Progress(result=result_done, skipped=bar.advance),
            )
        except KeyboardInterrupt:
            if is_main():
                click.echo(f"xcit: {folder}: the parts that are done are kept; --resume goes on", err=True)
            raise
    if not (manifest["complete"] and worked):  # another process is at work, or was the last, and will tell
        return 0
    parts = manifest["parts"].values()
    num_images, num_unreadable = (sum(part[what] for part in parts) for what in ("images", "unreadable"))
    click.echo(f"{folder}: {num_images - num_unreadable} images in {len(parts)} Parquet parts")
    status = status_of(num_unreadable, num_images)
    # torchrun takes any other status for the failure of a process, ends the others, and may start all again.
    return status if share.world_size == 1 else 0


def placed(device: str | None) -> "torch.device":
    """Where this process computes."""
    from xcit.inference.reading import default_device

    return checked_device(own_device(device)) or default_device()
