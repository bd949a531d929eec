"""XCA, class attention and LPI as pure functions on tensors; the one place that chooses between their forms."""

from xcit.ops.reference import POSITION_DIM, class_attention, drop_path, fourier_position, lpi, xca

__all__ = ["POSITION_DIM", "class_attention", "drop_path", "fourier_position", "lpi", "xca"]
