"""Compares exported files with their models and with files from timm's own exporter: size, difference and time.

    python benchmarks/export.py [MODEL...] [--rounds 10] [--threads 2] [--sizes 224 384] [--folder DIR]
    python benchmarks/export.py --int8 [--threads 2]

With --cpu-time, one thread runs, and the processor time of this process is measured instead of the wall-clock time. Use
--cpu-time on machines that are busy with other work.

MODEL is an architecture (nano-12-p16), or a head and an architecture (sem-fpn_small-12-p16, upernet_...,
mask-rcnn_...). The weights are random: trained weights would take the same time. Only a detector's time depends on its
weights, because it depends on the number of objects. timm.utils.onnx_export exports timm's model for each image size.
Our model is exported one time for all image sizes, and again for each single size. In each round, all contenders of a
row run in turn on the same image, so that a slow moment of the machine affects all of them. Times are medians, and
ratios are ratios of medians. Files that already exist in --folder are measured without a new export.

--int8 quantises the packaged model, which is calibrated on 256 training images of Fashion-MNIST. The model is measured
on the 10,000 test images before and after quantisation.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from detection import with_random_weights
from timm.utils.onnx import onnx_export
from torch import Tensor, nn

import xcit
from xcit.deploy.formats import Run, open_run
from xcit.deploy.quiet import quiet
from xcit.machine import processor
from xcit.measure.clock import settings, three_digits
from xcit.models import XCiT
from xcit.models.detection.config import MaskRCNNConfig
from xcit.models.segmentation import SegmenterConfig, build_segmenter
from xcit.weights.formats import to_native
from xcit.zoo.architectures import ARCHITECTURES, backbone_of

MODELS = (
    "nano-12-p16",
    "small-12-p8",
    "sem-fpn_small-12-p16",
    "upernet_small-12-p16",
    "mask-rcnn_small-12-p16",
)
DENSE_SIZE = 512
PAUSE = 0.2
"""Seconds before a contender runs: the threads of the previous runtime wait actively for a while, and would slow it."""

RUNTIMES = {"ONNX Runtime": "onnx", "OpenVINO": "openvino"}
NUM_CALIBRATION = 256

Work = Callable[[], object]
Clock = Callable[[], float]


def build(name: str) -> tuple[Any, nn.Module | None]:
    """Returns our model with random weights, and timm's model with the same weights (None for a dense model)."""
    torch.manual_seed(0)
    head, _, architecture = name.rpartition("_")
    config = ARCHITECTURES[architecture]
    if not head:
        theirs = timm.create_model(f"xcit_{architecture.replace('-', '_')}_224", exportable=True).eval()
        ours = XCiT(config)
        ours.load_state_dict(to_native(theirs.state_dict(), "timm"))
        return ours.eval(), theirs
    backbone = backbone_of(config)
    if head == "mask-rcnn":
        from xcit.models.detection.mask_rcnn import MaskRCNN

        return with_random_weights(MaskRCNN(MaskRCNNConfig(backbone=backbone)).eval()), None
    kind: Any = head
    channels = {} if head == "upernet" else {"channels": 128}
    return build_segmenter(SegmenterConfig(kind=kind, backbone=backbone, **channels)).eval(), None


def exported(model: nn.Module, path: Path, size: int | None) -> str:
    """Exports our model to ONNX if there is no file; returns the difference of outputs, which a text file stores."""
    beside = path.with_suffix(".txt")
    if not path.exists():
        beside.write_text(f"{xcit.export(model, path, size=size).difference.value:.1e}")
    return beside.read_text()


def converted(onnx: Path) -> Path:
    """Converts an ONNX file to OpenVINO, as `xcit export --to openvino` does; returns the folder."""
    import openvino

    place = onnx.with_name(f"{onnx.stem}_openvino")
    if not place.exists():
        openvino.save_model(openvino.convert_model(onnx), place / "model.xml", compress_to_fp16=False)
    return place


def timms(model: nn.Module, folder: Path, size: int) -> Path:
    """Exports timm's model for one image size with timm's own exporter; returns the path of the file."""
    path = folder / f"timm-{size}.onnx"
    if not path.exists():
        with quiet():
            onnx_export(model, str(path), torch.zeros(1, 3, size, size), check=False, use_dynamo=True)
    return path


def inputs_of(model: Any, size: int) -> list[Tensor]:
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return (
        [image]
        if not isinstance(getattr(model, "config", None), MaskRCNNConfig)
        else [
            image,
            torch.tensor([size, size], dtype=torch.float32),
            torch.ones(4),
        ]
    )


def eager(model: Any, inputs: list[Tensor]) -> Work:
    fused = model.fuse()

    def run() -> object:
        with torch.inference_mode():
            if len(inputs) == 1:
                return fused(inputs[0])
            return fused._search(inputs[0][0], inputs[2], 0.05)

    return run


def of_run(run: Run, inputs: list[Tensor]) -> Work:
    return lambda: run(inputs)


def medians(works: dict[str, Work], rounds: int, clock: Clock) -> dict[str, float]:
    """Returns the median time of each function in seconds. In each round, the second of two calls is timed."""
    taken: dict[str, list[float]] = {what: [] for what in works}
    for _ in range(rounds):
        for what, work in works.items():
            time.sleep(PAUSE)
            work()  # wakes this contender's threads, and brings its weights into the cache
            started = clock()
            work()
            taken[what].append(clock() - started)
    return {what: statistics.median(seconds) for what, seconds in taken.items()}


def num_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())


def measure(name: str, sizes: list[int], folder: Path, rounds: int, threads: int, clock: Clock) -> None:
    """Prints the rows of one model."""
    ours, theirs = build(name)
    folder.mkdir(parents=True, exist_ok=True)
    for size in [DENSE_SIZE] if theirs is None else sizes:
        inputs = inputs_of(ours, size)
        works: dict[str, Work] = {"eager, fused": eager(ours, inputs)}
        bytes_of: dict[str, int] = {}
        difference_of: dict[str, str] = {}
        files = {"every size": (folder / "ours.onnx", None)}
        if theirs is not None:
            files["one size"] = (folder / f"ours-{size}.onnx", size)
        differences = {what: exported(ours, path, fixed) for what, (path, fixed) in files.items()}
        paths = {what: path for what, (path, _) in files.items()}
        if theirs is not None:
            paths["timm"] = timms(theirs, folder, size)
        for runtime, target in RUNTIMES.items():
            for what, onnx in paths.items():
                path, row = onnx if target == "onnx" else converted(onnx), f"{runtime}, {what}"
                works[row], bytes_of[row] = of_run(open_run(path, threads), inputs), num_bytes(path)
                difference_of[row] = differences.get(what, "")
        seconds = medians(works, rounds, clock)
        for what, taken in seconds.items():
            timm_taken = seconds.get(f"{what.partition(',')[0]}, timm")
            faster = "" if timm_taken is None or what.endswith("timm") else f"{timm_taken / taken:.2f}"
            cells = [
                name,
                str(size),
                what,
                f"{bytes_of[what] / 1e6:.1f}" if what in bytes_of else "",
                difference_of.get(what, ""),
                three_digits(1000 * taken),
                f"{seconds['eager, fused'] / taken:.2f}",
                faster,
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


def measure_int8(folder: Path, rounds: int, threads: int, clock: Clock) -> None:
    """Prints the size, time and top-1 accuracy of the packaged model in float32 and in int8."""
    from xcit.data.classification import open_labelled_images
    from xcit.images.preprocess import preprocess

    model: Any = xcit.get_model("packaged", pretrained=True)
    images = open_labelled_images("fashion-mnist", "train")
    spec = model.info.preprocessing
    batches = [preprocess(images[index][0], spec)[None] for index in range(NUM_CALIBRATION)]
    folder.mkdir(parents=True, exist_ok=True)
    inputs = [torch.rand(32, 1, 28, 28, generator=torch.Generator().manual_seed(0))]
    print("| runtime | precision | MB | ms a batch of 32 | top-1 |\n|---|---|---|---|---|")
    for runtime, target in RUNTIMES.items():
        works, rows = {}, {}
        for precision in ("float32", "int8"):
            path = folder / f"packaged-{precision}{'.onnx' if target == 'onnx' else '_openvino'}"
            if not path.exists():
                kind: Any = target
                calibration = batches if precision == "int8" else None
                xcit.export(model, path, kind, dtype=precision, calibration=calibration)  # type: ignore[arg-type]
            works[precision] = of_run(open_run(path, threads), inputs)
            report: Any = xcit.test(
                "xcit-pico-fashion-mnist", path, "fashion-mnist", num_workers=0, device="cpu"
            ).report
            rows[precision] = f"{num_bytes(path) / 1e6:.2f}", f"{report.top1:.2f}"
        for precision, taken in medians(works, rounds, clock).items():
            size, top1 = rows[precision]
            milliseconds = three_digits(1000 * taken)
            print(f"| {runtime} | {precision} | {size} | {milliseconds} | {top1} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    given = parser.parse_args()
    clock: Clock = time.process_time if given.cpu_time else time.perf_counter
    if given.cpu_time:
        given.threads = 1
    with tempfile.TemporaryDirectory() as temporary, settings(torch.device("cpu"), given.threads):
        folder = given.folder or Path(temporary)
        packages = ", ".join(f"{name} {__import__(name).__version__}" for name in ("torch", "onnxruntime", "openvino"))
        print(
            f"{processor()}, {given.threads} threads; {packages}, timm {timm.__version__}; {given.rounds} rounds"
            f"{', processor time' * given.cpu_time}\n"
        )
        if given.int8:
            measure_int8(folder, given.rounds, given.threads, clock)
            return
        print("| model | px | runtime, file | MB | difference | ms/image | as fast as eager | as fast as timm |")
        print("|---|---|---|---|---|---|---|---|")
        for name in given.models:
            measure(name, given.sizes, folder / name, given.rounds, given.threads, clock)


if __name__ == "__main__":
    main()
