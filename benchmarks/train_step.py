"""Compares the time of a training step of our XCiT and of timm's, in the same loop and with the same weights.

    python benchmarks/train_step.py [ROUNDS] [--image-size 224] [--batch-size 8] [--threads 1] [--device cpu]
                                    [--profile]

A step is a forward pass, the cross-entropy, a backward pass and an AdamW step. In each round, each model makes one
step, so that a slow moment of the machine affects both. "ratio" is the ratio of the median times; "quartiles" are the
quartiles of the ratios of single rounds. With --profile, the operators with the longest times are printed for both
models.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import xcit
from xcit.machine import processor
from xcit.models import XCiT
from xcit.weights.formats import to_native
from xcit.zoo.architectures import PUBLISHED_ARCHITECTURES

ARCHITECTURES = ("nano-12-p16", "tiny-12-p16")
NUM_WARM_UP = 2
NUM_ROWS = 14
"""Number of operators that --profile prints."""

Step = Callable[[], float]


def build(architecture: str, device: torch.device) -> dict[str, nn.Module]:
    """Returns both implementations with the same random weights."""
    torch.manual_seed(0)
    theirs = timm.create_model(f"xcit_{architecture.replace('-', '_')}_224", pretrained=False)
    ours = XCiT(PUBLISHED_ARCHITECTURES[architecture])
    ours.load_state_dict(to_native(theirs.state_dict(), "timm"))
    return {"xcit": ours.train().to(device), "timm": theirs.train().to(device)}


def make_step(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    """Returns a function that makes one training step, waits for the device, and returns the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

    def step() -> float:
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if images.device.type == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    return step


def seconds(step: Step) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def show_profile(steps: dict[str, Step], device: torch.device) -> None:
    """Prints the operators with the longest times, in milliseconds per step."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    field = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    tables: dict[str, dict[str, tuple[float, int]]] = {}
    for name, step in steps.items():
        with profile(activities=activities) as recorded:
            step()
        tables[name] = {row.key: (getattr(row, field) / 1000, row.count) for row in recorded.key_averages()}
    names = {name for table in tables.values() for name in table}
    order = sorted(names, key=lambda name: -max(table.get(name, (0.0, 0))[0] for table in tables.values()))
    print(f"  {'operator':44s}" + "".join(f"{name:>12s} ms {'calls':>6s}" for name in tables))
    for name in order[:NUM_ROWS]:
        cells = [table.get(name, (0.0, 0)) for table in tables.values()]
        print(f"  {name[:44]:44s}" + "".join(f"{time_:15.1f} {calls:6d}" for time_, calls in cells))
    print(f"  {'all':44s}" + "".join(f"{sum(t for t, _ in table.values()):15.1f} {'':6s}" for table in tables.values()))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=15)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size, device = arguments.image_size, arguments.device
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(f"{platform.platform()}, {place}, {arguments.threads} thread{'s' * (arguments.threads > 1)}")
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}, "
        f"xcit {xcit.__version__}; batch {arguments.batch_size} of {size} x {size}, {arguments.rounds} rounds"
    )
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(arguments.batch_size, 3, size, size, generator=draw).to(device)
    labels = torch.randint(1000, (arguments.batch_size,), generator=draw).to(device)
    print(f"{'':14s} {'xcit':>9s} {'timm':>9s} {'ratio':>7s}   quartiles     first loss")
    for architecture in ARCHITECTURES:
        models = build(architecture, device)
        steps = {name: make_step(model, images, labels) for name, model in models.items()}
        losses = {name: step() for name, step in steps.items()}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(NUM_WARM_UP + arguments.rounds):
            for name, step in steps.items():
                taken = seconds(step)
                if number >= NUM_WARM_UP:
                    times[name].append(taken)
        medians = {name: statistics.median(values) for name, values in times.items()}
        ratios = [a / b for a, b in zip(times["xcit"], times["timm"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        print(
            f"{architecture:14s} {1000 * medians['xcit']:6.0f} ms {1000 * medians['timm']:6.0f} ms "
            f"{medians['xcit'] / medians['timm']:6.3f}x   {low:.3f}-{high:.3f}   "
            f"{losses['xcit']:.5f}, {losses['timm']:.5f}"
        )
        if arguments.profile:
            show_profile(steps, device)


if __name__ == "__main__":
    main()
