"""Mask R-CNN (arXiv 1703.06870) on an XCiT, with the results of the published checkpoints.

The layers are torchvision's. The published models were trained and measured with mmdetection 2.11. Where its rules
differ from torchvision's, this module follows mmdetection: in resizing, anchors, the clamp of steps, RoIAlign, NMS in
pixels of the original image, and pasting of masks; and in training also in losses, matching and mask targets.
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
import torch.fx
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from xcit.errors import XCiTError
from xcit.images.resize_8bit import fitted_size
from xcit.models.detection.config import DetectorInfo, MaskRCNNConfig
from xcit.models.detection.images import pad_and_stack, padded_size, resized, to_8_bits
from xcit.models.detection.masks import paste_masks
from xcit.models.detection.regions import region_features
from xcit.models.detection.roi_heads import MIN_SCORE, NUM_DETECTIONS, Detections, Objects, RoIHeads, num_proposals
from xcit.models.detection.rpn import RegionProposalNetwork
from xcit.models.first_values import reset_within
from xcit.models.modes import evaluating
from xcit.models.pyramid import STRIDES, OnPyramid, XCiTPyramid


class MaskRCNN(OnPyramid):
    """Detects boxes, labels, scores and masks in images, with the interface of torchvision's detectors.

    In evaluation mode, `model(images)` takes images (C, h, w) of any sizes, uint8 or floating-point in 0..1, and
    returns a dict for each: "boxes" (n, 4), (x1, y1, x2, y2) in pixels; "labels" (n,) from 1; "scores" (n,), best
    first; "masks" (n, 1, h, w), probabilities. A pixel belongs to the object if its probability is 0.5 or more.
    `detect` returns the same objects, but with small masks. Each image is computed separately, because an XCiT also
    attends to padding, and the objects found in one image must not depend on another image.

    In training mode, `model(images, targets)` takes a dict for each image with "boxes", "labels" and "masks"
    (m, h, w), and returns the losses, whose sum is to be minimised. Images are not resized in this mode, because
    resizing is part of the augmentation.

    Attributes:
        config: the model's shape.
        info: class names if they are known, else None.
    """

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        if not config.num_classes:
            raise XCiTError("a detector needs classes: set num_classes above 0")
        self.config = copy.copy(config)  # a host library may set attributes on it, which must stay with this model
        self.info: DetectorInfo | None = None
        self.backbone = XCiTPyramid(config.backbone, config.out_indices or None)
        widths = [config.backbone.embed_dim] * len(STRIDES)
        self.fpn = FeaturePyramidNetwork(widths, config.channels, LastLevelMaxPool())
        self.rpn = RegionProposalNetwork(config.channels, config.anchor_scale)
        self.roi_heads = RoIHeads(config.channels, config.box_features, config.num_classes)
        self._init_parts()

    def reset_parameters(self) -> None:
        """Sets all weights to new random values, as at construction. Learned weights are lost."""
        reset_within(self)
        self._init_parts()

    def _init_parts(self) -> None:
        for module in self.fpn.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(cast(Tensor, module.bias))

    @property
    def num_classes(self) -> int:
        """Number of classes without the background."""
        return self.config.num_classes

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the layers that depend on the number of classes by new ones."""
        self.config = replace(self.config, num_classes=num_classes)
        fresh = RoIHeads(self.config.channels, self.config.box_features, num_classes)
        self.roi_heads.num_classes, self.roi_heads.class_weights = num_classes, None
        self.roi_heads.box_predictor = fresh.box_predictor.to(self.device)
        self.roi_heads.mask_predictor.mask_fcn_logits = fresh.mask_predictor.mask_fcn_logits.to(self.device)
        if self.info is not None:
            self.info = replace(self.info, class_names=(), category_ids=())

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> list[dict[str, Tensor]] | dict[str, Tensor]:
        """Returns detections, or in training mode losses; see the class.

        Raises:
            XCiTError: if images or targets do not have the form described there, or while the model is traced or
                exported.
        """
        if isinstance(images, torch.fx.Proxy) or torch.jit._trace.is_tracing() or torch.compiler.is_exporting():
            raise XCiTError(
                "a detector can't be traced or exported, for what it finds differs in number from image to image:"
                " trace or export `model.backbone`, which gives its maps"
            )
        if self.training:
            return self._losses(images, targets)
        results = []
        for image in images:
            found = self.detect(image)
            masks = paste_masks(found.masks, found.boxes, (image.shape[-2], image.shape[-1]))
            results.append({"boxes": found.boxes, "labels": found.labels, "scores": found.scores, "masks": masks})
        return results

    @torch.no_grad()
    def detect(
        self,
        image: Tensor,
        *,
        min_score: float = MIN_SCORE,
        sides: tuple[int, int] | None = None,
        max_objects: int = NUM_DETECTIONS,
    ) -> Detections:
        """Detects the objects in one image (C, h, w). The model computes as in evaluation mode, whatever its mode is.

        Args:
            image: uint8, or floating-point in 0..1, on any device.
            min_score: objects with lower scores are left out.
            sides: the largest short side and the largest long side to which the image is scaled, in pixels; None takes
                those of the config.
            max_objects: the largest number of objects; the best ones are kept. If it is larger than the published
                100, more proposals are used too (see `num_proposals`).
        """
        prepared, scale = self.prepare(image, sides)
        with evaluating(self):
            return self._search(prepared, scale, min_score, max_objects)

    def prepare(self, image: Tensor, sides: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Resizes and normalises an image for the network; see `detect` for the arguments.

        Returns:
            The normalised image (C, h, w), and the factors (4,) by which it was resized: width, height, width, height.
        """
        pixels = to_8_bits(image, len(self.config.mean)).to(self.device)
        size = (pixels.shape[-2], pixels.shape[-1])
        short_side, long_side = sides or (self.config.short_side, self.config.long_side)
        scaled = fitted_size(*size, long_side=long_side, short_side=short_side)
        height_scale, width_scale = scaled[0] / size[0], scaled[1] / size[1]
        scale = torch.tensor([width_scale, height_scale, width_scale, height_scale], device=pixels.device)
        return self._normalize(resized(pixels, scaled)), scale

    def _search(
        self,
        image: Tensor,
        scale: Tensor,
        min_score: float,
        max_objects: int = NUM_DETECTIONS,
        padded: tuple[int, int] | None = None,
    ) -> Detections:
        """Returns the objects in a normalised image (C, h, w) that was resized by `scale` (see `RoIHeads.detect`).

        `padded` is the height and width of the network's input; None means the next multiples of 32.
        """
        size = (image.shape[-2], image.shape[-1])
        maps = self._maps(pad_and_stack([image], padded))
        logits, steps = self.rpn(maps)
        (proposals,) = self.rpn.proposals(maps, logits, steps, [size], num_proposals(max_objects))
        del logits, steps
        return self.roi_heads.detect(
            lambda boxes, side: region_features(maps, [boxes], side), proposals, size, scale, min_score, max_objects
        )

    def _losses(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None) -> dict[str, Tensor]:
        if targets is None or len(targets) != len(images):
            raise XCiTError("a detector in training mode needs a target for each image; call .eval() to detect")
        if not len(images):
            raise XCiTError("the batch is empty: there is nothing to learn from")
        objects = [Objects(target["boxes"], target["labels"], target["masks"]) for target in targets]
        pixels = [to_8_bits(image, len(self.config.mean)) for image in images]
        sizes = [(image.shape[-2], image.shape[-1]) for image in pixels]
        maps = self._maps(pad_and_stack([self._normalize(image) for image in pixels]))
        logits, steps = self.rpn(maps)
        proposals = self.rpn.proposals(maps, logits, steps, sizes)
        boxes = [own.boxes for own in objects]
        losses = self.rpn.losses(maps, logits, steps, [padded_size(size) for size in sizes], boxes)
        return losses | self.roi_heads.losses(maps, proposals, objects)

    def _normalize(self, pixels: Tensor) -> Tensor:
        mean, std = (pixels.new_tensor(v, dtype=torch.float32) for v in (self.config.mean, self.config.std))
        return (pixels.float() - 255 * mean.view(-1, 1, 1)) * (1 / (255 * std.view(-1, 1, 1)))

    def _maps(self, batch: Tensor) -> list[Tensor]:
        """Computes the feature maps of strides 4, 8, 16, 32 and 64."""
        levels = OrderedDict((str(level), features) for level, features in enumerate(self.backbone(batch)))
        return list(self.fpn(levels).values())
