"""Runs a detector on images of any size, and prints the figures of docs/detection.md.

    python benchmarks/detection.py [CASE ...] [--size 1500x1000] [--before DIR] [--folder DIR]

    before    compares the time of 1067 x 800 pixels in memory with another checkout; DIR is its `src` folder
    parts     prints the time of each part of the model in memory
    large     compares stripes within --memory with the whole image, at SIZE: memory, time, boxes and scores

The model is Mask R-CNN on small-12-p16 with random weights. Its heads are scaled so that it finds 100 objects, as many
as a trained model may find. So the model takes as much time as a trained model. Each run has its own process.
Runs that are compared take turns. The figures of the page need --size 6000x4000. At this size, the whole image takes
13 GB of memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from any_resolution import run_cases, say, texture

NAME = "mask-rcnn_xcit-small-12-p16_3x_coco"
FOLDER = str(Path(__file__).resolve().parent)

CHILD = f"""
import json, sys, time
import numpy as np
sys.path.insert(0, {FOLDER!r})
from detection import {{work}} as work, random_detector
for line in sys.stdin:
    print(json.dumps(work(json.loads(line))), flush=True)
"""


def random_detector() -> Any:
    """Returns the fused model with random weights."""
    from xcit import get_model

    return with_random_weights(get_model(NAME).eval()).fuse()


def with_random_weights(model: Any) -> Any:
    """Gives a detector random weights and norm statistics, with which it finds 100 objects in noise; returns it."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_buffers():
            if "running_var" in name:
                value.uniform_(0.5, 2)
        for name, value in model.named_parameters():
            if value.ndim > 1 and "temperature" not in name:
                value.normal_(std=value[0].numel() ** -0.5)
        # These factors keep the boxes near their anchors and the scores far from 1.
        model.rpn.head.bbox_pred.weight.mul_(0.2)
        model.roi_heads.box_predictor.cls_score.weight.mul_(0.6)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(0.3)
    return model


_MODEL: list[Any] = []


def model_of_this_process() -> Any:
    """Returns the model; the first call in a process builds it."""
    if not _MODEL:
        _MODEL.append(random_detector())
    return _MODEL[0]


def found_in(found: Any) -> dict[str, Any]:
    """Converts detections to lists that JSON can store."""
    return {name: getattr(found, name).tolist() for name in ("boxes", "labels", "scores")}


def in_memory(request: dict[str, Any]) -> dict[str, Any]:
    """Measures the time of an image that is scaled to the model's own size."""
    import torch

    model = model_of_this_process()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 600, 800), dtype=np.uint8)
    began = time.perf_counter()
    found = model.detect(torch.from_numpy(pixels))
    return {"seconds": time.perf_counter() - began, **found_in(found)}


def whole(request: dict[str, Any]) -> dict[str, Any]:
    """Detects objects in a whole image at full size, in memory; returns time, peak memory and objects."""
    import torch
    from PIL import Image

    from xcit.machine import forget_peak, peak_resident_memory, resident_memory

    model, pixels = model_of_this_process(), np.asarray(Image.open(request["image"]))
    forget_peak()
    before, began = resident_memory() or 0, time.perf_counter()
    found = model.detect(
        torch.from_numpy(pixels.transpose(2, 0, 1).copy()), sides=(min(pixels.shape[:2]), max(pixels.shape[:2]))
    )
    seconds, peak = time.perf_counter() - began, (peak_resident_memory() or 0) - before
    return {"seconds": seconds, "peak": peak, **found_in(found)}


def striped(request: dict[str, Any]) -> dict[str, Any]:
    """Detects objects in an image at full size, in stripes; returns time, peak memory and objects."""
    from xcit.images.open_rows import open_rows
    from xcit.machine import resident_memory
    from xcit.streaming import Budget
    from xcit.streaming.detection import detect_rows

    model, before = model_of_this_process(), resident_memory() or 0
    budget = Budget(memory=request["memory"], scratch=Path(request["folder"]) / "scratch")
    with open_rows(request["image"]) as rows:
        opened = (resident_memory() or 0) - before
        found, report = detect_rows(model, rows, min_score=0.05, max_objects=100, memory=budget)
    assert report.peak_bytes is not None
    is_kept = "scratch files" if report.bytes_written else "memory"
    return {"seconds": report.seconds, "peak": report.peak_bytes + opened, "kept": is_kept, **found_in(found)}


class Child:
    """A process that runs one of the functions above on request, with this code or the code of another checkout."""

    def __init__(self, work: str, source: Path | None = None) -> None:
        environment = dict(os.environ) | ({} if source is None else {"PYTHONPATH": str(source.resolve())})
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD.format(work=work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and returns the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Describes the differences between two results; each object is compared with the nearest object of its class."""
    boxes, others = (np.array(one["boxes"]).reshape(-1, 4) for one in (found, expected))
    if not len(boxes) or not len(others):
        return f"{len(boxes)} and {len(others)} objects"
    apart = np.abs(boxes[:, None] - others).max(axis=2)
    apart[np.array(found["labels"])[:, None] != np.array(expected["labels"])] = np.inf
    nearest = apart.argmin(axis=0)
    distance = apart.min(axis=0)
    is_same = distance < 1
    scores = np.abs(np.array(found["scores"])[nearest] - np.array(expected["scores"]))
    farthest, largest = (float(some[is_same].max(initial=0)) for some in (distance, scores))
    share = f"{is_same.sum()} of {len(others)} objects the same"
    return f"{share}, boxes within {farthest:.1e} px, scores within {largest:.1e}"


def before(arguments: argparse.Namespace) -> None:
    """Compares passes in memory with passes of the other checkout; the two take turns."""
    if arguments.before is None:
        sys.exit("the case `before` needs --before DIR: the `src` folder of the other checkout")
    ours, theirs = Child("in_memory"), Child("in_memory", arguments.before)
    found, expected = ours.ask(), theirs.ask()
    pairs = [(ours.ask()["seconds"], theirs.ask()["seconds"]) for _ in range(arguments.rounds)]
    ours.close()
    theirs.close()
    now, then = (statistics.median(times) for times in zip(*pairs, strict=True))
    say(
        f"{NAME}, 1067 x 800 pixels in memory: {now:.2f} s, before {then:.2f} s: {then / now:.2f}x, medians of "
        f"{arguments.rounds} each in turns; {differences(found, expected)}"
    )


def parts(arguments: argparse.Namespace) -> None:
    """Prints the time of each part of the model, in memory."""
    import torch

    model, seconds = random_detector(), dict[str, float]()
    started: dict[str, float] = {}
    names = ("backbone.xcit", "backbone.pyramid", "fpn", "rpn.head", "roi_heads.box_head", "roi_heads.mask_head",
             "roi_heads.mask_predictor")  # fmt: skip
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 600, 800), dtype=np.uint8))
    model.detect(pixels)
    for name in names:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda *_, name=name: started.__setitem__(name, time.perf_counter()))
        module.register_forward_hook(
            lambda *_, name=name: seconds.__setitem__(name, seconds.get(name, 0) + time.perf_counter() - started[name])
        )
    intermediates = model.backbone.xcit.forward_intermediates

    def timed(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = intermediates(*args, **options)
        seconds["backbone.xcit"] = seconds.get("backbone.xcit", 0) + time.perf_counter() - began
        return result

    model.backbone.xcit.forward_intermediates = timed
    began = time.perf_counter()
    for _ in range(arguments.rounds):
        model.detect(pixels)
    total = (time.perf_counter() - began) / arguments.rounds
    for name in names:
        say(f"{name:28} {1000 * seconds[name] / arguments.rounds:7.0f} ms")
    rest = total - sum(seconds.values()) / arguments.rounds
    say(f"{'RoIAlign, NMS and the rest':28} {1000 * rest:7.0f} ms of {1000 * total:.0f}")


def image_of(arguments: argparse.Namespace) -> Path:
    """Returns the path of the image of the requested size, and writes the file if it does not exist."""
    from PIL import Image

    width, height = arguments.size
    path: Path = arguments.folder / f"picture-{width}x{height}.png"
    if not path.exists():
        times = (-(-height // 4096), -(-width // 4096), 1)
        Image.fromarray(np.tile(texture(), times)[:height, :width]).save(path)
    return path


def large(arguments: argparse.Namespace) -> None:
    """Compares the results in stripes, for each memory bound, with the results of the whole image."""
    image, results = image_of(arguments), []
    for bound in arguments.memory:
        child = Child("striped")
        found = child.ask(image=str(image), memory=round(bound * 1e9), folder=str(arguments.folder))
        child.close()
        results.append(found)
        say(
            f"{arguments.size[0]} x {arguments.size[1]} pixels in stripes within {bound:g} GB, maps in "
            f"{found['kept']}: {found['seconds']:.0f} s, {found['peak'] / 1e9:.2f} GB above the loaded model"
        )
    if len(results) > 1:
        say(f"with the first and the second bound: {differences(results[1], results[0])}")
    if not arguments.no_whole:
        child = Child("whole")
        expected = child.ask(image=str(image))
        child.close()
        say(f"the whole image: {expected['seconds']:.0f} s, {expected['peak'] / 1e9:.2f} GB above the loaded model")
        for bound, found in zip(arguments.memory, results, strict=True):
            say(f"within {bound:g} GB, compared with the whole image: {differences(found, expected)}")


CASES = {"before": before, "parts": parts, "large": large}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[*CASES, []], help=", ".join(CASES))
    parser.add_argument(
        "--size", type=lambda text: tuple(map(int, text.split("x"))), default=(1500, 1000), metavar="WIDTHxHEIGHT"
    )
    parser.add_argument("--memory", type=float, nargs="+", default=[4.0, 1.0], metavar="GB", help="memory bounds")
    parser.add_argument("--no-whole", action="store_true", help="do not run the whole image in the case `large`")
    parser.add_argument("--before", type=Path, help="src folder of another checkout")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the cases `before` and `parts`")
    parser.add_argument("--folder", type=Path, default=Path("detection"), help="folder for images and scratch files")
    arguments = parser.parse_args()
    run_cases(CASES, arguments)


if __name__ == "__main__":
    main()
