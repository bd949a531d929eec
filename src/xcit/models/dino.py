"""DINO (arXiv 2104.14294): a backbone with a projection head, as a student and as the teacher that follows it.

Shapes: `B` images, `V` crops of each, two of them global and first, `D` width of the backbone, `K` outputs of the head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.errors import XCiTError, check_field
from xcit.models.config import XCiTConfig
from xcit.models.first_values import reset_within
from xcit.models.xcit import XCiT

NUM_GLOBAL = 2
"""Global crops: what the teacher sees."""


@dataclass(frozen=True, kw_only=True)
class DINOHeadConfig:
    """Widths of a projection head: D, `hidden_dim` twice, `bottleneck_dim`, `out_dim`.

    `norm_last_layer` keeps the rows of the last layer at length 1; without it their lengths are learned.
    """

    out_dim: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    norm_last_layer: bool = True

    def __post_init__(self) -> None:
        for name in ("out_dim", "hidden_dim", "bottleneck_dim"):
            check_field(self, name, getattr(self, name) >= 1, "at least 1")


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose weight is `weight_g` * `weight_v` / |`weight_v`|, row by row.

    The two are named as in the published checkpoints (weight normalisation, arXiv 1602.07868). The product is computed
    in float32: DINO's temperatures magnify a rounding of 16 bits tenfold and more.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1))
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Directions as the rows of torch's linear layers have them, lengths 1."""
        nn.init.ones_(self.weight_g)
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))

    def forward(self, features: Tensor) -> Tensor:
        """Features (..., in_features) to (..., out_features)."""
        with torch.autocast(features.device.type, enabled=False):
            weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True))
            return F.linear(features.to(weight.dtype), weight)


class DINOHead(nn.Module):
    """The projection head: features (B, D) to logits (B, K), which are cosines where the last layer is normed."""

    def __init__(self, embed_dim: int, config: DINOHeadConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, config.hidden_dim),
            nn.GELU(),
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.GELU(),
            nn.Linear(config.hidden_dim, config.bottleneck_dim),
        )
        self._init_parts()
        self.last_layer = WeightNormLinear(config.bottleneck_dim, config.out_dim)
        self.last_layer.weight_g.requires_grad_(not config.norm_last_layer)

    def _init_parts(self) -> None:
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K), float32 under autocast too."""
        logits: Tensor = self.last_layer(F.normalize(self.mlp(features), dim=-1))
        return logits


class DINOBranch(nn.Module):
    """A backbone and its head, the student or the teacher."""

    def __init__(self, backbone: XCiT, head: DINOHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, crops: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Crops (B, C, h, w), those of one size side by side and computed together.

        Returns:
            Features (V*B, D) and logits (V*B, K), the first crop's first.
        """
        groups = [torch.cat(list(group)) for _, group in groupby(crops, key=lambda crop: crop.shape[-2:])]
        features = torch.cat([self.backbone(group) for group in groups])
        return features, self.head(features)


class DINOOutput(NamedTuple):
    """What a pass over the crops of a batch gives."""

    student_logits: Tensor  # (V*B, K)
    teacher_logits: Tensor  # (2*B, K), of the global crops, without gradient
    teacher_features: Tensor  # (2*B, D), likewise
    center: Tensor  # (1, K)


class DINO(nn.Module):
    """Student and teacher, equal at the start but for stochastic depth, which the student alone has.

    No gradient goes into the teacher: it is for the training to move it after the student, and the centre after the
    teacher's logits.

    Attributes:
        student: backbone and head.
        teacher: likewise; its parameters are frozen.
        center: (1, K), what is subtracted from the teacher's logits.

    Raises:
        XCiTError: if the backbone has a classifier, or gives no single feature an image.
    """

    center: Tensor

    def __init__(self, config: XCiTConfig, head: DINOHeadConfig) -> None:
        super().__init__()
        if config.num_classes:
            raise XCiTError(
                f"DINO trains a backbone without a classifier: set model.num_classes {config.num_classes} to 0"
            )
        if config.global_pool == "none":
            raise XCiTError("DINO needs one feature an image: set model.global_pool to cls or avg")
        self.student = DINOBranch(XCiT(config), DINOHead(config.embed_dim, head))
        self.teacher = DINOBranch(XCiT(replace(config, drop_path_rate=0.0)), DINOHead(config.embed_dim, head))
        self.teacher.requires_grad_(False)
        self.register_buffer("center", torch.zeros(1, head.out_dim))
        self._init_parts()

    def reset_parameters(self) -> None:
        """First values as at construction, random and all: what is learned is lost."""
        reset_within(self)
        self._init_parts()

    def _init_parts(self) -> None:
        self.teacher.load_state_dict(self.student.state_dict())
        nn.init.zeros_(self.center)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the student's blocks in the backward pass (timm's name); the teacher has none."""
        self.student.backbone.set_grad_checkpointing(enable)

    def forward(self, crops: Sequence[Tensor]) -> DINOOutput:
        """The student on all crops, the teacher on the first two."""
        with torch.no_grad():
            teacher_features, teacher_logits = self.teacher(crops[:NUM_GLOBAL])
        _, student_logits = self.student(crops)
        return DINOOutput(student_logits, teacher_logits, teacher_features, self.center)
