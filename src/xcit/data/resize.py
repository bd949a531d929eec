"""Resizing of 8-bit pixels, whose place is `xcit.ops`: detectors resize within the model, as torchvision's do."""

from xcit.ops.resize_8bit import fitted_size, resize_bilinear_8bit, resize_nearest_8bit

__all__ = ["fitted_size", "resize_bilinear_8bit", "resize_nearest_8bit"]
