"""XCiT beside its peers with the same weights: time, peak memory, and how both grow with the number of tokens."""

from beside_peers.comparison import compare
from beside_peers.contenders import INFERENCE_CONTENDERS, TRAINING_CONTENDERS
from beside_peers.picture import draw_growth
from beside_peers.results import BenchResult, Failure, Growth, Machine, Measurement, ModelResult, SizeResult
from beside_peers.tables import markdown

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
