"""What a comparison found, as plain values that go to JSON and come back."""

import json
from dataclasses import dataclass

from xcit.config import from_dict, to_dict
from xcit.measure.clock import DType, Machine


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One contender at one image size.

    Attributes:
        contender: its name.
        seconds: of each round, for the whole batch.
        milliseconds: an image, from the median round.
        ratio: its median time over the first contender's, so above 1 the first is that many times faster; none for the
            first, and where the first could not run.
        ratio_quartiles: the lower and upper quartile of the single rounds' ratios.
        peak_memory: bytes an image above model and input; none where it was not measured.
        peak_share: the share of the machine's matrix product peak that it reached, by the arithmetic of the plain model
            whatever it computes itself; a training step counts as three forward passes.
        difference: of its outputs from the reference's, largest difference over largest value; in training, of the
            logits and of all gradients, whichever differ more.
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
    """What could not be measured, and why in one line."""

    what: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SizeResult:
    """All contenders at one image size (pixels a side); `flops` are torch's of one image, 2 a multiply-accumulate."""

    image_size: int
    num_tokens: int
    flops: int
    measurements: tuple[Measurement, ...]
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The fitted exponents of a contender's time and memory against the number of tokens: 1 is linear."""

    contender: str
    time: float | None
    memory: float | None


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """One model at all sizes."""

    model: str
    sizes: tuple[SizeResult, ...]
    growth: tuple[Growth, ...]


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """A whole comparison; `contenders[0]` is what the others are compared with."""

    machine: Machine
    contenders: tuple[str, ...]
    train: bool
    dtype: DType
    batch_size: int
    rounds: int
    models: tuple[ModelResult, ...]

    def to_json(self) -> str:
        """All of it as JSON, floats to the last bit."""
        return json.dumps(to_dict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "BenchResult":
        """What `to_json` wrote.

        Raises:
            XCiTError: if a field is missing, unknown or of another type.
        """
        return from_dict(cls, json.loads(text))
