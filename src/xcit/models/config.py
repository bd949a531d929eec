"""The configuration of an XCiT model: the number and the widths of its layers."""

import math
from dataclasses import dataclass
from typing import Literal

from xcit.errors import XCiTError, check_field
from xcit.models.hosts import ReadableConfig, keeps_notes

PATCH_SIZES = (4, 8, 16)

GlobalPool = Literal["cls", "avg", "none"]


@keeps_notes
@dataclass(frozen=True, kw_only=True)
class XCiTConfig(ReadableConfig):
    """Architecture of an XCiT model.

    Attributes:
        patch_size: side of a patch in pixels: 4, 8 or 16. The stem has log2(patch_size) convolutions of stride 2,
            unless `stem_strides` is given.
        embed_dim: width D of the tokens.
        depth: number of XCA (cross-covariance attention) blocks.
        num_heads: number of heads in each attention layer.
        mlp_ratio: width of an MLP's hidden layer, divided by D.
        qkv_bias: whether queries, keys and values have a bias.
        cls_depth: number of class attention blocks. If it is 0, the model computes only patch tokens: it has no class
            token, no class attention and no final norm.
        tokens_norm: if true, the second norm of a class attention block is applied to all tokens; if false, only to the
            class token.
        layer_scale: initial value of LayerScale, the learned factors of the residual branches.
        in_channels: number of channels of the images.
        num_classes: number of classes of the head; 0 means that there is no head.
        global_pool: input of the head: "cls" for the class token, "avg" for the mean of the patch tokens, "none" for
            every token.
        drop_path_rate: probability with which stochastic depth drops a residual branch in training.
        stem_strides: strides (1 or 2) of the stem's 3x3 convolutions; empty means that all are 2. If they are given,
            `patch_size` is set to their product. For example, a stem with (1, 1, 2, 2) has weights of the same shapes
            as a stem for patches of 16 pixels per side, but its patches have 4 pixels per side.

    Raises:
        XCiTError: if a field has an impossible value, or two fields contradict each other.
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
    stem_strides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise XCiTError(f"XCiTConfig: {message}")

        strides = tuple(self.stem_strides)
        if strides:
            need(all(stride in (1, 2) for stride in strides), f"stem_strides are {strides}, each must be 1 or 2")
            usual, product = 2 ** len(strides), math.prod(strides)
            # `patch_size` is replaced by the product of the strides. Besides the product, two values are accepted. The
            # first is the default, because the caller may not have set `patch_size`. The second is the patch size of
            # a stem with the same number of convolutions, all of stride 2. `dataclasses.replace` passes this value if
            # the old config has such a stem. All other values are errors.
            need(
                self.patch_size in (usual, product, XCiTConfig.patch_size),
                f"patch_size is {self.patch_size}, but stem_strides {strides} make patches of {product} pixels",
            )
            object.__setattr__(self, "patch_size", product)
            # If all strides are 2, () is stored, so that configs of the same architecture compare equal.
            object.__setattr__(self, "stem_strides", () if product == usual and usual in PATCH_SIZES else strides)
        if not self.stem_strides:
            check_field(self, "patch_size", self.patch_size in PATCH_SIZES, f"one of {PATCH_SIZES}")
        for name in ("embed_dim", "depth", "num_heads", "in_channels"):
            check_field(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("cls_depth", "num_classes"):
            check_field(self, name, getattr(self, name) >= 0, "at least 0")
        narrowing = 2 ** (len(self.strides) - 1)
        need(
            self.embed_dim % narrowing == 0,
            f"embed_dim {self.embed_dim} must be a multiple of {narrowing} for patches of {self.patch_size} pixels",
        )
        need(
            self.embed_dim % self.num_heads == 0,
            f"embed_dim {self.embed_dim} must be a multiple of num_heads {self.num_heads}",
        )
        is_wide = math.isfinite(self.mlp_ratio) and self.hidden_dim >= 1
        check_field(self, "mlp_ratio", is_wide, "positive and finite")
        check_field(self, "drop_path_rate", 0 <= self.drop_path_rate < 1, "in [0, 1)")
        need(
            self.global_pool in ("cls", "avg", "none"),
            f"global_pool is {self.global_pool!r}, but must be 'cls', 'avg' or 'none'",
        )
        need(
            self.global_pool != "cls" or self.cls_depth > 0,
            "global_pool 'cls' needs a class token: cls_depth must be at least 1",
        )

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each convolution of the stem, from the first convolution to the last."""
        return self.stem_strides or (2,) * (self.patch_size.bit_length() - 1)

    @property
    def hidden_dim(self) -> int:
        """Width of the MLPs' hidden layer."""
        return int(self.embed_dim * self.mlp_ratio)
