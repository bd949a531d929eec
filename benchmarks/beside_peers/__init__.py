"""Compares XCiT with other implementations that have the same weights.

It measures time and peak memory, and how both grow with the number of tokens. A contender is one implementation in one
form, for example timm's model after `torch.compile`.
"""

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
