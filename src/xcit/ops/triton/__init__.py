"""Triton kernels for a GPU, each a form of an operator of `ops.reference`; `torch.compile` keeps them in its graph.

    lpi.py           LayerNorm, LPI with frozen batch statistics, LayerScale and residual, in one pass over the tokens
    lpi_training.py  LPI with the batch's own statistics, differentiable; it keeps nothing but its input
    lpi_backward.py  its backward pass
    gram.py          LayerNorm, then the Gram matrix and the column sums of the normalised tokens
    layer_norm.py    what both kinds need of a LayerNorm
    rows.py          device functions of the LPI kernels
    tiles.py         how those divide a batch among programs

Triton comes with torch for Linux, not for every platform: import these modules only where `is_available`.
"""

from importlib.util import find_spec

import torch


def is_available(device: torch.device) -> bool:
    """Whether the kernels can run on tensors of a device."""
    return device.type == "cuda" and find_spec("triton") is not None
