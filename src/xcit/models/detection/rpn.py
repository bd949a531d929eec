"""The region proposal network: boxes that may hold an object of any class."""

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
"""Of the steps from anchors."""

NUM_CANDIDATES_TRAIN = 2000
"""Best anchors of each feature map that are looked at in training."""

NUM_PROPOSALS = 1000
"""Boxes that are left of all maps together, in training too; in evaluation as many of each map are looked at."""

NMS_IOU = 0.7

POSITIVE_IOU, NEGATIVE_IOU = 0.7, 0.3
NUM_SAMPLED, POSITIVE_SHARE = 256, 0.5


class Candidates(NamedTuple):
    """The best anchors of one map, best first."""

    scores: Tensor  # (n,), 0..1
    places: Tensor  # (n,), their index: see `anchors_at`
    steps: Tensor  # (n, 4), from the anchors


class RegionProposalNetwork(nn.Module):
    """One small head on every feature map: three logits and three steps a pixel, one for each anchor.

    The head is torchvision's; what is done with its outputs follows mmdetection, with which the published models were
    trained and measured.
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
        """Five maps (B, channels, H_l, W_l) to logits (B, n_l) and steps (B, n_l, 4) of each, float32."""
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
        """Boxes (at most `most`, 4) of each image, best first, cut off at its edge.

        Args:
            maps: of which the logits are.
            logits: from `forward`.
            steps: from `forward`.
            sizes: height and width of each image, without padding.
            most: boxes that are left of all maps together, and in evaluation candidates of each.
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
        """Boxes (at most `most`, 4) of one image, best first, from the best anchors of each map.

        Args:
            candidates: of each map.
            widths: of the maps.
            size: height and width of the image, without padding.
            most: boxes that are left of all maps together.
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
        """Cross-entropy and L1 of sampled anchors, both divided by their number in the batch.

        Args:
            maps: of which the logits are.
            logits: from `forward`.
            steps: from `forward`.
            padded: height and width of each image with its own padding, not the batch's.
            objects: boxes (m, 4) of each image.
        """
        all_logits, all_steps = torch.cat(list(logits), dim=1), torch.cat(list(steps), dim=1)
        map_sizes = [(level.shape[-2], level.shape[-1]) for level in maps]
        anchors = all_anchors(map_sizes, self.anchor_scale, all_logits.device)
        class_loss, box_loss, num_sampled = all_logits.sum() * 0, all_steps.sum() * 0, 0
        for image, (own, size) in enumerate(zip(objects, padded, strict=True)):
            inside = within(map_sizes, size, anchors.device).nonzero().squeeze(1)
            matched = match(anchors[inside], own, positive=POSITIVE_IOU, negative=NEGATIVE_IOU, lowest=NEGATIVE_IOU)
            positive, negative = sample(matched, NUM_SAMPLED, POSITIVE_SHARE)
            # As published: where there is none of a kind, it still counts for one.
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
    """The largest of scores (n,), at most `limit` of them, and their indices; of equal ones the first come first.

    Only what is as large as the last of them is sorted.
    """
    if len(scores) <= limit:
        values, order = scores.sort(descending=True, stable=True)
        return values, order
    index = (scores >= scores.topk(limit).values[-1]).nonzero().squeeze(1)
    values, order = scores[index].sort(descending=True, stable=True)
    return values[:limit], index[order[:limit]]
