"""Mask R-CNN (arXiv 1703.06870) with an XCiT as backbone. It can use the weights of the published checkpoints.

The layers are torchvision's. The published models were trained and measured with mmdetection 2.11. Where the rules of
torchvision and mmdetection differ, this package follows mmdetection. The rules differ for resizing, anchors, the
clamping of box deltas, RoIAlign, non-maximum suppression (NMS) in pixels of the original image, and the pasting of
masks. In training, they also differ for losses, matching and mask targets.
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

    In evaluation mode, call `model(images)` with images (C, h, w) of any sizes, uint8 or floating-point in 0..1. The
    result is a dict for each image: "boxes" (n, 4), (x1, y1, x2, y2) in pixels; "labels" (n,) from 1; "scores" (n,)
    in descending order; "masks" (n, 1, h, w), probabilities. A pixel belongs to the object if its probability is 0.5 or
    more. `detect` returns the same objects, but with small masks. Each image is processed separately: in a batch, the
    padding of an image would depend on the other images. An XCiT also attends to padding, so the objects found in one
    image would depend on the other images too.

    In training mode, call `model(images, targets)`. `targets` contains a dict for each image with "boxes" (m, 4),
    "labels" (m,) and "masks" (m, h, w). The result is a dict of losses; training minimises their sum. Images are not
    resized in training mode, because resizing is part of the augmentation.

    Attributes:
        config: architecture and preprocessing of the model.
        info: class names; None if they are unknown.
    """

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        if not config.num_classes:
            raise XCiTError("a detector needs classes: set num_classes above 0")
        self.config = copy.copy(config)  # a copy, because other libraries may set attributes on the config of a model
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
        """Replaces the layers that depend on the number of classes with new layers."""
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
        """Returns detections in evaluation mode, and losses in training mode.

        The docstring of the class describes the arguments and the results.

        Raises:
            XCiTError: if images or targets do not have the described form, or if the model is being traced or exported.
        """
        if isinstance(images, torch.fx.Proxy) or torch.jit._trace.is_tracing() or torch.compiler.is_exporting():
            raise XCiTError(
                "a detector can't be traced or exported, because the number of objects differs from image to image:"
                " trace or export `model.backbone`, which returns the feature maps"
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
        """Detects the objects in one image. The model is in evaluation mode during the call.

        Args:
            image: (C, h, w), uint8 or floating-point in 0..1, on any device.
            min_score: objects with lower scores are left out.
            sides: maximum length of the short side and of the long side, in pixels. The image is scaled to the largest
                size within both limits. None means the values in the config.
            max_objects: maximum number of objects; the objects with the best scores are returned. If the number is
                above 100, which is the value in the published models, more proposals are used (see `num_proposals`).

        Returns:
            The objects, with boxes in pixels of `image`.
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
        """Returns the objects in a normalised image (C, h, w) that was resized by the factors `scale`.

        Args:
            image: the normalised image, without padding.
            scale: (4,), the factors for width, height, width and height.
            min_score: objects with lower scores are left out.
            max_objects: maximum number of objects.
            padded: height and width to which the image is padded; None means the next multiples of 32.
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
        """Computes the feature maps of strides 4, 8, 16, 32 and 64 for a batch of normalised images."""
        levels = OrderedDict((str(level), features) for level, features in enumerate(self.backbone(batch)))
        return list(self.fpn(levels).values())
