"""Builds the contenders, compares their outputs with the reference, times them in turn, and measures their memory."""

import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from beside_peers.contenders import build, build_reference, check_contenders
from beside_peers.memory import peak_memory_in_new_process
from beside_peers.results import (
    BenchResult,
    DType,
    Failure,
    Growth,
    Measurement,
    ModelResult,
    SizeResult,
)
from beside_peers.work import Case, Work
from xcit.errors import XCiTError
from xcit.inference.reading import default_device
from xcit.measure.clock import ratio_of_medians, settings, synchronizer, this_machine, time_rounds
from xcit.measure.complexity import Complexity, complexity, fitted_exponent
from xcit.measure.memory import MemoryUnknownError, cuda_growth
from xcit.zoo.architectures import ARCHITECTURES
from xcit.zoo.names import find_architecture

TOLERANCES: dict[DType, float] = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
"""Largest difference of outputs that rounding can cause, relative to the largest output."""

FORWARDS_A_STEP = 3
"""Cost of a training step in forward passes: for each product of the forward pass, the backward pass has two."""

_REASON_LENGTH = 200


def compare(
    models: Sequence[str],
    sizes: Sequence[int],
    contenders: Sequence[str] = ("xcit", "timm"),
    *,
    train: bool = False,
    batch_size: int = 1,
    dtype: DType = "float32",
    device: str | torch.device | None = None,
    threads: int | None = None,
    rounds: int = 10,
    memory: bool = True,
    started: Callable[[int], None] = lambda _: None,
    advance: Callable[[int], None] = lambda _: None,
    announce: Callable[[str], None] = lambda _: None,
) -> BenchResult:
    """Measures contenders side by side, with the same weights and images.

    Args:
        models: names of architectures or of checkpoints. For a checkpoint, its architecture is measured; the weights
            are always random.
        sizes: sides of square images, in pixels.
        contenders: names from `INFERENCE_CONTENDERS`, or from `TRAINING_CONTENDERS` if `train` is true. Each of the
            others is compared with the first.
        train: whether to measure a training step (forward pass, cross-entropy, backward pass), not a forward pass.
        batch_size: number of images in a batch.
        dtype: dtype of weights and images; in training, dtype of autocast. On a GPU, float32 does not use TF32.
        device: device of the computation; None means a GPU if there is one, else the CPU.
        threads: number of CPU threads of torch and of ONNX Runtime; None means torch's default.
        rounds: number of times that each contender is timed at each size.
        memory: whether to measure peak memory too; `xcit.measure.memory` defines it.
        started: called one time, with the number of units of work.
        advance: called with the number of units that were finished since the last call.
        announce: called with one line for each contender that could not be measured; the comparison continues.

    Raises:
        XCiTError: before any measurement, if a name, a size or a setting is wrong or a package is missing. Also if the
            outputs of a contender differ from the outputs of the reference, the unfused model in float32.
    """
    place = torch.device(device) if device is not None else default_device()
    threads = torch.get_num_threads() if threads is None else threads
    numbers = [
        ("batch_size", batch_size),
        ("threads", threads),
        ("rounds", rounds),
        *(("size", size) for size in sizes),
    ]
    for name, number in numbers:
        if number < 1:
            raise XCiTError(f"{name} is {number}, but must be at least 1")
    if not (models and sizes and contenders):
        raise XCiTError("there is nothing to measure: name at least one model, one size and one contender")
    architectures = [find_architecture(name) for name in models]
    check_contenders(contenders, architectures, train=train, dtype=dtype, device=place)
    counts = {name: [complexity(ARCHITECTURES[name], size) for size in sizes] for name in architectures}
    if memory and place.type == "cpu" and sys.platform != "linux":
        announce("peak memory on the CPU is measured on Linux only")
        memory = False
    in_processes = memory and place.type == "cpu"
    started(len(architectures) * len(sizes) * len(contenders) * (1 + rounds + in_processes))
    found = []
    with settings(place, threads), tempfile.TemporaryDirectory() as folder:
        packages = dict.fromkeys(
            name.partition("-")[0] for name in contenders
        )  # a contender's name begins with the name of its package
        machine = this_machine(place, dtype, threads, [package for package in packages if package != "xcit"])
        for name in architectures:
            results = []
            for count in counts[name]:
                case = Case(
                    architecture=name,
                    image_size=count.image_size[0],
                    batch_size=batch_size,
                    train=train,
                    dtype=dtype,
                    device=str(place),
                    threads=threads,
                )
                result = _measure(
                    case,
                    count,
                    contenders,
                    Path(folder),
                    matrix_peak=machine.matrix_peak,
                    rounds=rounds,
                    memory=memory,
                    advance=advance,
                )
                for failure in result.failures:
                    announce(f"{name} at {case.image_size} px: {failure.what}: {failure.reason}")
                results.append(result)
            found.append(ModelResult(model=name, sizes=tuple(results), growth=_growth(results, contenders)))
    return BenchResult(
        machine=machine,
        contenders=tuple(contenders),
        train=train,
        dtype=dtype,
        batch_size=batch_size,
        rounds=rounds,
        models=tuple(found),
    )


def _measure(
    case: Case,
    count: Complexity,
    contenders: Sequence[str],
    folder: Path,
    *,
    matrix_peak: float,
    rounds: int,
    memory: bool,
    advance: Callable[[int], None],
) -> SizeResult:
    """Measures all contenders of one case, and collects failures with their reasons; wrong outputs raise an error."""
    device = torch.device(case.device)
    in_processes = memory and device.type == "cpu"
    try:
        reference = build_reference(case).outputs()
    except (RuntimeError, ValueError) as error:
        reason = _in_one_line(error)
        raise XCiTError(f"{case.architecture} can't be measured at {case.image_size} px: {reason}") from None
    torch.compiler.reset()  # so that compilation does not depend on earlier sizes
    ready: dict[str, _Ready] = {}
    failures: list[Failure] = []
    for name in contenders:
        try:
            ready[name] = _prepare(name, case, folder, memory=memory)
            advance(1)
        except Exception as error:  # compilers and other packages may raise any error
            failures.append(Failure(what=name, reason=_in_one_line(error)))
            advance(1 + rounds + in_processes)
    differences = {name: _checked_difference(name, one.outputs, reference, case) for name, one in ready.items()}
    peaks = {name: one.peak_memory for name, one in ready.items()}
    works = {name: one.work for name, one in ready.items()}
    seconds = time_rounds(works, rounds, synchronize=synchronizer(device), advance=advance)
    ready.clear()
    works.clear()
    if in_processes:
        for name in peaks:
            try:
                peaks[name] = peak_memory_in_new_process(name, case, folder)
            except MemoryUnknownError as error:
                failures.append(Failure(what=f"{name}, peak memory", reason=str(error)))
            advance(1)
    arithmetic = case.batch_size * count.torch_flops * (FORWARDS_A_STEP if case.train else 1)
    measurements = []
    for name, times in seconds.items():
        compared = name != contenders[0] and contenders[0] in seconds
        ratio, quartiles = ratio_of_medians(times, seconds[contenders[0]]) if compared else (None, None)
        measurements.append(
            Measurement(
                contender=name,
                seconds=times,
                milliseconds=1000 * statistics.median(times) / case.batch_size,
                ratio=ratio,
                ratio_quartiles=quartiles,
                peak_memory=peaks[name],
                peak_share=arithmetic / statistics.median(times) / matrix_peak,
                difference=differences[name],
            )
        )
    return SizeResult(
        image_size=case.image_size,
        num_tokens=count.num_tokens,
        flops=count.torch_flops,
        measurements=tuple(measurements),
        failures=tuple(failures),
    )


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """A contender that has run at least once, and its peak memory if it was measured on the GPU."""

    work: Work
    outputs: list[Tensor]
    peak_memory: float | None


def _prepare(name: str, case: Case, folder: Path, *, memory: bool) -> _Ready:
    """Builds a contender and runs it twice."""
    work = build(name, case, folder)
    device = torch.device(case.device)
    if not memory or device.type != "cuda":
        outputs = work.outputs()
        work()
        return _Ready(work=work, outputs=outputs, peak_memory=None)
    allocated = torch.cuda.memory_allocated(device)
    outputs = work.outputs()
    return _Ready(work=work, outputs=outputs, peak_memory=cuda_growth(work, allocated, device) / case.batch_size)


def _checked_difference(name: str, outputs: Sequence[Tensor], reference: Sequence[Tensor], case: Case) -> float:
    """Returns the largest difference between a contender's outputs and the reference's, relative to the largest output.

    Raises:
        XCiTError: if the difference is larger than rounding can explain.
    """
    pairs = zip(outputs, reference, strict=True)
    difference = max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)
    tolerance = TOLERANCES[case.dtype]
    if not difference <= tolerance:
        raise XCiTError(
            f"{name} does not compute what {case.architecture} does at {case.image_size} px: its outputs differ by "
            f"{difference:.1e} of the largest, more than the {tolerance:g} that {case.dtype} explains"
        )
    return difference


def _in_one_line(error: Exception) -> str:
    """Returns an error's type and the beginning of its message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_REASON_LENGTH]}{'...' if len(text) > _REASON_LENGTH else ''}"


def _growth(results: Sequence[SizeResult], contenders: Sequence[str]) -> tuple[Growth, ...]:
    """Returns the exponents of each contender's time and memory, fitted over the sizes at which it was measured."""
    growth = []
    for name in contenders:
        points = [(r.num_tokens, m) for r in results for m in r.measurements if m.contender == name]
        times = [(tokens, m.milliseconds) for tokens, m in points]
        memories = [(tokens, m.peak_memory) for tokens, m in points if m.peak_memory]
        growth.append(Growth(contender=name, time=fitted_exponent(times), memory=fitted_exponent(memories)))
    return tuple(growth)
