"""Compares the detections of a seeded random model on one photograph with stored boxes, scores and masks."""

import json
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_sample_image
from torch import nn

from xcit.models.config import XCiTConfig
from xcit.models.detection.config import MaskRCNNConfig
from xcit.models.detection.mask_rcnn import MaskRCNN

GOLDEN = Path(__file__).parents[3] / "data" / "golden_detections.json"

NUM_COMPARED = 20
"""Number of compared detections: the differences of their scores are larger than rounding errors."""


def golden_model() -> MaskRCNN:
    """Returns a model with weights drawn by NumPy: NumPy's draws do not change between versions, torch's may."""
    config = MaskRCNNConfig(
        backbone=XCiTConfig(
            patch_size=16, embed_dim=64, depth=4, num_heads=4, cls_depth=0, num_classes=0, global_pool="none"
        ),
        num_classes=5,
        channels=32,
        box_features=64,
        short_side=200,
        long_side=333,
    )
    model, draw = MaskRCNN(config).eval(), np.random.Generator(np.random.PCG64(0))
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.ndim > 1:
                fan_in = tensor[0].numel()
                tensor.data = torch.from_numpy(draw.normal(0, (2 / fan_in) ** 0.5, tensor.shape)).float()
            elif isinstance(module, nn.BatchNorm2d) and name.startswith("running"):
                tensor.data = torch.from_numpy(draw.uniform(0.5, 1.5, tensor.shape)).float()
            elif name == "bias":
                tensor.data.zero_()
    # Smaller weights, so that rounding does not change the order of the scores.
    model.roi_heads.box_predictor.cls_score.weight.data.mul_(0.25)
    model.roi_heads.box_predictor.bbox_pred.weight.data.mul_(0.3)
    model.rpn.head.bbox_pred.weight.data.mul_(0.3)
    model.roi_heads.mask_predictor.mask_fcn_logits.bias.data.fill_(0.3)
    return model


def test_detections_of_a_photograph_are_the_stored_ones() -> None:
    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    found = golden_model()([photograph])[0]
    found = {name: values[:NUM_COMPARED] for name, values in found.items()}
    areas = (found["masks"] >= 0.5).sum(dim=(1, 2, 3))
    expected = json.loads(GOLDEN.read_text())
    assert found["labels"].tolist() == expected["labels"]
    np.testing.assert_allclose(found["scores"].numpy(), expected["scores"], atol=1e-4)
    np.testing.assert_allclose(found["boxes"].numpy(), expected["boxes"], atol=0.05)
    np.testing.assert_allclose(areas.numpy(), expected["mask_areas"], rtol=0.01, atol=20)
