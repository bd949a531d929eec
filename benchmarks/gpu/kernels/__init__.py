"""Triton kernels for a GPU, each a form of an operator of `ops.reference`; `torch.compile` keeps them in its graph.

    lpi.py           LayerNorm, LPI with frozen batch statistics and residual, in one pass over the tokens
    lpi_training.py  LPI with the batch's own statistics, differentiable; it keeps nothing but its input
    lpi_backward.py  its backward pass
    gram.py          LayerNorm, then the Gram matrix and the column sums of the normalised tokens
    layer_norm.py    what both kinds need of a LayerNorm
    rows.py          device functions of the LPI kernels
    tiles.py         how those divide a batch among programs

Nothing calls them by itself: `use.py` makes a model that does. Tensors lie on the current CUDA device, or on
the CPU in Triton's interpreter. Triton comes with torch for Linux, not for every platform: import these modules only
where `is_available`.
"""

import os
from importlib.util import find_spec

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, as Triton itself decides when they are defined."""


def is_available(device: torch.device) -> bool:
    """Whether the kernels can run on tensors of a device."""
    return device.type == ("cpu" if INTERPRETED else "cuda") and find_spec("triton") is not None
