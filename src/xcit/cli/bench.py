"""`xcit bench` and `xcit complexity`: measure speed and memory, and show how the cost grows with the image size."""

import sys
from typing import TYPE_CHECKING, Any

import click

from xcit.cli.options import checked_device, compute_options, file_with_key, key_option
from xcit.errors import escaped
from xcit.terminal import for_drawing

if TYPE_CHECKING:
    import torch

    from xcit.measure.speed import SpeedConfig, SpeedReport


def whole_numbers(what: str, example: str) -> Any:
    """Returns a callback for a click option. It converts text to a tuple of whole numbers above 0.

    For example, `1,32` becomes (1, 32). Duplicates are removed.

    Args:
        what: what the numbers are, for the error message.
        example: an example of the text, for the error message.
    """

    def convert(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
        try:
            numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
        except ValueError:
            numbers = ()
        if not numbers or min(numbers) < 1:
            raise click.BadParameter(f"{text!r} is no list of {what} such as {example}")
        return numbers

    return convert


image_sizes = whole_numbers("image sizes", "224 or 224,384,1024")

_threads = click.option(
    "--threads", type=click.IntRange(min=1), help="Number of CPU threads; by default torch's own number."
)


_BENCH_HELP = """Measure the time and peak memory of MODEL on this machine.

MODEL is an architecture, a name, a weights file or an exported file.

An architecture or a name gets random weights, so that nothing is downloaded; the time is the same as with trained
weights. The time of a detector depends on the number of detections, so give a weights file for a detector. The model
is fused for inference, as in xcit predict. The images are random, square and not resized. Peak memory is the memory
that a forward pass of a batch needs in addition to the model and the input. On the CPU, each peak is measured in a new
process.

\b
Example:
  xcit bench small-12-p8 --sizes 224,384,1024 --batch-sizes 1,8
"""


@click.command(help=_BENCH_HELP)
@click.argument("model")
@key_option
@click.option(
    "--sizes", callback=image_sizes, default="224,384", show_default=True, help="Sides of the images in pixels."
)
@click.option(
    "--batch-sizes",
    callback=whole_numbers("batch sizes", "1 or 1,32"),
    default="1",
    show_default=True,
    help="Images per forward pass.",
)
@_threads
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Number of times that each size is measured.",
)
@click.option("--no-memory", is_flag=True, help="Do not measure peak memory.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@compute_options(batch_size=None)
def bench(
    model: str,
    key: str | None,
    sizes: tuple[int, ...],
    batch_sizes: tuple[int, ...],
    threads: int | None,
    rounds: int,
    no_memory: bool,
    as_json: bool,
    device: str | None,
    dtype: str,
) -> None:
    """Measures a model, and prints a table or JSON."""
    import json
    from typing import cast

    from xcit.measure.clock import DType, headings, three_digits
    from xcit.measure.speed import SpeedConfig

    config = SpeedConfig(
        sizes=sizes,
        batch_sizes=batch_sizes,
        dtype=cast(DType, dtype),
        device=_device_name(checked_device(device)),
        threads=threads,
        rounds=rounds,
        memory=not no_memory,
    )
    report = _measure(file_with_key(model, key), config)
    if as_json:
        from xcit.config import to_dict

        click.echo(json.dumps(to_dict(report), indent=1))
        return
    click.echo("\n".join(headings(report.machine, f"inference, {dtype}", rounds)))
    has_memory = any(speed.peak_memory is not None for speed in report.speeds)
    headers = ("px", "batch", "ms/image", "images/s", *(("peak MB",) if has_memory else ()))
    rows = []
    for speed in report.speeds:
        cells = [str(speed.image_size), str(speed.batch_size)]
        cells += [three_digits(speed.milliseconds), three_digits(speed.images_per_second)]
        if has_memory:
            cells.append("" if speed.peak_memory is None else three_digits(speed.peak_memory / 1e6))
        rows.append(tuple(cells))
    print_table(model, headers, [tuple(rows)])


def _device_name(device: "torch.device | None") -> str | None:
    return None if device is None else str(device)


def _measure(model: str, config: "SpeedConfig") -> "SpeedReport":
    from xcit.measure.speed import measure_speed
    from xcit.progress import progress_bar

    with progress_bar("measure", unit="runs", redraws_alone=False) as bar:
        return measure_speed(
            model,
            config,
            started=bar.set_total,
            advance=bar.advance,
            announce=lambda line: click.echo(f"xcit: {line}", err=True),
        )


def print_table(title: str, headers: tuple[str, ...], groups: list[tuple[tuple[str, ...], ...]]) -> None:
    """Prints a table, with a line between the groups of rows."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, file=for_drawing(sys.stdout))
    if not console.is_terminal:
        console = Console(highlight=False, width=200)  # a file or pipe has no width
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in headers:
        table.add_column(name, justify="left" if name == "contender" else "right")
    for group in groups:
        for row in group:
            table.add_row(*map(escaped, row))
        table.add_section()
    console.print(table, markup=False)


_COMPLEXITY_HELP = """Show how the cost of a model grows with the image size.

NAME is an architecture or the name of a model. The column FLOPs contains the number of multiply-accumulates without the
head, counted as for the published figures. The column torch FLOPs contains the count of torch's own counter, which
counts each multiply-accumulate as 2. The last row contains the exponents of power laws, which are fitted to the cost as
a function of the number of tokens. An exponent of 1 means that the cost grows linearly.

\b
Example:
  xcit complexity small-12-p8 --sizes 224,384,1024 --measure
"""

_COLUMNS = {
    "image_size": "px",
    "num_tokens": "tokens",
    "flops": "FLOPs",
    "torch_flops": "torch FLOPs",
    "milliseconds": "ms/image",
}
"""Maps the names in the JSON output to the headings of the table's columns."""


@click.command(help=_COMPLEXITY_HELP)
@click.argument("name")
@click.option(
    "--sizes",
    callback=image_sizes,
    default="224,384,512,1024",
    show_default=True,
    help="Sides of the images in pixels.",
)
@click.option(
    "--measure", is_flag=True, help="Also measure the time of the fused model, in float32 and with batch size 1."
)
@_threads
@click.option(
    "--device", help="Device for --measure: cpu, cuda, cuda:1, ...; by default a GPU if there is one, else cpu."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def complexity(
    name: str, sizes: tuple[int, ...], measure: bool, threads: int | None, device: str | None, as_json: bool
) -> None:
    """Counts FLOPs, measures times with --measure, and prints a table or JSON."""
    import json
    from collections.abc import Sequence

    from xcit.measure.clock import headings, three_digits
    from xcit.measure.complexity import complexity as count
    from xcit.measure.complexity import fitted_exponent
    from xcit.measure.speed import SpeedConfig
    from xcit.zoo.architectures import ARCHITECTURES
    from xcit.zoo.names import find_architecture

    place = checked_device(device)
    architecture = find_architecture(name)
    counts = [count(ARCHITECTURES[architecture], size) for size in sizes]
    tokens = [counted.num_tokens for counted in counts]
    costs: dict[str, Sequence[float]] = {
        "flops": [counted.flops for counted in counts],
        "torch_flops": [counted.torch_flops for counted in counts],
    }
    report: SpeedReport | None = None
    if measure:
        config = SpeedConfig(sizes=sizes, device=_device_name(place), threads=threads, memory=False)
        report = _measure(architecture, config)
        costs["milliseconds"] = [speed.milliseconds for speed in report.speeds]
    exponents = {what: fitted_exponent(list(zip(tokens, values, strict=True))) for what, values in costs.items()}
    columns = {"image_size": sizes, "num_tokens": tokens, **costs}
    points = list(zip(*columns.values(), strict=True))
    if as_json:
        rows = [dict(zip(columns, point, strict=True)) for point in points]
        content = {"name": architecture, "params": counts[0].params, "sizes": rows, "exponents": exponents}
        click.echo(json.dumps(content, indent=1))
        return
    if report is not None:
        click.echo("\n".join(headings(report.machine, "inference, float32, batch 1", report.config.rounds)))
    groups = [
        tuple(
            (str(size), *(f"{value:,}" if isinstance(value, int) else three_digits(value) for value in figures))
            for size, *figures in points
        )
    ]
    if len(points) > 1:
        groups.append((("", "exponent", *(f"{exponent:.3f}" for exponent in exponents.values())),))
    title = f"{architecture}, {counts[0].params:,} parameters"
    print_table(title, tuple(_COLUMNS[what] for what in columns), groups)
