"""Compares XCiT with other implementations that have the same weights: time and peak memory; see `--help`.

python benchmarks/compare.py --models small-12-p8 --sizes 224,384,1024 --against timm,timm-compile --out runs/bench
"""

from importlib.util import find_spec
from pathlib import Path
from typing import cast

import click
from beside_peers import BenchResult, ModelResult, compare, draw_growth, markdown
from beside_peers.tables import growth_lines, headers, heading, rows

from xcit.cli import SOME_FAILED, run
from xcit.cli.bench import image_sizes, print_table
from xcit.cli.options import checked_device, compute_options
from xcit.progress import progress_bar


def _names(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


_HELP = """Compare the time and peak memory of XCiT with those of other implementations, all with the same weights.

\b
Contenders:
  xcit          this package's model, fused for inference; every other
                contender is compared with it
  xcit-plain    this package's model, not fused; with --train, every other
                contender is compared with it
  xcit-compile  xcit after torch.compile; with --train, xcit-plain after it
  timm          timm's XCiT
  timm-compile  timm's XCiT after torch.compile
  onnxruntime   timm's XCiT in ONNX Runtime, exported for each image size;
                CPU only

The weights are random. Before timing, all outputs are compared with those of xcit-plain in float32. In each round, all
contenders run in turn. "faster by" is the ratio of the median times; "quartiles" are the quartiles of the ratios of
single rounds. Peak memory is the memory that a run needs in addition to model and input. --out receives bench.json,
bench.md and a picture per model.

\b
Example:
  python benchmarks/compare.py --models small-12-p8 --sizes 224,384,1024 --against timm,timm-compile --out runs/bench
"""


@click.command(help=_HELP)
@click.option("--models", callback=_names, default="small-12-p8", show_default=True, help="Architectures or models.")
@click.option("--sizes", callback=image_sizes, default="224,384", show_default=True, help="Image sides in pixels.")
@click.option("--against", callback=_names, default="timm", show_default=True, help="The other contenders.")
@click.option("--train", is_flag=True, help="Measure a training step: forward, loss, backward.")
@click.option("--threads", type=click.IntRange(min=1), help="Number of CPU threads; torch's default if not given.")
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="Number of rounds.")
@click.option("--no-memory", is_flag=True, help="Do not measure peak memory.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder for the results.")
@compute_options(batch_size=1)
def command(
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
    """Compares the contenders; returns 1 if a contender could not be measured, else 0."""
    from beside_peers.results import DType

    place = checked_device(device)
    first = "xcit-plain" if train else "xcit"
    with progress_bar("bench", unit="runs", redraws_alone=False) as bar:

        def begin(num_runs: int) -> None:
            if out is not None:  # now, so that an error comes before the measurements
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
    click.echo("\n".join(heading(result)))
    for model in result.models:
        _print_model(result, model)
    if out is not None:
        _write(result, out)
    return SOME_FAILED if any(size.failures for model in result.models for size in model.sizes) else 0


def _print_model(result: BenchResult, model: ModelResult) -> None:
    print_table(model.model, headers(result), rows(result, model))
    for line in growth_lines(model):
        click.echo(f"  {line}")


def _write(result: BenchResult, folder: Path) -> None:
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


if __name__ == "__main__":
    run(command, "compare.py")
