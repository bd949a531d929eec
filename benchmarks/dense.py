"""Runs segmenters on images of any size, and prints the figures of docs/segmentation.md.

    python benchmarks/dense.py [CASE ...] [--size 4096] [--before DIR] [--folder DIR]

    before    compares time and memory of 512 x 683 pixels in memory with another checkout; DIR is its `src` folder
    large     time and memory in stripes within --memory: Semantic FPN at SIZE x SIZE pixels, UperNet at half that side
    exact     compares the labels in stripes with the labels of the whole image: Semantic FPN at --exact-size, UperNet,
              which needs more memory, at half that side
    window    compares a sliding window with stripes at --window-size, and draws docs/segmentation-seams.png

The models are small-12-p16 with random weights: trained weights would take the same time. Each run has its own process.
Runs that are compared take turns. The figures of the page need --size 16384, --exact-size 6144 and 22 GB of memory.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from any_resolution import image_of, run_cases, say

MODELS = {"Semantic FPN": "sem-fpn_xcit-small-12-p16_80k_ade20k", "UperNet": "upernet_xcit-small-12-p16_160k_ade20k"}
SIZE = (512, 683)
WINDOW = 512


def random_segmenter(name: str) -> Any:
    """Returns the model with random weights and norm statistics. Few pixels have two almost equal largest logits."""
    import torch

    from xcit import get_model

    torch.manual_seed(0)
    model = get_model(name).eval()
    for key, value in model.state_dict().items():
        if "running_var" in key:
            value.uniform_(0.5, 2)
        elif key.endswith("classifier.weight"):
            value.normal_(std=0.3)
        elif value.is_floating_point():
            value.add_(torch.randn_like(value) * 0.02)
    return model


IN_MEMORY = """
import json, sys, time, torch
import numpy as np
sys.path.insert(0, {folder!r})
from dense import random_segmenter
from xcit.images.preprocess import SegmentationPreprocessing
from xcit.inference.segment import predict_labels
from xcit.machine import forget_peak, peak_resident_memory, resident_memory
model = random_segmenter({name!r}).fuse()
spec, size = SegmentationPreprocessing(), {size!r}
pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
image = torch.randn(1, 3, *size)
predict_labels(model, pixels, spec, size=size)
for line in sys.stdin:
    forget_peak()
    before, began, used = resident_memory(), time.perf_counter(), time.process_time()
    if line.strip() == "labels":
        predict_labels(model, pixels, spec, size=size)
    else:
        with torch.inference_mode():
            model(image)
    times = [time.perf_counter() - began, time.process_time() - used]
    print(json.dumps([*times, peak_resident_memory() - before]), flush=True)
"""


class InMemory:
    """A process that segments an image on request, with this code or the code of another checkout."""

    def __init__(self, name: str, size: tuple[int, int], source: Path | None, *, measures: str) -> None:
        code = IN_MEMORY.format(folder=str(Path(__file__).resolve().parent), name=name, size=size)
        environment = dict(os.environ) | ({} if source is None else {"PYTHONPATH": str(source)})
        if measures == "memory":  # frees memory immediately (slow), so that freed memory is not counted
            environment |= {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, what: str) -> tuple[float, float, int]:
        """Computes `labels` at the image's size, or `logits`; returns seconds, CPU seconds and bytes of peak memory."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        seconds, of_processor, memory = json.loads(self._process.stdout.readline())
        return seconds, of_processor, memory

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def before(arguments: argparse.Namespace) -> None:
    """Compares passes in memory with passes of the other checkout; the two take turns."""
    if arguments.before is None:
        sys.exit("the case `before` needs --before DIR: the `src` folder of the other checkout")
    say("| model | what | seconds | before | times as fast | of processor time | memory | before | share |")
    say("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for title, name in MODELS.items():
        bytes_of: dict[tuple[str, int], int] = {}
        for side, source in enumerate((None, arguments.before)):
            one = InMemory(name, SIZE, source, measures="memory")
            bytes_of |= {(what, side): one.ask(what)[2] for what in ("labels", "logits")}
            one.close()
        pair = [InMemory(name, SIZE, source, measures="time") for source in (None, arguments.before)]
        for what in ("labels", "logits"):
            rounds = [[one.ask(what) for one in pair] for _ in range(arguments.rounds)]
            seconds, of_processor = (
                [statistics.median(times[side][column] for times in rounds) for side in (0, 1)] for column in (0, 1)
            )
            memory = [bytes_of[what, side] for side in (0, 1)]
            say(
                f"| {title} | {what} | {seconds[0]:.2f} | {seconds[1]:.2f} | {seconds[1] / seconds[0]:.2f} | "
                f"{of_processor[1] / of_processor[0]:.2f} | {memory[0] / 1e6:.0f} MB | {memory[1] / 1e6:.0f} MB | "
                f"{memory[0] / memory[1]:.2f} |"
            )
        for one in pair:
            one.close()


def child(request: dict[str, Any]) -> dict[str, Any]:
    """Makes one run in this process and writes the labels to an .npy file; `how` is stripes, whole or window."""
    import torch

    from xcit.images.open_rows import open_rows
    from xcit.images.preprocess import SegmentationPreprocessing
    from xcit.inference.full_size import FullSize
    from xcit.inference.label_rows import best_labels
    from xcit.inference.segment import SlidingWindow, predict_labels
    from xcit.inference.segment_full_size import LargeSegmentation, segment_large_each
    from xcit.machine import forget_peak, peak_resident_memory, resident_memory
    from xcit.models import SegmenterInfo
    from xcit.streaming import Budget, Report, as_budget

    model, spec = random_segmenter(request["model"]).fuse(), SegmentationPreprocessing()
    found: dict[str, Any] = {}
    if request["how"] == "stripes":
        reports: list[Report] = []
        budget = Budget(memory=as_budget(request["memory"]).memory, scratch=Path(request["folder"]) / "scratch")
        info = SegmenterInfo(name=request["model"], preprocessing=spec)
        how = FullSize(memory=budget, report=lambda _, report: reports.append(report))
        for result in segment_large_each([request["image"]], model, info, how):
            if not isinstance(result, LargeSegmentation):
                sys.exit(result.reason)
            result.write_tiff(Path(request["folder"]) / "labels.tif")
            np.save(request["labels"], result.labels())
        report = reports[0]
        return {"seconds": report.seconds, "peak": report.peak_bytes, "line": report.line()}
    with open_rows(request["image"]) as rows:
        pixels = np.array(rows.read(0, rows.height))
    forget_peak()
    began, before_it = time.perf_counter(), resident_memory() or 0
    with torch.inference_mode():
        if request["how"] == "window":
            window = SlidingWindow(size=WINDOW, stride=341)
            labels = predict_labels(model, pixels, spec, size=pixels.shape[:2], window=window)
        else:  # calls the modules of the head on whole maps
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div_(255)
            mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (spec.mean, spec.std))
            labels = best_labels(model.decode(model.backbone(image.sub_(mean).div_(std)))[0], pixels.shape[:2])
    found["seconds"] = time.perf_counter() - began
    found["peak"] = (peak_resident_memory() or 0) - before_it
    np.save(request["labels"], labels)
    return found


def run(arguments: argparse.Namespace, name: str, size: int, how: str) -> tuple[dict[str, Any], np.ndarray]:
    """Makes one run in a new process; returns its measurements and its labels."""
    labels = arguments.folder / f"labels-{how}.npy"
    shutil.rmtree(arguments.folder / "scratch", ignore_errors=True)  # else an interrupted run is resumed
    request = {
        "model": name,
        "image": str(image_of(arguments.folder, size)),
        "how": how,
        "memory": arguments.memory,
        "folder": str(arguments.folder),
        "labels": str(labels),
    }
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(request)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1]), np.load(labels, mmap_mode="r")


def large(arguments: argparse.Namespace) -> None:
    """Prints the time and memory of segmentation in stripes."""
    for title, size in (("Semantic FPN", arguments.size), ("UperNet", arguments.size // 2)):
        found, _ = run(arguments, MODELS[title], size, "stripes")
        say(f"{title}: {found['line']}; {found['seconds']:.0f} s within {arguments.memory}")


def exact(arguments: argparse.Namespace) -> None:
    """Prints for how many percent of the pixels the label in stripes equals the label of the whole image."""
    for title, size in (("Semantic FPN", arguments.exact_size), ("UperNet", arguments.exact_size // 2)):
        whole, expected = run(arguments, MODELS[title], size, "whole")
        found, labels = run(arguments, MODELS[title], size, "stripes")
        share, count = float(np.mean(labels == expected)), len(np.unique(expected))
        say(
            f"{title}, {size} x {size} pixels, {count} classes: {share:.6%} of the "
            f"labels are the whole image's; {found['seconds']:.0f} s and {found['peak'] / 1e6:,.0f} MB, whole "
            f"{whole['seconds']:.0f} s and {whole['peak'] / 1e6:,.0f} MB"
        )


def window(arguments: argparse.Namespace) -> None:
    """Compares a sliding window with stripes: prints times and the share of different labels, and draws the seams."""
    title, name, size = "Semantic FPN", MODELS["Semantic FPN"], arguments.window_size
    found, labels = run(arguments, name, size, "stripes")
    slid, windowed = run(arguments, name, size, "window")
    say(
        f"{title}, {size} x {size} pixels: {found['seconds']:.0f} s in stripes, {slid['seconds']:.0f} s by windows of "
        f"{WINDOW} pixels, 341 apart, {slid['peak'] / 1e6:,.0f} MB; {np.mean(labels != windowed):.1%} of the labels "
        "differ"
    )
    draw_seams(arguments, np.array(labels), np.array(windowed))


def draw_seams(arguments: argparse.Namespace, labels: np.ndarray, windowed: np.ndarray) -> None:
    """Draws a part of the image, its labels by stripes and by windows, and the pixels where the labels differ."""
    from PIL import Image

    from xcit.draw.labels import palette
    from xcit.images.open_rows import open_rows

    side, colors = 1024, palette(256)
    with open_rows(image_of(arguments.folder, arguments.window_size)) as rows:
        picture = np.array(rows.read(0, side))[:, :side]
    differs = np.where(labels == windowed, 255, 60).astype(np.uint8)[:side, :side, None].repeat(3, axis=2)
    parts = [picture, colors[labels[:side, :side]], colors[windowed[:side, :side]], differs]
    gap = np.full((side, 16, 3), 255, np.uint8)
    row = np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=1)
    target = Path(__file__).resolve().parent.parent / "docs" / "segmentation-seams.png"
    Image.fromarray(row).resize((row.shape[1] // 3, side // 3), Image.Resampling.BOX).save(target, optimize=True)


CASES = {"before": before, "large": large, "exact": exact, "window": window}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[*CASES, []], help=", ".join(CASES))
    parser.add_argument("--size", type=int, default=4096, help="side in pixels of the case `large`; a multiple of 1024")
    parser.add_argument("--exact-size", type=int, default=2048, help="side in pixels of the case `exact`")
    parser.add_argument("--window-size", type=int, default=4096, help="side in pixels of the case `window`")
    parser.add_argument("--memory", default="4GB", help="memory bound of the case `large`")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the case `before`")
    parser.add_argument("--before", type=Path, help="src folder of another checkout")
    parser.add_argument("--folder", type=Path, default=Path("dense"), help="folder for all files")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        say(json.dumps(child(json.loads(arguments.child))))
        return
    run_cases(CASES, arguments)


if __name__ == "__main__":
    main()
