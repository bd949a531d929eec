"""Functions for commands that process many images. The functions open the inputs, and write folders of Parquet parts.

Such a folder also contains a manifest, a JSON file that lists the finished parts (see `inference/bulk.py`).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xcit.cli.answering import say_model
from xcit.cli.files import say_passed_by
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
    *("out", "json_path", "csv_path", "parquet", "no_pictures", "no_overlays", "no_figures", "threshold"),
    *("device", "batch_size", "resume"),
)
"""Command-line parameters that are not recorded in the manifest's entry `arguments`.

These parameters do not affect the rows of the result, or another entry of the manifest records them.
"""


@dataclass(frozen=True, kw_only=True)
class BulkOptions:
    """The values of the options that `bulk_options` adds."""

    split: "Split"
    part_size: int
    resume: bool


def bulk_options(part_size: int) -> Callable[[Function], Function]:
    """Returns a decorator that adds --split, --part-size and --resume to a command.

    The command gets the values of these options as one argument: `bulk`, a `BulkOptions`.

    Args:
        part_size: default of --part-size.
    """
    return grouped(
        BulkOptions,
        "bulk",
        click.option(
            "--split",
            type=click.Choice(["train", "val"]),
            default="val",
            show_default=True,
            help="Split to use, if INPUT is a data set.",
        ),
        click.option(
            "--part-size",
            type=click.IntRange(min=1),
            default=part_size,
            show_default=True,
            metavar="N",
            help="Images per Parquet part; all results of a part stay in memory until the part is written.",
        ),
        click.option(
            "--resume", is_flag=True, help="Continue an unfinished folder of Parquet parts, or begin a new one."
        ),
    )


def parts_folder(out: str) -> Path | None:
    """Returns the path of --out if it is a folder for Parquet parts, or None if it is a file.

    --out is a folder if it ends with a slash, has no suffix, or contains a manifest.
    """
    from xcit.inference.bulk import MANIFEST

    path = Path(out)
    is_folder = out.endswith(("/", os.sep)) or not path.suffix or (path / MANIFEST).is_file()
    return path if is_folder else None


def num_processes() -> int:
    """Returns the number of processes that torchrun started, or 1 without torchrun."""
    if "WORLD_SIZE" not in os.environ:
        return 1
    from xcit.training.engine.distribution import num_started_processes

    return num_started_processes()


def check_small(bulk: BulkOptions, way: str) -> None:
    """Checks that a command that writes no Parquet parts has no --resume and runs in one process.

    Args:
        bulk: the options.
        way: the end of the error message, which says how to get Parquet parts.

    Raises:
        XCiTError: if --resume is given, or there are several processes.
    """
    if bulk.resume:
        raise XCiTError(f"--resume is only for Parquet parts: {way}")
    if num_processes() > 1:
        raise XCiTError(f"several processes can write only Parquet parts: {way}")


def check_no_full_size(full_size: bool, out: str) -> None:
    """Checks that a command that writes Parquet parts has no --full-size.

    Raises:
        XCiTError: if `full_size` is true.
    """
    if full_size:
        raise XCiTError(f"{out}: --full-size and Parquet parts can't be combined: leave one of them out")


def own_device(name: str | None) -> str | None:
    """Returns the device name for this process. If torchrun started several processes, each process has its own GPU."""
    if num_processes() == 1 or name not in (None, "cuda"):
        return name
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else name


def open_words(inputs: tuple[str, ...], bulk: BulkOptions, *, ignore_exif: bool) -> "Inputs":
    """Opens the inputs of the command line (see `open_inputs`), and prints how many files were left out."""
    from xcit.data.inputs import open_inputs

    found = open_inputs(inputs, split=bulk.split, unit_size=bulk.part_size)
    say_passed_by(found.passed_by)
    return found.as_stored() if ignore_exif else found


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
    """Computes and writes the rows of this process, and returns the exit status.

    The process that finishes last prints a summary.

    Args:
        folder: folder for the Parquet parts.
        inputs: the images of all processes.
        network: the model. The digest of its weights is written to the manifest.
        bulk: the options.
        columns: the columns after `file` and `error`, as pyarrow fields.
        results: a function that yields one result for each image, in order.
        row: a function that returns the values of the columns for a result.
    """
    from xcit.cli.results import status_of
    from xcit.inference.bulk import Job, Progress, Share, write_parts
    from xcit.inference.reading import Unreadable
    from xcit.progress import progress_bar
    from xcit.weights.files import digest

    context = click.get_current_context()
    verb, values = context.info_name or "", context.params
    job = Job(
        verb=verb,
        model=values["weights"] or values["model"] or "packaged",
        digest=digest(network.state_dict()),
        arguments={name: value for name, value in values.items() if name not in _NO_ARGUMENTS and _is_given(value)},
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
                click.echo(f"xcit: {folder}: the finished parts are kept; --resume continues the run", err=True)
            raise
    if not (manifest["complete"] and worked):  # the process that finishes last prints the summary
        return 0
    parts = manifest["parts"].values()
    num_images, num_unreadable = (sum(part[what] for part in parts) for what in ("images", "unreadable"))
    click.echo(f"{folder}: {num_images - num_unreadable} images in {len(parts)} Parquet parts")
    say_model(network, values["model"], values["weights"])
    status = status_of(num_unreadable, num_images)
    # torchrun treats any status other than 0 as a failure: it ends the other processes, and may restart all of them.
    return status if share.world_size == 1 else 0


def _is_given(value: Any) -> bool:
    """Returns whether the user gave an option. The value of an option that was not given is None or False.

    Only options that were given are recorded. So if a later version of the command has more options, it can still
    resume the results of an earlier version.
    """
    return value is not None and value is not False


def placed(device: str | None) -> "torch.device":
    """Returns the device of this process, by default a GPU if there is one, else the CPU."""
    from xcit.inference.reading import default_device

    return checked_device(own_device(device)) or default_device()
