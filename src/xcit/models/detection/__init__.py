"""Mask R-CNN on an XCiT. All modules but `config` import torchvision, so nothing is imported here."""
