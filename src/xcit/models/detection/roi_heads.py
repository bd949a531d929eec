"""The second stage: class, exact box and mask of each region."""

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
"""Of the steps from proposals."""

BOX_SIZE, MASK_SIZE = 7, 14
"""Pixels a side of what is cut out of the maps; a mask is twice as large."""

MIN_SCORE = 0.05
NMS_IOU = 0.5
NUM_DETECTIONS = 100

_PROPOSALS_AT_ONCE, _MASKS_AT_ONCE = 1000, 100
"""Regions whose features exist at once, 50 kB and 200 kB each."""

PROPOSALS_AN_OBJECT = 10
"""Proposals that are looked at for each object that may be found, where more than the published hundred may be."""

RegionFeatures = Callable[[Tensor, int], Tensor]
"""Takes boxes (n, 4) in pixels of the image as the network sees it, and pixels a side; gives (n, C, side, side)."""

MATCH_IOU = 0.5
NUM_SAMPLED, POSITIVE_SHARE = 512, 0.25


class Detections(NamedTuple):
    """What was found in an image, best first."""

    boxes: Tensor  # (n, 4), (x1, y1, x2, y2) in pixels of the image as it was given
    labels: Tensor  # (n,), from 1: 0 would be the background
    scores: Tensor  # (n,), 0..1
    masks: Tensor  # (n, s, s), probabilities of the object over its box; see `paste_mask`


class Objects(NamedTuple):
    """What is in an image to train on."""

    boxes: Tensor  # (m, 4), (x1, y1, x2, y2) in its pixels, each with an area
    labels: Tensor  # (m,), from 1
    masks: Tensor  # (m, height, width), 0 or 1


class BoxPredictor(nn.Module):
    """Logits of the classes, the background's last, and steps for each class, as the published models have them."""

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
        """Features (n, in_features) to logits (n, K + 1) and steps (n, K, 4), float32."""
        return self.cls_score(features).float(), self.bbox_pred(features).float().unflatten(1, (-1, 4))


class RoIHeads(nn.Module):
    """Two linear layers for the box, four convolutions for the mask; torchvision's layers, mmdetection's rules."""

    class_weights: Tensor | None

    def __init__(self, channels: int, box_features: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        # (K + 1,), what a region of each class, the background last, counts in training; no part of what is saved.
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
        """What the proposals of one image hold.

        Args:
            features: of boxes of the image; asked for some boxes at a time.
            proposals: (n, 4).
            size: its height and width as the network sees it, without padding.
            scale: (4,), width, height, width, height as the network sees it by that of the image as it was given.
            min_score: what is scored less is left out.
            most: objects.
        """
        outputs = [self._boxes(features(some, BOX_SIZE)) for some in proposals.split(_PROPOSALS_AT_ONCE)]
        logits, steps = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        boxes, labels, scores = self._select(logits, steps, proposals, size, scale, min_score, most)
        parts = zip((boxes * scale).split(_MASKS_AT_ONCE), labels.split(_MASKS_AT_ONCE), strict=True)
        masks = torch.cat([self._masks(features(some, MASK_SIZE), own).sigmoid() for some, own in parts])
        return Detections(boxes, labels + 1, scores, masks)

    def numbers_at_once(self, max_objects: int) -> int:
        """The most numbers that exist at once in `detect`: the model of memory of images in stripes."""
        num_features, kinds = self.box_head.fc6.in_features, self.num_classes
        channels = num_features // BOX_SIZE**2
        boxes = _PROPOSALS_AT_ONCE * 3 * (num_features + self.box_head.fc6.out_features)
        # Four maps of a region at a time, then twice as large ones and their logits.
        masks = _MASKS_AT_ONCE * MASK_SIZE**2 * (4 * channels + 4 * 2 * (channels + kinds))
        outputs = num_proposals(max_objects) * 10 * (kinds + 1) + max_objects * 2 * (2 * MASK_SIZE) ** 2
        return max(boxes, masks) + outputs

    def losses(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], objects: Sequence[Objects]
    ) -> dict[str, Tensor]:
        """Losses of sampled proposals: classes and L1 of boxes by their number, masks by that of their pixels."""
        regions, labels, steps, positives, masks = [], [], [], [], []
        for own_proposals, own in zip(proposals, objects, strict=True):
            matched = match(own_proposals, own.boxes, positive=MATCH_IOU, negative=MATCH_IOU, lowest=MATCH_IOU)
            # The objects themselves are proposals too, each its own.
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
        # A class-specific step and mask: those of the object's class alone are trained.
        box_loss = F.l1_loss(predicted[is_object, object_labels], torch.cat(steps), reduction="sum")
        mask_logits = self._masks(region_features(maps, positives, MASK_SIZE), object_labels)
        mask_loss = F.binary_cross_entropy_with_logits(mask_logits, torch.cat(masks), reduction="sum")
        return {
            "loss_classifier": F.cross_entropy(logits, all_labels, self.class_weights, reduction="sum") / num_sampled,
            "loss_box_reg": box_loss / num_sampled,
            "loss_mask": mask_loss / max(mask_logits.numel(), 1),
        }

    def _boxes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, K + 1) and steps (n, K, 4) of boxes."""
        logits, steps = self.box_predictor(self.box_head(features))
        return logits, steps

    def _masks(self, features: Tensor, labels: Tensor) -> Tensor:
        """Logits (n, s, s) of the masks of boxes of these classes (n,), counted from 0."""
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
        """Boxes (n, 4) in pixels of the image as it was given, labels from 0 and scores (n,), best first."""
        scores = logits.softmax(dim=-1)[:, : self.num_classes]
        # As published: what ends at the upper edge was taken for padding, whose scores are below any limit.
        scores = scores * (proposals[:, 3:] != 0)
        boxes = decode_boxes(proposals, steps, STD, size) / scale
        proposal, label = (scores > min_score).nonzero(as_tuple=True)
        boxes, scores = boxes[proposal, label], scores[proposal, label]
        # In pixels of the image as it was given, and not of the network's: the rounding is another.
        kept = nms_by_class(boxes, scores, label, NMS_IOU)[:most]
        return boxes[kept], label[kept], scores[kept]


def num_proposals(max_objects: int) -> int:
    """How many proposals of all maps together, and candidates of each, are looked at for so many objects.

    A thousand, as published, for a hundred or fewer.
    """
    return max(NUM_PROPOSALS, PROPOSALS_AN_OBJECT * max_objects)
