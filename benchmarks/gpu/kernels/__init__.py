"""Triton kernels for a GPU. Each is a form of an operator of `ops.reference`; `torch.compile` keeps them in its graph.

    lpi.py           LayerNorm, LPI with frozen batch statistics and residual, in one pass over the tokens
    lpi_training.py  LPI with the batch's own statistics, differentiable; it keeps nothing but its input
    lpi_backward.py  its backward pass
    gram.py          LayerNorm, then the Gram matrix and the column sums of the normalised tokens
    layer_norm.py    the parts of LayerNorm that both kinds of kernels share
    rows.py          device functions of the LPI kernels
    tiles.py         how the LPI kernels divide a batch among programs

No model uses them by default: `use.py` changes a model to do so. Tensors must be on the current CUDA device, or on the
CPU in Triton's interpreter. Triton comes with torch for Linux, but not for every platform: import these modules only if
`is_available`.
"""

import os
from importlib.util import find_spec

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter; Triton decides this when they are defined."""


def is_available(device: torch.device) -> bool:
    """Whether the kernels can run on tensors of a device."""
    return device.type == ("cpu" if INTERPRETED else "cuda") and find_spec("triton") is not None
