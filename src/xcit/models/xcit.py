"""XCiT (arXiv 2106.09681): one config, one module, and one loop over the blocks that serves every kind of output.

Shapes: `B` batch, `H = ceil(h / patch)`, `W = ceil(w / patch)` token grid of an h x w image, `N = H*W` tokens,
`D` width.
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

    tokens: Tensor  # (B, 1+N, D) after the final norm, or (B, N, D) if class attention was not run
    taken: dict[int, Tensor]  # block index -> tokens after that block
    grid: tuple[int, int]  # (H, W)


class XCiT(NotScripted, Shareable, TimmCalls, Fusible):
    """Cross-covariance image transformer.

    Takes images (B, in_channels, h, w) of any size of at least one patch. They need not be square, nor a multiple of
    the patch size. Blocks are counted 0..depth-1 for XCA and depth..depth+cls_depth-1 for class attention.

    Attributes:
        config: the shape of the model.
        info: class names and preprocessing if the model came with weights, else None.
    """

    def __init__(self, config: XCiTConfig) -> None:
        super().__init__()
        self.config = copy.copy(config)  # a program may write to it; that must change only this model
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
        """Initialises linear layers and the class token; convolutions keep the values that torch gave them."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module)
        if self.config.cls_depth:
            nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (B, num_classes) of normalised images, or the pooled feature (B, D) if there is no head.

        With `global_pool` "none" the head is applied to every token: (B, 1+N, num_classes).
        """
        only_class = self.config.global_pool == "cls"
        return self.forward_head(self._encode(images, only_class=only_class).tokens)

    def fuse(self) -> "XCiT":
        """Returns a faster copy for inference, with the same methods and outputs.

        The copy takes less memory and has no gradients. The original does not change. To infer in float16 or bfloat16,
        fuse first and convert the copy.
        """
        return FusedXCiT(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns tokens (B, 1+N, D) after the final norm, class token first; (B, N, D) if there is no class token."""
        return self._encode(images).tokens

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools tokens (B, 1+N, D) and classifies them; with `pre_logits` it returns the pooled feature (B, D)."""
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
        """Returns the tokens after some of the XCA blocks, as timm does.

        Args:
            images: (B, in_channels, h, w).
            indices: an int means the last n blocks, None means all; negative indices count from the end.
            norm: apply the final norm to each.
            stop_early: run no XCA block after the last requested one.
            output_fmt: "NCHW" gives (B, D, H, W), "NLC" gives (B, N, D).
            intermediates_only: return only the intermediates, and skip the class attention that makes the final tokens.

        Returns:
            The final tokens and the intermediates in the order of the blocks, or the intermediates alone.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise XCiTError(f"output_fmt is {output_fmt!r}, must be 'NCHW' or 'NLC'")
        depth = self.config.depth
        if indices is None:
            indices = range(depth)
        elif isinstance(indices, int):
            if not 0 < indices <= depth:
                raise XCiTError(f"the last {indices} blocks were asked for, of {depth}")
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
        """Returns features as mmpretrain does.

        Args:
            images: (B, in_channels, h, w).
            stage: "backbone" and "neck" return a tuple (there is no neck), "pre_logits" returns its last tensor.
            out_type: "cls_token" (B, D); "featmap" (B, D, H, W); "avg_featmap" (B, D), the mean of the patch tokens;
                "raw" (B, N, D) after an XCA block, (B, 1+N, D) after a class attention block.
            out_indices: blocks, counted over XCA and class attention blocks; negative indices count from the end. The
                last block's tokens are taken after the final norm.

        Raises:
            XCiTError: if a name or index is unknown, or if the class token is requested of a block that has none.
        """
        if stage not in ("backbone", "neck", "pre_logits"):
            raise XCiTError(f"stage is {stage!r}, must be 'backbone', 'neck' or 'pre_logits'")
        if out_type not in ("cls_token", "featmap", "avg_featmap", "raw"):
            raise XCiTError(f"out_type is {out_type!r}, must be 'cls_token', 'featmap', 'avg_featmap' or 'raw'")
        depth = self.config.depth
        num_blocks = depth + self.config.cls_depth
        take = resolve_indices([out_indices] if isinstance(out_indices, int) else out_indices, num_blocks)
        if out_type == "cls_token" and take[0] < depth:
            raise XCiTError(
                f"block {take[0]} has no class token: it enters at block {depth} of {num_blocks}; "
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
        """Runs stem, XCA blocks up to `stop`, class attention and final norm; every output comes from this pass.

        With `only_class` the caller does not need the patch tokens after class attention. Then only the class token
        (B, 1, D) is returned, unless hooks listen to the modules that compute the patch tokens.
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
        """Whether a hook could detect that the last block and the final norm compute only the class token."""
        if not self.config.cls_depth:
            return False
        parts = (self.cls_blocks[-1], self.norm)
        return is_anything_watched() or any(is_watched(module) for part in parts for module in part.modules())

    def _embed(self, images: Tensor) -> tuple[Tensor, int, int]:
        """Returns tokens (B, N, D) with their position code, H and W."""
        image = self.stem(images)
        height, width = image.shape[-2:]
        # Not flatten(2).transpose(1, 2): for a batch of one, its gradient has strides for which torch's batch norm on a
        # CPU (2.15) computes wrong values, and then every gradient of the stem is wrong.
        tokens = image.permute(0, 2, 3, 1).contiguous().flatten(1, 2)
        return tokens + self.position(height, width), height, width

    def _mix(
        self, tokens: Tensor, grid: tuple[int, int], take: Collection[int], taken: dict[int, Tensor], stop: int | None
    ) -> Tensor:
        """Returns tokens (B, N, D) after the XCA blocks, up to `stop`. Adds to `taken`."""
        for index, block in enumerate(self.blocks):
            tokens = self._run(block, tokens, *grid)
            if index in take:
                taken[index] = self._keep(tokens)
            if index == stop:
                break
        return tokens

    def _keep(self, tokens: Tensor) -> Tensor:
        """Returns tokens that the next block will not change."""
        return tokens

    def _attend(self, tokens: Tensor, take: Collection[int], taken: dict[int, Tensor], only_class: bool) -> Tensor:
        """Returns tokens (B, 1+N, D) after the class attention blocks; (B, 1, D) if `only_class`. Adds to `taken`."""
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
        if isinstance(images, torch.fx.Proxy):  # a traced graph can't check values
            return
        check_batch(images, self.config.in_channels)
        height, width = images.shape[2:]
        config = self.config
        if height < config.patch_size or width < config.patch_size:
            raise XCiTError(
                f"images are {height}x{width} pixels, smaller than one patch of {config.patch_size}x{config.patch_size}"
            )


class FusedXCiT(XCiT):
    """The result of `XCiT.fuse`: a copy of the model that supports everything except gradients and training."""

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
        """Raises an error: a fused model has no first values of its own."""
        raise XCiTError("a fused model has no first values: reset the one it was made from, and fuse that")

    @torch.no_grad()
    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """As `XCiT.forward_head`, without gradients."""
        return super().forward_head(tokens, pre_logits)

    @torch.no_grad()
    def _pass(
        self, images: Tensor, take: Collection[int], stop: int | None, class_attention: bool, only_class: bool
    ) -> Encoded:
        if isinstance(images, torch.fx.Proxy):
            raise XCiTError("torch.fx can't trace a fused model: trace the one it was made from, or use torch.export")
        # Additions in place need a single dtype, which is that of the model.
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
        # An image is processed in stripes. While rows leave a block, XCA's sums for the next block are taken from them.
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
        # A hook may keep the output, which must not change when the next block works on it in place.
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
