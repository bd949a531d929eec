"""The region proposal network (RPN), which finds boxes that may contain an object of any class.

For each anchor (see `anchors.py`), the network computes a logit, and steps, which are the box regression deltas from
the anchor to the object (see `boxes.py`). The best anchors of each feature map become candidates. The candidates that
remain after non-maximum suppression (NMS) become proposals.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead

from xcit.models.detection.anchors import ANCHOR_STRIDES, RATIOS, all_anchors, anchors_at, within
from xcit.models.detection.boxes import decode_boxes, encode_boxes, nms_by_class
from xcit.models.detection.matching import match, sample

STD = (1.0, 1.0, 1.0, 1.0)
"""Standard deviations (dx, dy, dw, dh) by which steps from anchors are divided."""

NUM_CANDIDATES_TRAIN = 2000
"""Maximum number of candidates from each feature map in training."""

NUM_PROPOSALS = 1000
"""Maximum number of proposals from all maps together.

In evaluation, this is also the maximum number of candidates from each map.
"""

NMS_IOU = 0.7

POSITIVE_IOU, NEGATIVE_IOU = 0.7, 0.3
NUM_SAMPLED, POSITIVE_SHARE = 256, 0.5


class Candidates(NamedTuple):
    """The best anchors of one feature map of one image, best first."""

    scores: Tensor  # (n,), 0..1
    places: Tensor  # (n,), indices of the anchors: see `anchors_at`
    steps: Tensor  # (n, 4), from the anchors to the objects


class RegionProposalNetwork(nn.Module):
    """The region proposal network: a small head for each feature map, and the processing of its outputs.

    At each pixel, the head computes a logit and steps for each of three anchors. The head is torchvision's. The
    processing is that of mmdetection, because the published models were trained and measured with mmdetection.
    """

    def __init__(self, channels: int, anchor_scale: float) -> None:
        super().__init__()
        self.anchor_scale = anchor_scale
        self.head = RPNHead(channels, len(RATIOS))
        self._init_parts()

    def _init_parts(self) -> None:
        for layer in self.head.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(cast(Tensor, layer.bias))

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Computes logits (B, n_l) and steps (B, n_l, 4), float32, for each of five maps (B, channels, H_l, W_l).

        n_l = H_l * W_l * 3 is the number of anchors of the map.
        """
        logits, steps = self.head(list(maps))
        return (
            [level.permute(0, 2, 3, 1).flatten(1).float() for level in logits],
            [level.permute(0, 2, 3, 1).reshape(len(level), -1, 4).float() for level in steps],
        )

    @torch.no_grad()
    def proposals(
        self,
        maps: Sequence[Tensor],
        logits: Sequence[Tensor],
        steps: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        most: int = NUM_PROPOSALS,
    ) -> list[Tensor]:
        """Returns the proposals of each image: boxes (n, 4), best first, clipped to the image.

        Args:
            maps: the input of `forward`.
            logits: the logits from `forward`.
            steps: the steps from `forward`.
            sizes: height and width of each image in pixels, without padding.
            most: maximum number of proposals of an image. In evaluation, it is also the maximum number of candidates
                from each map.
        """
        limit = NUM_CANDIDATES_TRAIN if self.training else most
        found = []
        for image, size in enumerate(sizes):
            candidates = []
            for level_logits, level_steps in zip(logits, steps, strict=True):
                best, index = best_scores(level_logits[image].sigmoid(), limit)
                candidates.append(Candidates(best, index, level_steps[image][index]))
            widths = [level.shape[-1] for level in maps]
            found.append(self.choose(candidates, widths, size, most))
        return found

    def choose(
        self, candidates: Sequence[Candidates], widths: Sequence[int], size: tuple[int, int], most: int
    ) -> Tensor:
        """Returns the proposals of one image: boxes (n, 4), best first, clipped to the image.

        Args:
            candidates: for each map, its candidates.
            widths: the widths of the maps, in pixels of the maps.
            size: height and width of the image in pixels, without padding.
            most: maximum number of proposals.
        """
        boxes, levels = [], []
        for level, (own, width, stride) in enumerate(zip(candidates, widths, ANCHOR_STRIDES, strict=True)):
            anchors = anchors_at(own.places, width, stride, self.anchor_scale)
            boxes.append(decode_boxes(anchors, own.steps, STD, size))
            levels.append(torch.full_like(own.places, level))
        every, scores = torch.cat(boxes), torch.cat([own.scores for own in candidates])
        return every[nms_by_class(every, scores, torch.cat(levels), NMS_IOU)[:most]]

    def losses(
        self,
        maps: Sequence[Tensor],
        logits: Sequence[Tensor],
        steps: Sequence[Tensor],
        padded: Sequence[tuple[int, int]],
        objects: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Computes the losses for anchors that are drawn at random: cross-entropy of logits and L1 loss of steps.

        Both losses are divided by the number of drawn anchors in the batch.

        Args:
            maps: the input of `forward`.
            logits: the logits from `forward`.
            steps: the steps from `forward`.
            padded: height and width of each image in pixels, after the padding to multiples of 32. The further padding
                to the size of the largest image in the batch is not included.
            objects: for each image, the boxes (m, 4) of its objects.
        """
        all_logits, all_steps = torch.cat(list(logits), dim=1), torch.cat(list(steps), dim=1)
        map_sizes = [(level.shape[-2], level.shape[-1]) for level in maps]
        anchors = all_anchors(map_sizes, self.anchor_scale, all_logits.device)
        class_loss, box_loss, num_sampled = all_logits.sum() * 0, all_steps.sum() * 0, 0
        for image, (own, size) in enumerate(zip(objects, padded, strict=True)):
            inside = within(map_sizes, size, anchors.device).nonzero().squeeze(1)
            matched = match(anchors[inside], own, positive=POSITIVE_IOU, negative=NEGATIVE_IOU, lowest=NEGATIVE_IOU)
            positive, negative = sample(matched, NUM_SAMPLED, POSITIVE_SHARE)
            # As in the published models, an image without sampled anchors of one of the two classes (object and
            # background) counts as if it had one of that class.
            num_sampled += max(len(positive), 1) + max(len(negative), 1)
            anchor = inside[positive]
            chosen = all_logits[image][torch.cat([anchor, inside[negative]])]
            is_object = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)])
            class_loss = class_loss + F.binary_cross_entropy_with_logits(
                chosen, is_object.to(chosen.dtype), reduction="sum"
            )
            targets = encode_boxes(anchors[anchor], own[matched[positive]], STD)
            box_loss = box_loss + F.l1_loss(all_steps[image][anchor], targets, reduction="sum")
        return {"loss_objectness": class_loss / num_sampled, "loss_rpn_box_reg": box_loss / num_sampled}


def best_scores(scores: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Returns the `limit` largest of the scores (n,), in descending order, and their indices.

    Equal scores stay in their original order. To save time, only the scores that may be returned are sorted.
    """
    if len(scores) <= limit:
        values, order = scores.sort(descending=True, stable=True)
        return values, order
    index = (scores >= scores.topk(limit).values[-1]).nonzero().squeeze(1)
    values, order = scores[index].sort(descending=True, stable=True)
    return values[:limit], index[order[:limit]]
