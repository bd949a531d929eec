"""Measures how fast a model is on this machine and how much memory it needs, for `xcit bench`."""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from xcit.config import from_dict, to_dict
from xcit.deploy import is_exported, load_exported
from xcit.errors import XCiTError
from xcit.inference.reading import default_device
from xcit.machine import find_device
from xcit.measure.clock import DType, Machine, settings, synchronizer, this_machine, time_rounds
from xcit.measure.memory import MemoryUnknownError, cuda_growth, growth_in_new_process, resident_growth
from xcit.models import XCiT
from xcit.zoo import get_model
from xcit.zoo.architectures import ARCHITECTURES
from xcit.zoo.kinds import kind_of_config
from xcit.zoo.names import find_architecture, is_file, is_known

SEED = 0


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """The settings of a measurement of speed.

    Attributes:
        sizes: sides of the square images, in pixels.
        batch_sizes: batch sizes; each of them is measured at each image size.
        dtype: dtype of weights and images. On a GPU, float32 does not use TF32.
        device: where to compute; None means a GPU if there is one, else the CPU.
        threads: number of CPU threads; None means the number that is set in torch.
        rounds: number of timed forward passes at each image size and batch size.
        memory: whether to measure peak memory too (as defined in `xcit.measure.memory`).

    Raises:
        XCiTError: if a number is below 1, or `sizes` or `batch_sizes` is empty.
    """

    sizes: tuple[int, ...] = (224,)
    batch_sizes: tuple[int, ...] = (1,)
    dtype: DType = "float32"
    device: str | None = None
    threads: int | None = None
    rounds: int = 10
    memory: bool = True

    def __post_init__(self) -> None:
        if not (self.sizes and self.batch_sizes):
            raise XCiTError("there is nothing to measure: give at least one size and one batch size")
        numbers = [("rounds", self.rounds), ("threads", 1 if self.threads is None else self.threads)]
        numbers += [("size", size) for size in self.sizes] + [("batch_size", size) for size in self.batch_sizes]
        for name, number in numbers:
            if number < 1:
                raise XCiTError(f"{name} is {number}, but must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The times and the peak memory of a forward pass on a batch of square images.

    Attributes:
        image_size: side of the images, in pixels.
        batch_size: number of images in the forward pass.
        seconds: times of the forward passes, each for the whole batch.
        peak_memory: bytes that the forward pass needs for the whole batch, in addition to model and input; None if the
            peak was not measured.
    """

    image_size: int
    batch_size: int
    seconds: tuple[float, ...]
    peak_memory: float | None

    @property
    def milliseconds(self) -> float:
        """Milliseconds per image, from the median of `seconds`."""
        return 1000 * statistics.median(self.seconds) / self.batch_size

    @property
    def images_per_second(self) -> float:
        """Images per second, from the median of `seconds`."""
        return self.batch_size / statistics.median(self.seconds)


@dataclass(frozen=True, kw_only=True)
class SpeedReport:
    """The speeds of a model at all image sizes and batch sizes.

    Attributes:
        model: the name or file that was measured.
        machine: the machine on which it was measured.
        config: the settings.
        speeds: the results, one per image size and batch size.
    """

    model: str
    machine: Machine
    config: SpeedConfig
    speeds: tuple[Speed, ...]


def measure_speed(
    model: str,
    config: SpeedConfig,
    *,
    started: Callable[[int], None] = lambda _: None,
    advance: Callable[[int], None] = lambda _: None,
    announce: Callable[[str], None] = lambda _: None,
) -> SpeedReport:
    """Measures the time and the peak memory of the forward pass of a fused model, on noise with a fixed seed.

    Args:
        model: the name of an architecture or model, a weights file, or an exported file. For a name, the model
            gets random weights, because the values of the weights do not change the time. An exported file runs in its
            own runtime.
        config: the settings.
        started: called once with the number of units of work.
        advance: called with the number of units that were done since the last call.
        announce: called with a line if peak memory can't be measured.

    Raises:
        XCiTError: if the model does not exist or can't be loaded, or does not accept an image size or the dtype.
    """
    device = find_device(config.device) if config.device is not None else default_device()
    threads = torch.get_num_threads() if config.threads is None else config.threads
    memory = config.memory
    if memory and device.type == "cpu" and sys.platform != "linux":
        announce("peak memory on the CPU is measured on Linux only")
        memory = False
    in_processes = memory and device.type == "cpu"
    passes = [
        _Pass(model=model, image_size=size, batch_size=batch, dtype=config.dtype, device=str(device), threads=threads)
        for size in config.sizes
        for batch in config.batch_sizes
    ]
    with settings(device, threads):  # the number of threads of an exported file is fixed when it is opened
        network = _build(model)
    kind = kind_of_config(network.config)
    if kind.float32_only and config.dtype != "float32":
        raise XCiTError(f"{model}: a {kind.name} computes only in float32, not in {config.dtype}")
    network = network.to(device, getattr(torch, config.dtype))
    started(len(passes) * (1 + config.rounds + in_processes))
    speeds = []
    with settings(device, threads):
        machine = this_machine(device, config.dtype, threads)
        for one in passes:
            work = one.of(network)
            allocated = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            try:
                work()
            except (RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise XCiTError(f"{model} can't be measured at {one.image_size} px: {reason[:200]}") from None
            advance(1)
            peak: float | None = cuda_growth(work, allocated, device) if memory and device.type == "cuda" else None
            wait = synchronizer(device)
            seconds = time_rounds({"": work}, config.rounds, synchronize=wait, advance=advance)[""]
            if in_processes:
                try:
                    peak = growth_in_new_process("xcit.measure.speed:measure_memory", to_dict(one))
                except MemoryUnknownError as error:
                    announce(f"peak memory at {one.image_size} px, batch {one.batch_size}: {error}")
                advance(1)
            speeds.append(
                Speed(image_size=one.image_size, batch_size=one.batch_size, seconds=seconds, peak_memory=peak)
            )
    return SpeedReport(model=model, machine=machine, config=config, speeds=tuple(speeds))


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """The settings of one forward pass, as values that can be sent to another process as JSON."""

    model: str
    image_size: int
    batch_size: int
    dtype: DType
    device: str
    threads: int

    def of(self, network: Any) -> Callable[[], object]:
        """Returns a function that runs the forward pass. `network` must already have the right device and dtype."""
        kind = kind_of_config(network.config)
        generator = torch.Generator().manual_seed(SEED)
        channels = kind.backbone(network.config).in_channels
        images = torch.rand(self.batch_size, channels, self.image_size, self.image_size, generator=generator)
        images = images.to(self.device, getattr(torch, self.dtype))

        def run() -> object:
            with torch.inference_mode():
                return kind.forward(network, images)

        return run


def measure_memory(request: dict[str, Any]) -> int:
    """Returns the peak memory of a forward pass on the CPU, in bytes; `request` has the fields of `_Pass`.

    This function must be called in a new process (see `xcit.measure.memory`).
    """
    one = from_dict(_Pass, request)
    torch.set_num_threads(one.threads)
    return resident_growth(one.of(_build(one.model).to(getattr(torch, one.dtype))))


def _build(model: str) -> Any:
    """Builds a fused model from a file, or with seeded random weights from the name of an architecture or model."""
    if is_exported(model):
        return load_exported(model)
    torch.manual_seed(SEED)
    if not is_file(model) and not is_known(model):
        return XCiT(ARCHITECTURES[find_architecture(model)]).eval().fuse()
    return get_model(model).fuse()
