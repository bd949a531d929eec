"""The results of a comparison, as plain values that can be converted to JSON and back."""

import json
from dataclasses import dataclass

from xcit.config import from_dict, to_dict
from xcit.measure.clock import DType, Machine


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One contender at one image size.

    Attributes:
        contender: its name.
        seconds: seconds of each round, for the whole batch.
        milliseconds: milliseconds per image, from the median round.
        ratio: its median time divided by the first contender's: above 1, the first is faster. None for the first, and
            if the first could not run.
        ratio_quartiles: the lower and upper quartile of the rounds' ratios.
        peak_memory: bytes per image in addition to model and input; None if it was not measured.
        peak_share: share of the machine's matrix peak that it reached, by the FLOPs of the plain model, whatever it
            computes itself; a training step counts as three forward passes.
        difference: largest difference of its outputs from the reference's, divided by the largest value; in training,
            of the logits and of all gradients, whichever is larger.
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
    """A measurement that failed, with the reason in one line."""

    what: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SizeResult:
    """All contenders at one image size (side in pixels).

    `flops` are torch's for one image, 2 per multiply-accumulate.
    """

    image_size: int
    num_tokens: int
    flops: int
    measurements: tuple[Measurement, ...]
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Fitted exponents of a contender's time and memory against the number of tokens; 1 is linear."""

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
    """A whole comparison; the others are compared with `contenders[0]`."""

    machine: Machine
    contenders: tuple[str, ...]
    train: bool
    dtype: DType
    batch_size: int
    rounds: int
    models: tuple[ModelResult, ...]

    def to_json(self) -> str:
        """Returns all of it as JSON, with exact floats."""
        return json.dumps(to_dict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "BenchResult":
        """Reads what `to_json` wrote.

        Raises:
            XCiTError: if a field is missing, unknown or has another type.
        """
        return from_dict(cls, json.loads(text))
