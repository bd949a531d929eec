"""Times functions in turn on this machine, compares their times, and measures the peak speed of matrix products."""

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import torch

from xcit import ops
from xcit.machine import processor

DType = Literal["float32", "bfloat16", "float16"]

CPU_SIDES, ACCELERATOR_SIDES = (512, 1024, 2048), (2048, 4096, 8192)
"""Sides of the square matrices for `matrix_peak`."""

_SECONDS_A_SIDE = 0.5
_MAX_PRODUCTS = 20


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine on which something was measured.

    Attributes:
        name: name of the GPU or the processor.
        device: torch's name of the device, such as "cuda:0".
        threads: number of CPU threads that torch and ONNX Runtime may use.
        matrix_peak: FLOP/s of the fastest square matrix product, with the dtype and number of threads of the
            measurement.
        versions: versions of Python and of the packages that were measured, such as "torch 2.7.0".
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
    """Times several functions in rounds; each round calls every function once.

    A slow period of the machine then affects all functions. The order rotates from round to round, so that each
    function is called in each position.

    Args:
        works: the functions, by name.
        rounds: number of rounds.
        synchronize: waits until the device has finished its work.
        advance: called with 1 after each call, outside the measured time.

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
    """Returns the median of `seconds` divided by the median of `reference`, and quartiles of the rounds' ratios.

    Each round has a ratio, `seconds` / `reference`. The returned quartiles are the first and the third.
    """
    ratios = [one / other for one, other in zip(seconds, reference, strict=True)]
    low, high = ratios[0], ratios[0]
    if len(ratios) > 1:
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return statistics.median(seconds) / statistics.median(reference), (low, high)


def synchronizer(device: torch.device) -> Callable[[], None]:
    """Returns a function that waits until a device has finished; for a CPU, it does nothing."""
    if device.type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)


def matrix_peak(device: torch.device, dtype: torch.dtype, sides: Sequence[int] | None = None) -> float:
    """Times products of square matrices of several sizes, and returns the FLOP/s of the fastest product.

    The number of threads is the number that is set in torch.

    Args:
        device: the device to measure.
        dtype: the dtype of the matrices.
        sides: the sides of the matrices; None means `CPU_SIDES` or `ACCELERATOR_SIDES`.
    """
    if sides is None:
        sides = CPU_SIDES if device.type == "cpu" else ACCELERATOR_SIDES
    wait = synchronizer(device)
    best = 0.0
    for side in sides:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

        def multiply(a: torch.Tensor = a, b: torch.Tensor = b) -> object:
            return ops.linear(a, b)

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
    """Sets torch's number of threads, and restores the previous number on exit.

    On a CUDA GPU, cuDNN also selects the fastest convolution algorithms, without TF32, until the exit.
    """
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
    """Describes this machine, and measures `matrix_peak`.

    Args:
        device: the device of the measurement.
        dtype: the dtype of the measurement.
        threads: number of CPU threads.
        packages: names of the packages for which versions are reported, in addition to torch.
    """
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
    """Returns two lines of text: first the machine and the versions, then `what`, the rounds and the matrix peak."""
    threads = f"{machine.threads} thread{'s' * (machine.threads > 1)}"
    place = threads if machine.device == "cpu" else f"{machine.device}, {threads} on the CPU"
    return (
        f"{machine.name}, {place}; {', '.join(machine.versions)}",
        f"{what}, {rounds} round{'s' * (rounds != 1)}; matrix products reach {flops_per_second(machine.matrix_peak)}",
    )


def flops_per_second(value: float) -> str:
    """Formats a speed, given in FLOP/s, as GFLOP/s, or as TFLOP/s if it is at least 1e12 FLOP/s."""
    return f"{value / 1e12:.1f} TFLOP/s" if value >= 1e12 else f"{value / 1e9:.1f} GFLOP/s"


def three_digits(value: float) -> str:
    """Formats a number with three significant digits; large numbers keep all digits before the decimal point."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"
