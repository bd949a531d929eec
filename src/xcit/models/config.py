"""The shape of an XCiT."""

import math
from dataclasses import dataclass
from typing import Literal

from xcit.errors import XCiTError
from xcit.models.hosts import ReadableConfig, keeps_notes

PATCH_SIZES = (4, 8, 16)

GlobalPool = Literal["cls", "avg", "none"]


@keeps_notes
@dataclass(frozen=True, kw_only=True)
class XCiTConfig(ReadableConfig):
    """Shape of an XCiT.

    `layer_scale` is the start of the learned residual scales; `tokens_norm` says whether the second norm of a class
    attention block covers all tokens or only the class token; `cls_depth` 0 makes a backbone of patch tokens alone,
    with no class token, no class attention and no final norm; `num_classes` 0 leaves the classifier out.

    Raises:
        XCiTError: if a field has an impossible value, or two fields do not fit.
    """

    patch_size: int = 16
    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 8
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    cls_depth: int = 2
    tokens_norm: bool = True
    layer_scale: float = 1.0
    in_channels: int = 3
    num_classes: int = 1000
    global_pool: GlobalPool = "cls"
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise XCiTError(f"XCiTConfig: {message}")

        need(self.patch_size in PATCH_SIZES, f"patch_size is {self.patch_size}, must be one of {PATCH_SIZES}")
        for name in ("embed_dim", "depth", "num_heads", "in_channels"):
            need(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, must be at least 1")
        for name in ("cls_depth", "num_classes"):
            need(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}, must be at least 0")
        narrowing = self.patch_size // 2
        need(
            self.embed_dim % narrowing == 0,
            f"embed_dim {self.embed_dim} must be a multiple of {narrowing} for patches of {self.patch_size}",
        )
        need(
            self.embed_dim % self.num_heads == 0,
            f"embed_dim {self.embed_dim} must be a multiple of num_heads {self.num_heads}",
        )
        need(
            math.isfinite(self.mlp_ratio) and self.hidden_dim >= 1,
            f"mlp_ratio is {self.mlp_ratio}, must be positive and finite",
        )
        need(0 <= self.drop_path_rate < 1, f"drop_path_rate is {self.drop_path_rate}, must be in [0, 1)")
        need(
            self.global_pool in ("cls", "avg", "none"),
            f"global_pool is {self.global_pool!r}, must be 'cls', 'avg' or 'none'",
        )
        need(
            self.global_pool != "cls" or self.cls_depth > 0,
            "global_pool 'cls' needs a class token: cls_depth must be at least 1",
        )

    @property
    def hidden_dim(self) -> int:
        """Width inside the MLPs."""
        return int(self.embed_dim * self.mlp_ratio)
