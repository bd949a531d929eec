"""`xcit bench` and `xcit complexity`: speed, memory and cost against the number of tokens."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xcit.cli.options import checked_device, compute_options

if TYPE_CHECKING:
    import torch

    from xcit.bench import BenchResult, ModelResult


def _sizes(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise click.BadParameter(f"{text!r} is no list of image sizes such as 224 or 224,384,1024") from None
    return sizes


def _names(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


_threads = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads on the CPU; torch's own number if left out."
)


_BENCH_HELP = """Measure time and peak memory beside other implementations, all with the same weights.

\b
Contenders:
  xcit          this package, fused for inference: what the others are
                compared with
  xcit-plain    this package's model as it trains: first in --train
  xcit-compile  xcit by torch.compile; in --train xcit-plain
  timm          timm's XCiT
  timm-compile  timm's by torch.compile
  onnxruntime   timm's, exported for each size, in ONNX Runtime; CPU only

The weights are random; the outputs of all are compared with the plain model's in float32 before they are timed. Each
round times every contender in turn; "faster by" is the ratio of the medians, with the quartiles of the single rounds.
Peak memory is what a run takes above model and input. --out gets bench.json, bench.md and a picture for each model.

\b
Example:
  xcit bench --models small-12-p8 --sizes 224,384,1024 --against timm,timm-compile --out runs/bench
"""


@click.command(help=_BENCH_HELP)
@click.option("--models", callback=_names, default="small-12-p8", show_default=True, help="Architectures, or models.")
@click.option("--sizes", callback=_sizes, default="224,384", show_default=True, help="Image sides in pixels.")
@click.option("--against", callback=_names, default="timm", show_default=True, help="The other contenders.")
@click.option("--train", is_flag=True, help="Measure a training step instead: forward, loss, backward.")
@_threads
@click.option(
    "--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="Times that each is measured."
)
@click.option("--no-memory", is_flag=True, help="Leave peak memory out: on the CPU it takes a process for each figure.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder for the results.")
@compute_options(batch_size=1)
def bench(
    models: tuple[str, ...],
    sizes: tuple[int, ...],
    against: tuple[str, ...],
    train: bool,
    threads: int | None,
    rounds: int,
    no_memory: bool,
    out: Path | None,
    batch_size: int,
    device: str | None,
    dtype: str,
) -> int:
    """Compares; the exit status is 1 if some contender could not be measured."""
    from typing import cast

    from xcit.bench import compare
    from xcit.bench.results import DType
    from xcit.cli import SOME_FAILED
    from xcit.cli.progress import progress_bar

    place = checked_device(device)
    first = "xcit-plain" if train else "xcit"
    with progress_bar("bench", unit="runs", redraws_alone=False) as bar:

        def begin(num_runs: int) -> None:
            if out is not None:  # before the time is spent
                out.mkdir(parents=True, exist_ok=True)
            bar.set_total(num_runs)

        result = compare(
            models,
            sizes,
            (first, *(name for name in against if name != first)),
            train=train,
            batch_size=batch_size,
            dtype=cast(DType, dtype),
            device=place,
            threads=threads,
            rounds=rounds,
            memory=not no_memory,
            started=begin,
            advance=bar.advance,
            announce=lambda line: click.echo(f"xcit: {line}", err=True),
        )
    _print_heading(result)
    for model in result.models:
        _print_model(result, model)
    if out is not None:
        _write(result, out)
    return SOME_FAILED if any(size.failures for model in result.models for size in model.sizes) else 0


def _print_heading(result: "BenchResult | None") -> None:
    from xcit.bench.tables import heading

    if result is not None:
        click.echo("\n".join(heading(result)))


def _print_model(result: "BenchResult", model: "ModelResult") -> None:
    from xcit.bench.tables import growth_lines, headers, rows

    _print_table(model.model, headers(result), rows(result, model))
    for line in growth_lines(model):
        click.echo(f"  {line}")


def _print_table(title: str, headers: tuple[str, ...], groups: list[tuple[tuple[str, ...], ...]]) -> None:
    """Prints a table, with a line between groups of rows."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)  # a file has no width to keep to
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in headers:
        table.add_column(name, justify="left" if name == "contender" else "right")
    for group in groups:
        for row in group:
            table.add_row(*row)
        table.add_section()
    console.print(table, markup=False)


def _write(result: "BenchResult", folder: Path) -> None:
    from importlib.util import find_spec

    from xcit.bench import draw_growth, markdown

    written = [folder / "bench.json", folder / "bench.md"]
    for path, text in zip(written, (result.to_json(), markdown(result)), strict=True):
        path.write_text(text, encoding="utf-8")
    if find_spec("matplotlib") is None:
        click.echo("no picture: it needs matplotlib (pip install 'xcit[train]')", err=True)
    else:
        for model in result.models:
            written.append(folder / f"{model.model}.png")
            draw_growth(result, model, written[-1])
    for path in written:
        click.echo(f"wrote  {path}")


_COMPLEXITY_HELP = """Show how the cost of NAME, an architecture or a model, grows with the image.

FLOPs are by the published rule (multiply-accumulates, without the head), torch FLOPs by torch's counter (2 a
multiply-accumulate). The exponents are fitted against the number of tokens: 1 is linear.

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
"""Name in JSON -> head of the column."""


@click.command(help=_COMPLEXITY_HELP)
@click.argument("name")
@click.option("--sizes", callback=_sizes, default="224,384,512,1024", show_default=True, help="Image sides in pixels.")
@click.option("--measure", is_flag=True, help="Measure the fused model's time too, in float32, an image at a time.")
@_threads
@click.option("--device", help="Where to measure: cpu, cuda, cuda:1, ...; a GPU if there is one, else cpu.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def complexity(
    name: str, sizes: tuple[int, ...], measure: bool, threads: int | None, device: str | None, as_json: bool
) -> None:
    """Counts, and measures where asked to."""
    import json
    from collections.abc import Sequence

    from xcit.measure.complexity import complexity as count
    from xcit.measure.complexity import fitted_exponent
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
    result = _measure_alone(architecture, sizes, threads, place) if measure else None
    if result is not None:
        costs["milliseconds"] = [size.measurements[0].milliseconds for size in result.models[0].sizes]
    exponents = {what: fitted_exponent(list(zip(tokens, values, strict=True))) for what, values in costs.items()}
    columns = {"image_size": sizes, "num_tokens": tokens, **costs}
    points = list(zip(*columns.values(), strict=True))
    if as_json:
        rows = [dict(zip(columns, point, strict=True)) for point in points]
        content = {"name": architecture, "params": counts[0].params, "sizes": rows, "exponents": exponents}
        click.echo(json.dumps(content, indent=1))
        return
    _print_heading(result)
    groups = [tuple((str(size), *map(_figure, figures)) for size, *figures in points)]
    if len(points) > 1:
        groups.append((("", "exponent", *(f"{exponent:.3f}" for exponent in exponents.values())),))
    title = f"{architecture}, {counts[0].params:,} parameters"
    _print_table(title, tuple(_COLUMNS[what] for what in columns), groups)


def _measure_alone(
    architecture: str, sizes: tuple[int, ...], threads: int | None, device: "torch.device | None"
) -> "BenchResult":
    from xcit.bench import compare
    from xcit.cli.progress import progress_bar

    with progress_bar("measure", unit="runs", redraws_alone=False) as bar:
        return compare(
            [architecture],
            sizes,
            ["xcit"],
            device=device,
            threads=threads,
            memory=False,
            started=bar.set_total,
            advance=bar.advance,
        )


def _figure(value: float) -> str:
    from xcit.bench.tables import three_digits

    return f"{value:,}" if isinstance(value, int) else three_digits(value)
