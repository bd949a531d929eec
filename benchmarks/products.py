"""Compares fused models with and without oneDNN's matrix products, and prints the table of docs/performance.md.

    python benchmarks/products.py [--rounds 15] [--threads 2]

`xcit.ops.products` uses oneDNN only on processors from AMD. This benchmark uses it on every processor, so that its
result says whether oneDNN should be used on other processors too. In each round, both forms run in turn.
"""

import argparse
import statistics
import time
from functools import partial

import torch

from xcit.machine import processor
from xcit.measure.clock import settings, three_digits
from xcit.models import XCiT
from xcit.ops import products
from xcit.zoo.architectures import ARCHITECTURES

CASES = (("nano-12-p16", 224), ("nano-12-p16", 384), ("small-12-p16", 224), ("small-12-p8", 224), ("small-12-p8", 384))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    print(f"{processor()}, {given.threads} threads; torch {torch.__version__}; float32, {given.rounds} rounds\n")
    print("| model | px | ms/image with torch's products | with oneDNN | faster by | difference |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    with settings(torch.device("cpu"), given.threads), torch.inference_mode():
        for name, size in CASES:
            torch.manual_seed(0)
            model, image = XCiT(ARCHITECTURES[name]).eval().fuse(), torch.rand(1, 3, size, size)
            times: dict[bool, list[float]] = {False: [], True: []}
            outputs = {}
            for index in range(given.rounds + 1):
                for is_onednn in times:
                    products._is_onednn_faster = partial(bool, is_onednn)  # type: ignore[assignment]
                    started = time.perf_counter()
                    outputs[is_onednn] = model(image)
                    if index:  # the first round warms up
                        times[is_onednn].append(time.perf_counter() - started)
            plain, fast = (statistics.median(times[is_onednn]) for is_onednn in (False, True))
            difference = (outputs[True] - outputs[False]).abs().max() / outputs[False].abs().max()
            milliseconds = f"{three_digits(1000 * plain)} | {three_digits(1000 * fast)}"
            print(f"| {name} | {size} | {milliseconds} | {plain / fast:.2f} | {difference:.0e} |", flush=True)


if __name__ == "__main__":
    main()
