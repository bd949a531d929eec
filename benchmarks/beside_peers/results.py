"""The results of a comparison: dataclasses that can be converted to JSON and back."""

import json
from dataclasses import dataclass

from xcit.config import from_dict, to_dict
from xcit.measure.clock import DType, Machine


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One contender at one image size.

    Attributes:
        contender: the contender's name.
        seconds: seconds of each round, for the whole batch.
        milliseconds: milliseconds per image, from the median of the rounds.
        ratio: the contender's median time divided by the first contender's. Above 1, the first contender is faster.
            None for the first contender, and for all if the first could not run.
        ratio_quartiles: the lower and the upper quartile of the ratios of single rounds; None if `ratio` is None.
        peak_memory: bytes per image in addition to model and input; None if memory was not measured.
        peak_share: the contender's FLOP/s divided by the machine's FLOP/s in matrix products. For all contenders, the
            FLOPs of the unfused model are used; a training step counts as three forward passes.
        difference: largest difference between the contender's outputs and the reference's, divided by the largest
            output. In training, the maximum of this value for the logits and for all gradients.
    """

    contender: str
    seconds: tuple[float, ...]
    milliseconds: float
    ratio: float | None
    ratio_quartiles: tuple[float, float] | None
    peak_memory: float | None
    peak_share: float
    difference: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A measurement that failed, and the reason in one line."""

    what: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SizeResult:
    """The results of all contenders at one image size.

    `image_size` is the side in pixels. `flops` is torch's count for one image, with 2 FLOPs per multiply-accumulate.
    """

    image_size: int
    num_tokens: int
    flops: int
    measurements: tuple[Measurement, ...]
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Fitted exponents of a contender's time and memory as powers of the number of tokens; 1 means linear growth."""

    contender: str
    time: float | None
    memory: float | None


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """The results of one model at all image sizes."""

    model: str
    sizes: tuple[SizeResult, ...]
    growth: tuple[Growth, ...]


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """A whole comparison; all other contenders are compared with `contenders[0]`."""

    machine: Machine
    contenders: tuple[str, ...]
    train: bool
    dtype: DType
    batch_size: int
    rounds: int
    models: tuple[ModelResult, ...]

    def to_json(self) -> str:
        """Returns the whole comparison as JSON, with exact floats."""
        return json.dumps(to_dict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "BenchResult":
        """Returns the comparison from the JSON that `to_json` wrote.

        Raises:
            XCiTError: if a field is missing, unknown or has another type.
        """
        return from_dict(cls, json.loads(text))
