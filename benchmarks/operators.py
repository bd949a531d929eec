"""Prints each operator's share of the time of a fused forward pass, to show what could still be faster.

    python benchmarks/operators.py [MODEL] [--sizes 224 384 1024] [--threads 2]

torch's profiler measures the time of each operator without its children. Operators with less than 1 % of the time are
summed as "others".
"""

import argparse
import platform

import torch
from torch.profiler import profile

import xcit
from xcit.machine import processor


def shares(model: torch.nn.Module, images: torch.Tensor, passes: int = 5) -> tuple[float, dict[str, float]]:
    """Returns the milliseconds per pass, and each operator's share of the time."""
    with torch.inference_mode():
        model(images)
        with profile() as profiled:
            for _ in range(passes):
                model(images)
    own = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    total = sum(own.values())
    return total / passes / 1000, {name: time / total for name, time in own.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="small-12-p8")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384, 1024])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = xcit.get_model(f"xcit-{arguments.model}").fuse()
    measured = {size: shares(model, torch.randn(1, 3, size, size)) for size in arguments.sizes}
    print(f"{processor()}, {arguments.threads} threads; Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{arguments.model}, fused, float32, batch 1; share of the time\n")
    print("| operator | " + " | ".join(f"{size} px" for size in measured) + " |")
    print("| --- |" + " ---: |" * len(measured))
    names = {name for _, parts in measured.values() for name, share in parts.items() if share >= 0.01}
    order = sorted(names, key=lambda name: -max(parts.get(name, 0.0) for _, parts in measured.values()))
    for name in order:
        print(f"| `{name}` | " + " | ".join(f"{parts.get(name, 0.0):.1%}" for _, parts in measured.values()) + " |")
    rest = [sum(share for name, share in parts.items() if name not in names) for _, parts in measured.values()]
    print("| others | " + " | ".join(f"{share:.1%}" for share in rest) + " |")
    print("| ms a pass, profiled | " + " | ".join(f"{time:,.0f}" for time, _ in measured.values()) + " |")


if __name__ == "__main__":
    main()
