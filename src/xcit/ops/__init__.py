"""The operators of XCiT as functions on tensors. `xca` chooses between several forms with equal results up to rounding.

The operators are cross-covariance attention (XCA), class attention, local patch interaction (LPI), the Fourier code of
positions, and stochastic depth.
"""

from xcit.ops.forms import (
    attention_from_gram,
    class_attention,
    class_query,
    class_value,
    gram,
    mixing_matrix,
    xca,
    xca_in_graph,
    xca_of_qkv,
)
from xcit.ops.products import linear
from xcit.ops.reference import POSITION_DIM, drop_path, fourier_position, lpi

__all__ = [
    "POSITION_DIM",
    "attention_from_gram",
    "class_attention",
    "class_query",
    "class_value",
    "drop_path",
    "fourier_position",
    "gram",
    "linear",
    "lpi",
    "mixing_matrix",
    "xca",
    "xca_in_graph",
    "xca_of_qkv",
]
