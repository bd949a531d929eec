"""DINO (arXiv 2104.14294): a student network and a teacher network. Each has a backbone and a projection head.

Shapes: `B` images, `V` crops of each image (the first two are global), `D` width of the backbone, `K` outputs of the
head.
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
"""The number of global crops. The teacher sees only these crops."""


@dataclass(frozen=True, kw_only=True)
class DINOHeadConfig:
    """Layer widths of a projection head: D (input), `hidden_dim`, `hidden_dim`, `bottleneck_dim`, `out_dim` (output).

    If `norm_last_layer` is true, each row of the last layer's weight has norm 1. If it is false, the norms are learned.
    """

    out_dim: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    norm_last_layer: bool = True

    def __post_init__(self) -> None:
        for name in ("out_dim", "hidden_dim", "bottleneck_dim"):
            check_field(self, name, getattr(self, name) >= 1, "at least 1")


class WeightNormLinear(nn.Module):
    """A linear layer without bias and with weight normalisation (arXiv 1602.07868).

    Each row of the weight is `weight_g` * `weight_v` / |`weight_v`|. The parameter names are those of the published
    checkpoints. Autocast is disabled: DINO divides the logits by temperatures of about 0.1 or less, and this multiplies
    the rounding errors of 16-bit numbers by ten or more.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1))
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises `weight_v` as `nn.Linear` initialises its weight, and sets `weight_g` to 1."""
        nn.init.ones_(self.weight_g)
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (..., in_features) to (..., out_features)."""
        with torch.autocast(features.device.type, enabled=False):
            weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True))
            return F.linear(features.to(weight.dtype), weight)


class DINOHead(nn.Module):
    """Projection head that maps features (B, D) to logits (B, K).

    If the rows of the last layer's weight have norm 1, the logits are cosines.
    """

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
        """Returns logits (B, K), in the dtype of the weights even under autocast."""
        logits: Tensor = self.last_layer(F.normalize(self.mlp(features), dim=-1))
        return logits


class DINOBranch(nn.Module):
    """The student or the teacher: a backbone and its projection head."""

    def __init__(self, backbone: XCiT, head: DINOHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, crops: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Computes the features and logits of V crops of each image.

        Args:
            crops: V tensors (B, in_channels, h, w). Neighbouring tensors of equal size are computed as one batch.

        Returns:
            Features (V*B, D) and logits (V*B, K), in the order of the crops.
        """
        groups = [torch.cat(list(group)) for _, group in groupby(crops, key=lambda crop: crop.shape[-2:])]
        features = torch.cat([self.backbone(group) for group in groups])
        return features, self.head(features)


class DINOOutput(NamedTuple):
    """The outputs of `DINO.forward` for the crops of a batch of images."""

    student_logits: Tensor  # (V*B, K)
    teacher_logits: Tensor  # (2*B, K), for the two global crops, without gradient
    teacher_features: Tensor  # (2*B, D), for the two global crops, without gradient
    center: Tensor  # (1, K), see `DINO`


class DINO(nn.Module):
    """The student and the teacher of DINO. They start with equal weights, but only the student has stochastic depth.

    The teacher gets no gradients. The training task moves the teacher's weights towards the student's weights, and
    moves `center` towards the mean of the teacher's logits.

    Attributes:
        student: backbone and head.
        teacher: backbone and head, with frozen parameters.
        center: vector (1, K) that the training loss subtracts from the teacher's logits.

    Raises:
        XCiTError: if the config has a classifier (`num_classes` above 0), or makes the backbone return one feature per
            token instead of one per image (`global_pool` is "none").
    """

    center: Tensor

    def __init__(self, config: XCiTConfig, head: DINOHeadConfig) -> None:
        super().__init__()
        if config.num_classes:
            raise XCiTError(
                f"DINO needs a backbone without a classifier: set model.num_classes to 0, not {config.num_classes}"
            )
        if config.global_pool == "none":
            raise XCiTError("DINO needs one feature per image: set model.global_pool to cls or avg")
        self.student = DINOBranch(XCiT(config), DINOHead(config.embed_dim, head))
        self.teacher = DINOBranch(XCiT(replace(config, drop_path_rate=0.0)), DINOHead(config.embed_dim, head))
        self.teacher.requires_grad_(False)
        self.register_buffer("center", torch.zeros(1, head.out_dim))
        self._init_parts()

    def reset_parameters(self) -> None:
        """Sets all weights to new random values, as at construction. Learned weights are lost."""
        reset_within(self)
        self._init_parts()

    def _init_parts(self) -> None:
        self.teacher.load_state_dict(self.student.state_dict())
        nn.init.zeros_(self.center)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turns gradient checkpointing of the student on or off (timm's method name).

        If it is on, the activations of each block of the student are not stored, but recomputed in the backward pass.
        The teacher has no backward pass.
        """
        self.student.backbone.set_grad_checkpointing(enable)

    def forward(self, crops: Sequence[Tensor]) -> DINOOutput:
        """Runs the student on all crops, and the teacher on the global crops only."""
        with torch.no_grad():
            teacher_features, teacher_logits = self.teacher(crops[:NUM_GLOBAL])
        _, student_logits = self.student(crops)
        return DINOOutput(student_logits, teacher_logits, teacher_features, self.center)
