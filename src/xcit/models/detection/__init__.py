"""Mask R-CNN on an XCiT. Importing it imports torchvision, so that the rest of `xcit.models` does not import it."""

from xcit.models.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig
from xcit.models.detection.masks import PastedMask, paste_mask
from xcit.models.detection.roi_heads import Detections

__all__ = ["Detections", "MaskRCNN", "MaskRCNNConfig", "PastedMask", "paste_mask"]
