"""Mask R-CNN for export: the steps of `MaskRCNN.detect` after preprocessing, as one graph.

In a graph, the number n of boxes is unknown until the graph runs, so the graph can't test whether n is larger than
1000. To keep the best 1000 boxes, the graph appends 1000 empty entries, selects the best 1000 entries, and then removes
the empty entries among them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from xcit.models.detection.anchors import ANCHOR_STRIDES, anchors_at
from xcit.models.detection.boxes import decode_boxes
from xcit.models.detection.regions import pool_regions
from xcit.models.detection.roi_heads import (
    BOX_SIZE,
    MASK_SIZE,
    MIN_SCORE,
    NMS_IOU,
    NUM_DETECTIONS,
    STD,
)
from xcit.models.detection.rpn import NMS_IOU as PROPOSAL_IOU
from xcit.models.detection.rpn import NUM_PROPOSALS
from xcit.models.detection.rpn import STD as PROPOSAL_STD

if TYPE_CHECKING:
    from xcit.models.detection.mask_rcnn import MaskRCNN


class DetectorGraph(nn.Module):
    """Computes the fields of `Detections` from one normalised image (1, C, H, W), its size and its scale.

    H and W are multiples of 32; the image is padded with zeros on the right and at the bottom. The size (2,) is the
    height and width of the image without padding. The scale (4,) is (x, y, x, y): x is the width of the resized image
    divided by the width of the original image, and y is the same ratio of the heights. The boxes in the output are in
    pixels of the original image, and all have scores above `MIN_SCORE`.

    The layers of a float16 model compute in float16. Coordinates, scores and RoIAlign are computed in float32, because
    float16 has no number between 2048 and 2050.
    """

    def __init__(self, model: "MaskRCNN") -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, size: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns boxes (n, 4), labels (n,) from 1, scores (n,) and masks (n, s, s), in descending order of scores."""
        maps = self.model._maps(images)
        boxes, labels, scores = self._select(maps, self._proposals(maps, size), size, scale)
        heads = self.model.roi_heads
        logits = heads.mask_predictor(heads.mask_head(_pool(maps, boxes * scale, MASK_SIZE))).float()
        own = logits.gather(1, labels[:, None, None, None].expand(-1, 1, *logits.shape[2:])).squeeze(1)
        return boxes, labels + 1, scores, own.sigmoid()

    def _proposals(self, maps: Sequence[Tensor], size: Tensor) -> Tensor:
        """Returns the proposals (n, 4) of the image, as `RegionProposalNetwork.proposals` does."""
        rpn = self.model.rpn
        boxes, scores, levels = [], [], []
        for level, (logits, steps) in enumerate(zip(*rpn(maps), strict=True)):
            filled = torch.cat([logits[0].sigmoid(), logits.new_full((NUM_PROPOSALS,), -1.0)])
            best, index = filled.topk(NUM_PROPOSALS)
            index = torch.where(best >= 0, index, 0)
            anchors = anchors_at(index, maps[level].shape[-1], ANCHOR_STRIDES[level], rpn.anchor_scale)
            boxes.append(decode_boxes(anchors, steps[0][index], PROPOSAL_STD, size))
            scores.append(best)
            levels.append(torch.full_like(index, level))
        candidates, all_scores = torch.cat(boxes), torch.cat(scores)
        kept = _nms_by_class(candidates, all_scores, torch.cat(levels), PROPOSAL_IOU)
        kept, is_one = _first(kept, NUM_PROPOSALS)
        chosen: Tensor = kept[(is_one & (all_scores[kept] >= 0)).nonzero().squeeze(1)]
        return candidates[chosen]

    def _select(
        self, maps: Sequence[Tensor], proposals: Tensor, size: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the boxes, labels and scores of the detections, as `RoIHeads._select` does."""
        heads = self.model.roi_heads
        logits, steps = heads.box_predictor(heads.box_head(_pool(maps, proposals, BOX_SIZE)))
        scores = logits.softmax(dim=-1)[:, : heads.num_classes] * (proposals[:, 3:] != 0)
        boxes = decode_boxes(proposals, steps, STD, size) / scale
        proposal, label = (scores > MIN_SCORE).nonzero().unbind(1)
        boxes, scores = boxes[proposal, label], scores[proposal, label]
        kept, is_one = _first(_nms_by_class(boxes, scores, label, NMS_IOU), NUM_DETECTIONS)
        kept = kept[is_one.nonzero().squeeze(1)]
        return boxes[kept], label[kept], scores[kept]


def _nms_by_class(boxes: Tensor, scores: Tensor, classes: Tensor, iou: float) -> Tensor:
    """Does what `boxes.nms_by_class` does, but always in one NMS call, and without a special case for zero boxes."""
    from torchvision.ops import nms

    most = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()
    kept: Tensor = nms(boxes + (classes.to(boxes) * (most + 1))[:, None], scores, iou)
    return kept


def _first(indices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the first `count` indices, padded with zeros, and a mask that is False for padding; both are (count,)."""
    filled = torch.cat([indices, indices.new_full((count,), -1)])[:count]
    return filled.clamp(min=0), filled >= 0


def _pool(maps: Sequence[Tensor], boxes: Tensor, size: int) -> Tensor:
    """Returns the features (n, channels, size, size) of boxes (n, 4).

    The features are computed in float32, and then converted to the dtype of the maps.
    """
    regions = torch.cat([boxes.new_zeros(boxes.shape[0], 1), boxes], dim=1)
    return pool_regions([level.float() for level in maps], regions, size).to(maps[0].dtype)
