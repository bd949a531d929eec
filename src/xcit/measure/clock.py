"""The clock, and the machine it stands on: rounds in which all take turns, ratios with their spread, matrix peak."""

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import torch

from xcit.machine import processor

DType = Literal["float32", "bfloat16", "float16"]

CPU_SIDES, ACCELERATOR_SIDES = (512, 1024, 2048), (2048, 4096, 8192)
"""Sides of the square matrices whose product is timed."""

_SECONDS_A_SIDE = 0.5
_MAX_PRODUCTS = 20


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it was measured.

    Attributes:
        name: of the GPU, or of the processor.
        device: as torch names it.
        threads: that torch and ONNX Runtime may use on the CPU.
        matrix_peak: FLOP/s of the fastest square matrix product in the same precision, on as many threads.
        versions: of what takes part, as "torch 2.7.0".
    """

    name: str
    device: str
    threads: int
    matrix_peak: float
    versions: tuple[str, ...]


def time_rounds(
    works: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    synchronize: Callable[[], None] = lambda: None,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, tuple[float, ...]]:
    """Times each of several works once a round, so that a busy moment of the machine meets them alike.

    Every round begins with the next work, so that none always follows the same one.

    Args:
        works: by name.
        rounds: how many times each is done.
        synchronize: waits until the device is done.
        advance: called with 1 after each work, outside the time.

    Returns:
        The seconds of each round, by name.
    """
    names = [*works]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            synchronize()
            started = time.perf_counter()
            works[name]()
            synchronize()
            seconds[name].append(time.perf_counter() - started)
            advance(1)
        names = names[1:] + names[:1]
    return {name: tuple(values) for name, values in seconds.items()}


def ratio_of_medians(seconds: Sequence[float], reference: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """How many times as long as the reference, by the medians, and the quartiles of the single rounds' ratios."""
    ratios = [one / other for one, other in zip(seconds, reference, strict=True)]
    low, high = ratios[0], ratios[0]
    if len(ratios) > 1:
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return statistics.median(seconds) / statistics.median(reference), (low, high)


def synchronizer(device: torch.device) -> Callable[[], None]:
    """A function that waits until a device has done its work; the CPU has when a call returns."""
    if device.type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)


def matrix_peak(device: torch.device, dtype: torch.dtype, sides: Sequence[int] | None = None) -> float:
    """FLOP/s of the fastest square matrix product, of several sides and many tries, on torch's number of threads."""
    if sides is None:
        sides = CPU_SIDES if device.type == "cpu" else ACCELERATOR_SIDES
    wait = synchronizer(device)
    best = 0.0
    for side in sides:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)

        def multiply(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> object:
            return torch.mm(a, b, out=out)

        multiply()
        ends = time.perf_counter() + _SECONDS_A_SIDE
        for _ in range(_MAX_PRODUCTS):
            (seconds,) = time_rounds({"": multiply}, 1, synchronize=wait)[""]
            best = max(best, 2 * side**3 / seconds)
            if time.perf_counter() > ends:
                break
    return best


@contextmanager
def settings(device: torch.device, threads: int) -> Iterator[None]:
    """The number of threads, and on a GPU the fastest convolutions in full precision; as they were, afterwards."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    convolutions: AbstractContextManager[None] = nullcontext()
    if device.type == "cuda":
        convolutions = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)
    try:
        with convolutions:
            yield
    finally:
        torch.set_num_threads(num_threads)


def this_machine(device: torch.device, dtype: DType, threads: int, packages: Sequence[str] = ()) -> Machine:
    """Where it is measured, with the versions of Python, torch and the packages that take part; measures the peak."""
    return Machine(
        name=torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        device=str(device),
        threads=threads,
        matrix_peak=matrix_peak(device, getattr(torch, dtype)),
        versions=(
            f"Python {platform.python_version()}",
            *(f"{package} {version(package)}" for package in ("torch", *packages)),
        ),
    )


def headings(machine: Machine, what: str, rounds: int) -> tuple[str, str]:
    """Two lines: machine and versions; what was measured, and the machine's matrix product peak."""
    threads = f"{machine.threads} thread{'s' * (machine.threads > 1)}"
    place = threads if machine.device == "cpu" else f"{machine.device}, {threads} on the CPU"
    return (
        f"{machine.name}, {place}; {', '.join(machine.versions)}",
        f"{what}, {rounds} round{'s' * (rounds != 1)} in turn; "
        f"peak of matrix products {flops_per_second(machine.matrix_peak)}",
    )


def flops_per_second(value: float) -> str:
    """A speed with a unit that suits its size."""
    return f"{value / 1e12:.1f} TFLOP/s" if value >= 1e12 else f"{value / 1e9:.1f} GFLOP/s"


def three_digits(value: float) -> str:
    """A number with three digits, or more before its point."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"
