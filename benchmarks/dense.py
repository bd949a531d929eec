"""Takes images of any size through segmenters, and prints the figures of docs/segmentation.md.

    python benchmarks/dense.py [CASE ...] [--size 4096] [--before DIR] [--folder DIR]

    before    in memory, 512 x 683 pixels, beside another checkout, whose `src` folder --before names: time and memory
    large     Semantic FPN on SIZE x SIZE pixels and UperNet on half of that, in 4 GB: time, memory, where tokens lie
    exact     labels of a streamed image beside those of the whole image, at --exact-size
    window    the same image by a sliding window: time, pixels that differ; draws docs/segmentation-seams.png

Models are small-12-p16 with random weights, which takes the same time. Each run has a process of its own; times beside
each other are taken in turns. The figures for the page: --size 16384 --exact-size 4096, which takes hours.
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

from any_resolution import say

from xcit.machine import processor

MODELS = {"Semantic FPN": "sem-fpn_xcit-small-12-p16_80k_ade20k", "UperNet": "upernet_xcit-small-12-p16_160k_ade20k"}
SIZE = (512, 683)
WINDOW = 512


def random_segmenter(name: str) -> Any:
    """The model with random weights of every kind, its logits far enough apart that few pixels are in doubt."""
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
    before, began = resident_memory(), time.perf_counter()
    if line.strip() == "labels":
        predict_labels(model, pixels, spec, size=size)
    else:
        with torch.inference_mode():
            model(image)
    print(json.dumps([time.perf_counter() - began, peak_resident_memory() - before]), flush=True)
"""


class InMemory:
    """A process that segments an image whenever it is asked to: today's, or another checkout's."""

    def __init__(self, name: str, size: tuple[int, int], source: Path | None) -> None:
        code = IN_MEMORY.format(folder=str(Path(__file__).resolve().parent), name=name, size=size)
        environment = dict(os.environ) | ({} if source is None else {"PYTHONPATH": str(source)})
        # A process that keeps freed memory would show what it took once, not what a pass takes.
        environment |= {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, what: str) -> tuple[float, int]:
        """Seconds and bytes of one pass: of `labels`, or of `logits` at the image's size."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        seconds, memory = json.loads(self._process.stdout.readline())
        return seconds, memory

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def before(arguments: argparse.Namespace) -> None:
    """Measures passes in memory beside the other checkout, alternately."""
    if arguments.before is None:
        sys.exit("the case `before` needs --before DIR, the src folder of the other checkout")
    say("| model | what | seconds | before | times as fast | memory | before | share |")
    say("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for title, name in MODELS.items():
        ours, theirs = InMemory(name, SIZE, None), InMemory(name, SIZE, arguments.before)
        for what in ("labels", "logits"):
            rounds = [(ours.ask(what), theirs.ask(what)) for _ in range(arguments.rounds)]
            mine, other = ([pair[side][0] for pair in rounds] for side in (0, 1))
            memory, earlier = (statistics.median(pair[side][1] for pair in rounds) for side in (0, 1))
            ratio = statistics.median(b / a for a, b in zip(mine, other, strict=True))
            say(
                f"| {title} | {what} | {statistics.median(mine):.2f} | {statistics.median(other):.2f} | {ratio:.2f} | "
                f"{memory / 1e6:.0f} MB | {earlier / 1e6:.0f} MB | {memory / earlier:.2f} |"
            )
        ours.close()
        theirs.close()


CASES = {"before": before}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[*CASES, []], help=", ".join(CASES))
    parser.add_argument("--size", type=int, default=4096, help="pixels of a side; a multiple of 1024")
    parser.add_argument("--exact-size", type=int, default=2048, help="of the cases `exact` and `window`")
    parser.add_argument("--memory", default="4GB", help="of the case `large`")
    parser.add_argument("--rounds", type=int, default=7, help="of the case `before`")
    parser.add_argument("--before", type=Path, help="src folder of another checkout")
    parser.add_argument("--folder", type=Path, default=Path("dense"), help="for images, results and scratch files")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        say(json.dumps(child(json.loads(arguments.child))))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    import torch

    say(f"{processor()}, {torch.get_num_threads()} threads; torch {torch.__version__}; load {os.getloadavg()[0]:.1f}")
    for case in arguments.cases or [name for name in CASES if name != "before" or arguments.before]:
        began = time.perf_counter()
        CASES[case](arguments)
        say(f"({case}: {time.perf_counter() - began:.0f} s, load {os.getloadavg()[0]:.1f})")


if __name__ == "__main__":
    main()
