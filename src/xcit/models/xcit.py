"""The XCiT model (arXiv 2106.09681). Logits, features and intermediate outputs all come from one loop over the blocks.

Shapes: `B` batch, `H = ceil(h / patch_size)`, `W = ceil(w / patch_size)` token grid of an h x w image, `N = H*W`
tokens, `D` width.
"""

import copy
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.fx
from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.models.config import XCiTConfig
from xcit.models.first_values import reset_within
from xcit.models.fused import (
    FusedClassAttentionBlock,
    FusedEmbedding,
    FusedXCABlock,
    Fusible,
    check_fusible,
    stripe_rows,
    tokens_at_once,
)
from xcit.models.info import ModelInfo
from xcit.models.layers import NORM_EPS, ClassAttentionBlock, PositionCode, Stem, XCABlock, init_linear
from xcit.models.plain import is_anything_watched, is_watched
from xcit.models.recompute import recomputed
from xcit.models.refusals import NotScripted, check_batch
from xcit.models.sharing import Shareable
from xcit.models.stripes import TensorTokens, pass_xca_block, sums_of
from xcit.models.timm_calls import TimmCalls, resolve_indices

OutType = Literal["cls_token", "featmap", "avg_featmap", "raw"]


class Encoded(NamedTuple):
    """The result of one pass over the blocks."""

    # (B, 1+N, D) after the final norm; (B, 1, D) if only the class token was computed; (B, N, D) if class attention
    # was not run
    tokens: Tensor
    taken: dict[int, Tensor]  # block index -> tokens after the block, for the requested blocks
    grid: tuple[int, int]  # (H, W)


class XCiT(NotScripted, Shareable, TimmCalls, Fusible):
    """Cross-covariance image transformer (XCiT).

    The input is a batch of normalised images (B, in_channels, h, w). Each side must have at least the length of one
    patch, and need not be a multiple of the patch size. The XCA blocks have the indices 0 to depth - 1. The class
    attention blocks have the indices depth to depth + cls_depth - 1.

    Attributes:
        config: architecture of the model.
        info: class names and preprocessing if the model was loaded with weights, else None.
    """

    def __init__(self, config: XCiTConfig) -> None:
        super().__init__()
        self.config = copy.copy(config)  # a copy, because other libraries may set attributes on the config of a model
        self.info: ModelInfo | None = None
        self.grad_checkpointing = False
        self._pretrained_cfg: dict[str, Any] | None = None
        dim, heads = config.embed_dim, config.num_heads
        self.stem = Stem(config.in_channels, dim, config.strides)
        self.position = PositionCode(dim)
        self.blocks = nn.ModuleList(
            XCABlock(
                dim,
                heads,
                config.hidden_dim,
                qkv_bias=config.qkv_bias,
                layer_scale=config.layer_scale,
                drop_path_rate=config.drop_path_rate,
            )
            for _ in range(config.depth)
        )
        if config.cls_depth:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
            self.cls_blocks = nn.ModuleList(
                ClassAttentionBlock(
                    dim,
                    heads,
                    config.hidden_dim,
                    qkv_bias=config.qkv_bias,
                    layer_scale=config.layer_scale,
                    tokens_norm=config.tokens_norm,
                )
                for _ in range(config.cls_depth)
            )
            self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.head = self._new_head()
        self._init_parts()

    def reset_parameters(self) -> None:
        """Sets all weights to new random values, as at construction. Learned weights are lost."""
        reset_within(self)
        self._init_parts()

    def _init_parts(self) -> None:
        """Initialises the linear layers and the class token. The convolutions keep torch's default initialisation."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module)
        if self.config.cls_depth:
            nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (B, num_classes) of normalised images, or pooled features (B, D) if there is no head.

        If `global_pool` is "none", the head is applied to every token, and the result is (B, 1+N, num_classes).
        """
        only_class = self.config.global_pool == "cls"
        return self.forward_head(self._encode(images, only_class=only_class).tokens)

    def fuse(self) -> "XCiT":
        """Returns a faster copy for inference, with the same methods and, up to rounding, the same outputs.

        The copy needs less memory and can't compute gradients. The original model does not change. For inference in
        float16 or bfloat16, fuse the model first, and then convert the copy.
        """
        return FusedXCiT(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns tokens (B, 1+N, D) after the final norm, with the class token first.

        If the model has no class token, it has no final norm either. The result is then the patch tokens (B, N, D)
        after the last block.
        """
        return self._encode(images).tokens

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools tokens (B, 1+N, D) and applies the head: returns logits (B, num_classes).

        If `pre_logits` is true, the head is not applied, and the result is the pooled features (B, D). If
        `global_pool` is "none", nothing is pooled, and the results have one row per token.
        """
        if self.config.global_pool == "cls":
            tokens = tokens[:, 0]
        elif self.config.global_pool == "avg":
            tokens = tokens[:, 1 if self.config.cls_depth else 0 :].mean(dim=1)
        if pre_logits:
            return tokens
        logits: Tensor = self.head(tokens)
        return logits

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Returns the tokens after some of the XCA blocks (the intermediates), like timm's method of this name.

        Args:
            images: (B, in_channels, h, w).
            indices: indices of the blocks; negative indices count from the end. A number n instead of a sequence means
                the last n blocks; None means all blocks.
            norm: whether to apply the final norm, if the model has one, to the intermediates.
            stop_early: whether to skip the XCA blocks after the last requested block.
            output_fmt: "NCHW" for intermediates (B, D, H, W), "NLC" for intermediates (B, N, D).
            intermediates_only: whether to return only the intermediates. Class attention is then skipped.

        Returns:
            The tokens that `forward_features` returns, and the intermediates in the order of the blocks; or only the
            intermediates if `intermediates_only` is true.

        Raises:
            XCiTError: if `output_fmt` is unknown, or the model has no block with one of the indices.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise XCiTError(f"output_fmt is {output_fmt!r}, but must be 'NCHW' or 'NLC'")
        depth = self.config.depth
        if indices is None:
            indices = range(depth)
        elif isinstance(indices, int):
            if not 0 < indices <= depth:
                raise XCiTError(f"the last {indices} blocks were requested, but the model has {depth}")
            indices = range(depth - indices, depth)
        take = resolve_indices(indices, depth)
        encoded = self._encode(
            images, take, stop=max(take) if stop_early else None, class_attention=not intermediates_only
        )
        intermediates = [encoded.taken[i] for i in take]
        if norm and hasattr(self, "norm"):
            intermediates = [self.norm(tokens) for tokens in intermediates]
        if output_fmt == "NCHW":
            intermediates = [_as_map(tokens, encoded.grid) for tokens in intermediates]
        return intermediates if intermediates_only else (encoded.tokens, intermediates)

    def extract_feat(
        self,
        images: Tensor,
        stage: Literal["backbone", "neck", "pre_logits"] = "neck",
        *,
        out_type: OutType = "cls_token",
        out_indices: int | Sequence[int] = (-1,),
    ) -> tuple[Tensor, ...] | Tensor:
        """Returns features after some of the blocks, like mmpretrain's method of this name.

        Args:
            images: (B, in_channels, h, w).
            stage: "backbone" for a tuple with one tensor per block; "neck" for the same tuple, because the model has no
                neck; "pre_logits" for only the last tensor of this tuple.
            out_type: "cls_token" for the class token (B, D); "featmap" for the patch tokens (B, D, H, W); "avg_featmap"
                for the mean of the patch tokens (B, D); "raw" for all tokens, which are (B, N, D) after an XCA block
                and (B, 1+N, D) after a class attention block.
            out_indices: indices of the blocks: XCA blocks come first, then class attention blocks. Negative indices
                count from the end. For the last class attention block, the features are computed after the final norm.

        Raises:
            XCiTError: if a name or index is unknown, or if `out_type` is "cls_token" and `out_indices` contains an XCA
                block. XCA blocks have no class token.
        """
        if stage not in ("backbone", "neck", "pre_logits"):
            raise XCiTError(f"stage is {stage!r}, but must be 'backbone', 'neck' or 'pre_logits'")
        if out_type not in ("cls_token", "featmap", "avg_featmap", "raw"):
            raise XCiTError(f"out_type is {out_type!r}, but must be 'cls_token', 'featmap', 'avg_featmap' or 'raw'")
        depth = self.config.depth
        num_blocks = depth + self.config.cls_depth
        take = resolve_indices([out_indices] if isinstance(out_indices, int) else out_indices, num_blocks)
        if out_type == "cls_token" and take[0] < depth:
            raise XCiTError(
                f"block {take[0]} has no class token: the class token enters at block {depth} of {num_blocks}; "
                "ask for 'featmap', 'avg_featmap' or 'raw'"
            )
        encoded = self._encode(
            images,
            take,
            stop=min(max(take), depth - 1),
            class_attention=take[-1] >= depth,
            only_class=out_type == "cls_token",
        )
        features = []
        for index in take:
            tokens = encoded.tokens if index == num_blocks - 1 else encoded.taken[index]
            if out_type == "cls_token":
                features.append(tokens[:, 0])
            elif out_type == "raw":
                features.append(tokens)
            else:
                patches = tokens[:, 1:] if index >= depth else tokens
                features.append(patches.mean(dim=1) if out_type == "avg_featmap" else _as_map(patches, encoded.grid))
        return features[-1] if stage == "pre_logits" else tuple(features)

    def _encode(
        self,
        images: Tensor,
        take: Collection[int] = (),
        *,
        stop: int | None = None,
        class_attention: bool = True,
        only_class: bool = False,
    ) -> Encoded:
        """Runs the stem, the XCA blocks, class attention and the final norm. All outputs come from this method.

        Args:
            images: (B, in_channels, h, w).
            take: indices of blocks. The tokens after each of these blocks are also returned.
            stop: index of the last XCA block that is run; None runs all.
            class_attention: whether to run class attention and the final norm.
            only_class: whether the caller needs only the class token after class attention. The result is then only the
                class token (B, 1, D), unless hooks observe the modules that compute the patch tokens.
        """
        self._check_images(images)
        return self._pass(images, take, stop, class_attention, only_class and not self._is_heard_out())

    def _pass(
        self, images: Tensor, take: Collection[int], stop: int | None, class_attention: bool, only_class: bool
    ) -> Encoded:
        tokens, height, width = self._embed(images)
        taken: dict[int, Tensor] = {}
        tokens = self._mix(tokens, (height, width), take, taken, stop)
        if class_attention and self.config.cls_depth:
            tokens = self.norm(self._attend(tokens, take, taken, only_class))
        return Encoded(tokens, taken, (height, width))

    def _is_heard_out(self) -> bool:
        """Returns whether a hook could detect that the last block and the final norm compute only the class token."""
        if not self.config.cls_depth:
            return False
        parts = (self.cls_blocks[-1], self.norm)
        return is_anything_watched() or any(is_watched(module) for part in parts for module in part.modules())

    def _embed(self, images: Tensor) -> tuple[Tensor, int, int]:
        """Returns the tokens (B, N, D) with the position code added, and H and W."""
        image = self.stem(images)
        height, width = image.shape[-2:]
        # `flatten(2).transpose(1, 2)` is not used: for a batch of one image, its gradient has strides for which batch
        # norm in torch 2.15 computes wrong values on a CPU. All gradients of the stem would then be wrong.
        tokens = image.permute(0, 2, 3, 1).contiguous().flatten(1, 2)
        return tokens + self.position(height, width), height, width

    def _mix(
        self, tokens: Tensor, grid: tuple[int, int], take: Collection[int], taken: dict[int, Tensor], stop: int | None
    ) -> Tensor:
        """Returns tokens (B, N, D) after the XCA blocks, up to and including the block `stop`.

        The tokens after each block in `take` are stored in `taken`.
        """
        for index, block in enumerate(self.blocks):
            tokens = self._run(block, tokens, *grid)
            if index in take:
                taken[index] = self._keep(tokens)
            if index == stop:
                break
        return tokens

    def _keep(self, tokens: Tensor) -> Tensor:
        """Returns the tokens as a tensor that the next block will not change."""
        return tokens

    def _attend(self, tokens: Tensor, take: Collection[int], taken: dict[int, Tensor], only_class: bool) -> Tensor:
        """Returns tokens (B, 1+N, D) after the class attention blocks; only (B, 1, D) if `only_class` is true.

        The tokens after each block in `take` are stored in `taken`.
        """
        last = self.config.depth + self.config.cls_depth - 1
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for index, block in enumerate(self.cls_blocks, start=self.config.depth):
            tokens = self._run(block, tokens, only_class and index == last)
            if index in take:
                taken[index] = tokens
        return tokens

    def _run(self, block: nn.Module, *inputs: Tensor | int) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return recomputed(block, *inputs)
        out: Tensor = block(*inputs)
        return out

    def _check_images(self, images: Tensor) -> None:
        if isinstance(images, torch.fx.Proxy):  # the tracer does not know the values
            return
        check_batch(images, self.config.in_channels)
        height, width = images.shape[2:]
        config = self.config
        if height < config.patch_size or width < config.patch_size:
            raise XCiTError(
                f"images are {height}x{width} pixels, smaller than one patch of {config.patch_size}x{config.patch_size}"
            )


class FusedXCiT(XCiT):
    """The result of `XCiT.fuse`: a copy of a model that supports everything except gradients and training."""

    def __init__(self, model: XCiT) -> None:
        nn.Module.__init__(self)
        check_fusible(model)
        model = copy.deepcopy(model).eval().requires_grad_(False)
        self.config, self.info, self.grad_checkpointing = model.config, model.info, False
        self._pretrained_cfg = model._pretrained_cfg
        self.embedding = FusedEmbedding(model.stem, model.position)
        self.blocks = nn.ModuleList(FusedXCABlock(block) for block in cast(Iterable[XCABlock], model.blocks))
        if self.config.cls_depth:
            self.cls_token, self.norm = model.cls_token, model.norm
            cls_blocks = cast(Iterable[ClassAttentionBlock], model.cls_blocks)
            self.cls_blocks = nn.ModuleList(FusedClassAttentionBlock(block) for block in cls_blocks)
        self.head = model.head
        self.eval()

    def fuse(self) -> "FusedXCiT":
        """Returns the model itself."""
        return self

    def reset_parameters(self) -> None:
        """Raises an `XCiTError`, because a fused model can't be initialised."""
        raise XCiTError("a fused model can't be reset: reset the original model, then fuse it again")

    @torch.no_grad()
    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Returns the result of `XCiT.forward_head`, without gradients."""
        return super().forward_head(tokens, pre_logits)

    @torch.no_grad()
    def _pass(
        self, images: Tensor, take: Collection[int], stop: int | None, class_attention: bool, only_class: bool
    ) -> Encoded:
        if isinstance(images, torch.fx.Proxy):
            raise XCiTError("torch.fx can't trace a fused model: trace the original model, or use torch.export")
        # Additions in place need tensors of one dtype. Without autocast, all tensors have the dtype of the model.
        with torch.autocast(images.device.type, enabled=False):
            return super()._pass(images, take, stop, class_attention, only_class)

    def _embed(self, images: Tensor) -> tuple[Tensor, int, int]:
        embedded: tuple[Tensor, int, int] = self.embedding(images)
        return embedded

    def _mix(
        self, tokens: Tensor, grid: tuple[int, int], take: Collection[int], taken: dict[int, Tensor], stop: int | None
    ) -> Tensor:
        at_once = tokens_at_once(tokens)
        is_heard = is_anything_watched() or any(is_watched(block) for block in self.blocks)
        if at_once is None or tokens.shape[1] <= at_once or is_heard:
            return super()._mix(tokens, grid, take, taken, stop)
        # Each image is processed in stripes. When a block outputs rows, these rows are added to XCA's sums for the next
        # block.
        rows_at_once = stripe_rows(tokens, grid[1])
        images = [TensorTokens(image) for image in tokens.unflatten(1, grid)]
        blocks = [block for block in self.blocks if isinstance(block, FusedXCABlock)]
        blocks = blocks if stop is None else blocks[: stop + 1]
        sums = [sums_of(image, blocks[0].norm_xca, rows_at_once) for image in images]
        for index, block in enumerate(blocks):
            following = blocks[index + 1].norm_xca if index + 1 < len(blocks) else None
            sums = [
                pass_xca_block(block, image, one, rows_at_once, image.write, following)
                for image, one in zip(images, sums, strict=True)
            ]
            if index in take:
                taken[index] = self._keep(tokens)
        return tokens

    def _run(self, block: nn.Module, *inputs: Tensor | int) -> Tensor:
        out: Tensor = block(*inputs)
        # A hook may store the output, but the next block changes its input in place. So the next block gets a copy.
        return out.clone() if is_watched(block) or is_anything_watched() else out

    def _keep(self, tokens: Tensor) -> Tensor:
        return tokens.clone()

    def _attend(self, tokens: Tensor, take: Collection[int], taken: dict[int, Tensor], only_class: bool) -> Tensor:
        last = self.config.depth + self.config.cls_depth - 1
        cls = attended = self.cls_token.expand(tokens.shape[0], -1, -1)
        for index, block in enumerate(self.cls_blocks, start=self.config.depth):
            cls = block(cls, tokens, not (only_class and index == last))
            if index == last or index in take:
                attended = cls if only_class else torch.cat([cls, tokens], dim=1)
                taken[index] = attended
        return attended


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns patch tokens (B, N, D) as an image (B, D, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, grid).contiguous()
