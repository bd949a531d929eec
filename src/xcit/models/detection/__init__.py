"""Mask R-CNN on an XCiT. All but `config` import torchvision, so nothing is imported here."""
