"""XCiT beside its peers with the same weights: time, peak memory, and how both grow with the number of tokens."""

from xcit.bench.comparison import compare
from xcit.bench.contenders import INFERENCE_CONTENDERS, TRAINING_CONTENDERS
from xcit.bench.picture import draw_growth
from xcit.bench.results import BenchResult, Failure, Growth, Machine, Measurement, ModelResult, SizeResult
from xcit.bench.tables import markdown

__all__ = [
    "INFERENCE_CONTENDERS",
    "TRAINING_CONTENDERS",
    "BenchResult",
    "Failure",
    "Growth",
    "Machine",
    "Measurement",
    "ModelResult",
    "SizeResult",
    "compare",
    "draw_growth",
    "markdown",
]
