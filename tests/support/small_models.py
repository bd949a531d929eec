"""Builds a small model of each kind, and computes all outputs of a model as one row of numbers."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from xcit.models import XCiT, XCiTConfig
from xcit.models.detection.config import MaskRCNNConfig
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.models.dino import DINO, DINOHeadConfig
from xcit.models.segmentation import SegmenterConfig, build_segmenter

CLASSIFIER = XCiTConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2, cls_depth=2, num_classes=5)
FEATURES = replace(CLASSIFIER, num_classes=0, patch_size=4)
BACKBONE = replace(CLASSIFIER, patch_size=4, cls_depth=0, num_classes=0, global_pool="none")
KINDS = ("classifier", "dino", "upernet", "sem-fpn", "detector")


def build(kind: str) -> nn.Module:
    """Returns a small model of a kind, in evaluation mode, with random weights from `lively`."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"backbone": BACKBONE, "num_classes": 4, "channels": 16}
    model: nn.Module
    if kind == "classifier":
        model = XCiT(CLASSIFIER)
    elif kind == "dino":
        model = DINO(FEATURES, DINOHeadConfig(out_dim=8, hidden_dim=16, bottleneck_dim=8)).student
    elif kind == "detector":
        model = MaskRCNN(MaskRCNNConfig(box_features=16, short_side=32, long_side=48, **shape))
    else:
        model = build_segmenter(SegmenterConfig(kind=cast(Any, kind), auxiliary_channels=8, dropout=0.0, **shape))
    lively(model)
    return model


def lively(model: Any) -> Any:
    """Draws weights so large that every layer changes the outputs; returns the model in evaluation mode."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1 and "temperature" not in name:
                value.normal_(std=value[0].numel() ** -0.5)
            elif name.endswith("bias"):
                value.normal_(std=0.1)
    return model.eval()


IMAGES = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))


def forward(model: nn.Module, image: Tensor = IMAGES) -> Tensor:
    """Returns all outputs of a model for images as one row of numbers, through which gradients can flow."""
    if isinstance(model, MaskRCNN):
        maps = list(model._maps(image))
        logits, steps = model.rpn(maps)
        heads = model.roi_heads
        scores, offsets = heads.box_predictor(heads.box_head(maps[0][:, :, :7, :7]))
        masks = heads.mask_predictor(heads.mask_head(maps[0][:, :, :14, :14]))
        return torch.cat([part.flatten() for part in (*logits, *steps, scores, offsets, masks)])
    if "DINO" in type(model).__name__ or not hasattr(model, "config"):
        return torch.cat([part.flatten() for part in model([image])])
    if hasattr(model, "decode"):
        return torch.cat([part.flatten() for part in model(image, with_auxiliary=True) if part is not None])
    return model(image).flatten()


def layers(model: nn.Module, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if type(module) in (kinds or (nn.Linear, nn.Conv2d))}
