"""The second stage of the detector, which computes the class, the refined box and the mask of each region.

Regions are proposals of the first stage, which is the region proposal network. Steps are box regression deltas (see
`boxes.py`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from xcit.models.detection.boxes import decode_boxes, encode_boxes, nms_by_class
from xcit.models.detection.masks import mask_targets
from xcit.models.detection.matching import match, sample
from xcit.models.detection.regions import region_features
from xcit.models.detection.rpn import NUM_PROPOSALS

STD = (0.1, 0.1, 0.2, 0.2)
"""Standard deviations (dx, dy, dw, dh) by which steps from proposals are divided."""

BOX_SIZE, MASK_SIZE = 7, 14
"""Pixels per side of a region's features, for boxes and for masks.

A predicted mask has 2 * `MASK_SIZE` pixels per side.
"""

MIN_SCORE = 0.05
NMS_IOU = 0.5
NUM_DETECTIONS = 100

_PROPOSALS_AT_ONCE, _MASKS_AT_ONCE = 1000, 100
"""Maximum number of regions for which features are in memory at once, for boxes and for masks.

With 256 channels in float32, the features of a region take 50 kB for boxes and 200 kB for masks.
"""

PROPOSALS_AN_OBJECT = 10
"""Number of proposals per requested object, if more than `NUM_DETECTIONS` objects are requested."""

RegionFeatures = Callable[[Tensor, int], Tensor]
"""A function that computes the features of boxes from two arguments, `boxes` and `size`.

`boxes` is (n, 4), in pixels of the network's input. The result is (n, C, size, size).
"""

MATCH_IOU = 0.5
NUM_SAMPLED, POSITIVE_SHARE = 512, 0.25


class Detections(NamedTuple):
    """The objects found in an image, in descending order of their scores."""

    boxes: Tensor  # (n, 4), (x1, y1, x2, y2) in pixels of the original image
    labels: Tensor  # (n,), from 1, because 0 is the background
    scores: Tensor  # (n,), 0..1
    masks: Tensor  # (n, s, s), probabilities in the object's box; see `paste_mask`


class Objects(NamedTuple):
    """The objects in a training image."""

    boxes: Tensor  # (m, 4), (x1, y1, x2, y2) in pixels of the image, each with an area above 0
    labels: Tensor  # (m,), from 1
    masks: Tensor  # (m, height, width), 0 or 1


class BoxPredictor(nn.Module):
    """Computes logits and steps from the features of boxes, as in the published models.

    There are K + 1 logits, for the K classes and then for the background. There are steps for each of the K classes.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, num_classes + 1)
        self.bbox_pred = nn.Linear(in_features, 4 * num_classes)
        self._init_parts()

    def _init_parts(self) -> None:
        for layer, deviation in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Computes logits (n, K + 1) and steps (n, K, 4), float32, from features (n, in_features)."""
        return self.cls_score(features).float(), self.bbox_pred(features).float().unflatten(1, (-1, 4))


class RoIHeads(nn.Module):
    """The heads of the second stage: two linear layers for boxes, four convolutions for masks, a predictor after each.

    The layers are torchvision's. The rules for their outputs and for the losses are those of mmdetection.
    """

    class_weights: Tensor | None

    def __init__(self, channels: int, box_features: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        # (K + 1,), the weight of each class in the training loss, with the background last. None means equal weights.
        # The weights are not saved.
        self.register_buffer("class_weights", None, persistent=False)
        self.box_head = TwoMLPHead(channels * BOX_SIZE**2, box_features)
        self.box_predictor = BoxPredictor(box_features, num_classes)
        self.mask_head = MaskRCNNHeads(channels, (channels,) * 4, dilation=1)
        self.mask_predictor = MaskRCNNPredictor(channels, channels, num_classes)
        self._init_parts()

    def _init_parts(self) -> None:
        for linear in (self.box_head.fc6, self.box_head.fc7):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        for layer in (*self.mask_head.modules(), *self.mask_predictor.modules()):
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, layer.bias))

    def detect(
        self,
        features: RegionFeatures,
        proposals: Tensor,
        size: tuple[int, int],
        scale: Tensor,
        min_score: float,
        most: int = NUM_DETECTIONS,
    ) -> Detections:
        """Detects the objects in the proposals of one image.

        Args:
            features: function that returns the features of boxes. Each call gets a limited number of boxes.
            proposals: (n, 4), in pixels of the resized image.
            size: height and width of the resized image, without padding.
            scale: (4,), the factors by which the image was resized: width, height, width, height.
            min_score: objects with lower scores are left out.
            most: maximum number of objects.
        """
        outputs = [self._boxes(features(some, BOX_SIZE)) for some in proposals.split(_PROPOSALS_AT_ONCE)]
        logits, steps = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        boxes, labels, scores = self._select(logits, steps, proposals, size, scale, min_score, most)
        parts = zip((boxes * scale).split(_MASKS_AT_ONCE), labels.split(_MASKS_AT_ONCE), strict=True)
        masks = torch.cat([self._masks(features(some, MASK_SIZE), own).sigmoid() for some, own in parts])
        return Detections(boxes, labels + 1, scores, masks)

    def numbers_at_once(self, max_objects: int) -> int:
        """Returns the maximum number of values in memory during `detect`.

        Inference on large images plans its memory with this number.
        """
        num_features, kinds = self.box_head.fc6.in_features, self.num_classes
        channels = num_features // BOX_SIZE**2
        boxes = _PROPOSALS_AT_ONCE * 3 * (num_features + self.box_head.fc6.out_features)
        # For each region, the mask head needs memory for four maps with `MASK_SIZE` pixels per side. It also needs
        # memory for two maps and two tensors of logits with twice as many pixels per side.
        masks = _MASKS_AT_ONCE * MASK_SIZE**2 * (4 * channels + 4 * 2 * (channels + kinds))
        outputs = num_proposals(max_objects) * 10 * (kinds + 1) + max_objects * 2 * (2 * MASK_SIZE) ** 2
        return max(boxes, masks) + outputs

    def losses(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], objects: Sequence[Objects]
    ) -> dict[str, Tensor]:
        """Computes the losses for proposals that are drawn at random.

        The cross-entropy of classes and the L1 loss of boxes are divided by the number of drawn proposals. The loss of
        masks is divided by the number of pixels of all masks.

        Args:
            maps: feature maps of strides 4, 8, 16 and 32, each (B, C, height, width); further maps are not used.
            proposals: for each image, boxes (n, 4) in pixels.
            objects: for each image, its objects.
        """
        regions, labels, steps, positives, masks = [], [], [], [], []
        for own_proposals, own in zip(proposals, objects, strict=True):
            matched = match(own_proposals, own.boxes, positive=MATCH_IOU, negative=MATCH_IOU, lowest=MATCH_IOU)
            # The boxes of the objects are used as proposals too. Each of these boxes is matched to its own object.
            boxes = torch.cat([own.boxes, own_proposals])
            matched = torch.cat([torch.arange(len(own.boxes), device=matched.device), matched])
            positive, negative = sample(matched, NUM_SAMPLED, POSITIVE_SHARE)
            chosen = matched[positive]
            regions.append(boxes[torch.cat([positive, negative])])
            background = torch.full_like(negative, self.num_classes)
            labels.append(torch.cat([own.labels[chosen] - 1, background]))
            steps.append(encode_boxes(boxes[positive], own.boxes[chosen], STD))
            positives.append(boxes[positive])
            masks.append(mask_targets(own.masks, boxes[positive], chosen, 2 * MASK_SIZE))
        all_labels = torch.cat(labels)
        logits, predicted = self._boxes(region_features(maps, regions, BOX_SIZE))
        is_object = (all_labels < self.num_classes).nonzero().squeeze(1)
        object_labels = all_labels[is_object]
        num_sampled = max(len(all_labels), 1)
        # The network predicts steps and a mask for each class. Training uses only the steps and the mask for the class
        # of the object.
        box_loss = F.l1_loss(predicted[is_object, object_labels], torch.cat(steps), reduction="sum")
        mask_logits = self._masks(region_features(maps, positives, MASK_SIZE), object_labels)
        mask_loss = F.binary_cross_entropy_with_logits(mask_logits, torch.cat(masks), reduction="sum")
        return {
            "loss_classifier": F.cross_entropy(logits, all_labels, self.class_weights, reduction="sum") / num_sampled,
            "loss_box_reg": box_loss / num_sampled,
            "loss_mask": mask_loss / max(mask_logits.numel(), 1),
        }

    def _boxes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (n, K + 1) and steps (n, K, 4) of boxes, from the features of the boxes."""
        logits, steps = self.box_predictor(self.box_head(features))
        return logits, steps

    def _masks(self, features: Tensor, labels: Tensor) -> Tensor:
        """Returns mask logits (n, s, s) of boxes, from their features.

        The head computes logits for every class. For each box, this method returns the logits for the class of the box.
        `labels` (n,) contains these classes, counted from 0.
        """
        logits = self.mask_predictor(self.mask_head(features)).float()
        own: Tensor = logits[torch.arange(len(labels), device=labels.device), labels]
        return own

    def _select(
        self,
        logits: Tensor,
        steps: Tensor,
        proposals: Tensor,
        size: tuple[int, int],
        scale: Tensor,
        min_score: float,
        most: int = NUM_DETECTIONS,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Selects at most `most` objects: the objects with the highest scores, in descending order of the scores.

        Returns:
            Boxes (n, 4) in pixels of the original image, labels (n,) from 0, and scores (n,).
        """
        scores = logits.softmax(dim=-1)[:, : self.num_classes]
        # As in the published models, a proposal with y2 = 0 is treated as padding and gets the score 0.
        scores = scores * (proposals[:, 3:] != 0)
        boxes = decode_boxes(proposals, steps, STD, size) / scale
        proposal, label = (scores > min_score).nonzero(as_tuple=True)
        boxes, scores = boxes[proposal, label], scores[proposal, label]
        # NMS runs in pixels of the original image, as in mmdetection. In pixels of the resized image, rounding could
        # change which boxes are removed.
        kept = nms_by_class(boxes, scores, label, NMS_IOU)[:most]
        return boxes[kept], label[kept], scores[kept]


def num_proposals(max_objects: int) -> int:
    """Returns the number of proposals that are used to detect `max_objects` objects.

    This is the number of proposals from all maps together, and also the number of candidates from each map. For 100
    objects or fewer, it is 1000, as in the published models.
    """
    return max(NUM_PROPOSALS, PROPOSALS_AN_OBJECT * max_objects)
