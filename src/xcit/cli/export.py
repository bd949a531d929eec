"""`xcit export`: exports a model to a file for another runtime."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xcit.cli.features import OUT_TYPES, block_numbers
from xcit.cli.lines import say
from xcit.cli.options import CommandWithNumbers, FileOptions, file_options
from xcit.errors import XCiTError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

TARGETS = ("onnx", "openvino", "torch-export", "tensorrt", "web")
_ENDINGS = {"openvino": "_openvino", "torch-export": ".pt2"}

_HELP = """Export MODEL (a name, a weights file or a run's folder) to a file for another runtime.

\b
--to onnx          FILE.onnx for ONNX Runtime
     openvino      a folder with model.xml and model.bin
     torch-export  FILE.pt2 for torch
     tensorrt      FILE.onnx for TensorRT's parser: one image size, float16
     web           FILE.onnx with operators that onnxruntime-web supports

The exported model accepts any batch size, height and width, unless --size fixes height and width. An exported detector
accepts one image at a time. The file is compared with the model, by default at five image sizes and two batch sizes,
and the largest difference is printed. If the difference is too large, no file is kept. The file also contains the class
names, the preprocessing, the task, the source and the licence. So xcit predict, features, segment, detect, test and
bench accept the file as a model, and run it with the other runtime.

\b
Example:
  xcit export xcit-nano-12-p16_3rdparty_in1k --to onnx
  xcit predict photo.jpg --model xcit-nano-12-p16_3rdparty_in1k.onnx
"""


@click.command(cls=CommandWithNumbers, help=_HELP)
@click.argument("model")
@click.option("--to", "to", type=click.Choice(TARGETS), required=True, help="Runtime for which MODEL is exported.")
@click.option(
    "--out", metavar="FILE|DIR", help="File or folder to write; by default MODEL's name with the ending of the format."
)
@click.option("--weights", metavar="FILE|URL", help="A file or URL with weights for MODEL.")
@file_options
@click.option(
    "--dtype",
    type=click.Choice(("float32", "float16")),
    help="Precision; by default float16 for tensorrt, else float32.",
)
@click.option(
    "--int8", "calibration", metavar="IMAGES", help="Quantize to int8, with the images of this folder for calibration."
)
@click.option("--opset", type=int, metavar="N", help="Version of the ONNX operators, at least 18; by default 18.")
@click.option(
    "--num-images",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="With --int8: number of images for calibration.",
)
@click.option(
    "--normalize",
    is_flag=True,
    help="Include the normalisation by mean and std. The exported model then expects pixels in 0..1.",
)
@click.option(
    "--features", type=click.Choice(OUT_TYPES), help="Export a model that returns these features instead of logits."
)
@click.option(
    "--layers",
    callback=block_numbers,
    default="-1",
    show_default=True,
    help="With --features: numbers of the blocks, such as -1 or 3,7,11.",
)
def export(
    model: str,
    to: str,
    out: str | None,
    weights: str | None,
    how: FileOptions,
    dtype: str | None,
    calibration: str | None,
    num_images: int,
    normalize: bool,
    features: str | None,
    layers: tuple[int, ...],
    opset: int | None,
) -> None:
    """Exports a model, and prints a description of the file."""
    from typing import cast

    from xcit.deploy import FORMATS, FeatureOutput, Target, Wanted, export_model, origin_of
    from xcit.deploy.sheet import Precision
    from xcit.extras import need_packages
    from xcit.models.xcit import OutType

    target = cast(Target, to)
    need_packages(f"exporting to {to}", *FORMATS[target].packages)
    if calibration is not None and dtype is not None:
        raise XCiTError("give --int8 or --dtype, not both")
    path = Path(out) if out is not None else Path(f"{_base(model)}{_ENDINGS.get(to, '.onnx')}")
    network = _load(model, weights, how)
    wanted = Wanted(
        size=how.size,
        dtype="int8" if calibration is not None else cast(Precision | None, dtype),
        normalize=normalize,
        features=None if features is None else FeatureOutput(out_type=cast(OutType, features), layers=layers),
        calibration=None if calibration is None else _batches(network, calibration, num_images, how.size),
        opset=opset,
    )
    report = export_model(network, origin_of(weights or model), path, target, wanted)
    facts = report.sheet.facts
    size = "images of any size" if facts.size is None else f"images of {facts.size[0]}x{facts.size[1]} pixels"
    say(
        f"{path}: {report.sheet.sentence()} of {size}, {facts.precision}, {report.num_bytes / 1e6:.1f} MB; "
        f"{report.difference.sentence()}",
        indent=2,
    )


def _base(model: str) -> str:
    """Returns the default name of the exported file, without suffix, for a model's name, file or run folder."""
    from xcit.zoo.names import WEIGHT_SUFFIXES

    name = model.rstrip("/").rpartition("/")[2].partition("#")[0]
    suffix = next((suffix for suffix in WEIGHT_SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(suffix)


def _load(model: str, weights: str | None, how: FileOptions) -> Any:
    """Returns the model with its weights, after applying the preprocessing options in `how`."""
    from xcit.deploy import weights_of
    from xcit.progress import download_bar
    from xcit.zoo import get_model

    with download_bar() as downloaded:
        built: Any = get_model(
            weights_of(model),
            pretrained=weights or True,
            stem_strides=how.stem_strides,
            key=how.key,
            progress=downloaded,
        )
    if built.info is not None or how.mean or how.std:
        how.apply(built, weights or model)
    return built


def _batches(network: Any, images: str, num_images: int, size: int | None) -> "Iterator[Tensor]":
    """Yields images of a folder for calibration, preprocessed for the model, one per batch.

    An unreadable image is reported and skipped.

    Raises:
        XCiTError: if no image can be read.
    """
    from xcit.images.find import find_images
    from xcit.inference.calibration import calibration_images
    from xcit.inference.reading import Unreadable

    paths = find_images([images])
    num_good = 0
    for result in calibration_images(paths[:: max(1, len(paths) // num_images)], network, size):
        if isinstance(result, Unreadable):
            click.echo(f"xcit: {result.reason}", err=True)
            continue
        yield result
        num_good += 1
        if num_good == num_images:
            return
    if not num_good:
        raise XCiTError(f"{images}: none of its images can be read: there is nothing to calibrate on")
