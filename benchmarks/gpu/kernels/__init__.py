"""Triton kernels for a GPU. Each computes what operators of `xcit.ops` compute, and works with `torch.compile`.

LPI is XCiT's local patch interaction: two depthwise 3x3 convolutions with GELU and batch normalisation between them.

    lpi.py           LayerNorm, LPI with frozen batch-norm statistics, and the residual, in one pass over the tokens
    lpi_training.py  LPI with the batch's own statistics; it is differentiable, and saves only its inputs
    lpi_backward.py  the backward pass of lpi_training.py
    gram.py          LayerNorm, then the Gram matrix and the column sums of the normalised tokens
    layer_norm.py    the LayerNorm functions of lpi.py and gram.py
    rows.py          device functions of the LPI kernels
    tiles.py         the division of a batch among the programs of the LPI kernels
    use.py           changes a model so that it runs the kernels; no model runs them by default

Tensors must be on the current CUDA device, or on the CPU in Triton's interpreter. torch installs Triton on Linux, but
not on every platform: import these modules only if `is_available` returns true.
"""

import os
from importlib.util import find_spec

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter; Triton decides this when the kernels are defined."""


def is_available(device: torch.device) -> bool:
    """Returns whether the kernels can run on tensors of a device."""
    return device.type == ("cpu" if INTERPRETED else "cuda") and find_spec("triton") is not None
