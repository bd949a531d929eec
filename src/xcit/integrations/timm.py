"""Registers our classifiers and feature backbones with timm: `import xcit.integrations.timm`, then `timm.create_model`.

    timm.create_model("xcit-small-12-p8_3rdparty-dist_in1k", pretrained=True)
    timm.create_model("xcit-small-12-p8", num_classes=10, in_chans=4)
    timm.create_model("xcit-small-12-p8", features_only=True, out_indices=(3, 5, 7, 11))

    timm.create_model("pyramid_xcit-small-12-p8", features_only=True)  # maps of strides 4, 8, 16, 32
    segmentation_models_pytorch.Unet("tu-pyramid_xcit-small-12-p8")

Names are those of `xcit list`, and `xcit-<architecture>`. timm's own XCiT is spelled with underscores, so neither takes
the other's place. (timm reads a name with a slash as a repository of the Hub.) Each name comes a second time with
`pyramid_` before it, for decoders that need a pyramid: an XCiT's blocks have one stride, which they refuse.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig, XCiTPyramid
from xcit.models.pyramid import STRIDES
from xcit.zoo import CHECKPOINTS, get_backbone, get_xcit
from xcit.zoo.architectures import PUBLISHED_ARCHITECTURES, backbone_of
from xcit.zoo.names import find_checkpoint

try:
    from timm.models import FeatureInfo, build_model_with_cfg, register_model
except ModuleNotFoundError:
    raise XCiTError("xcit.integrations.timm needs timm: pip install 'xcit[train]'") from None


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        *,
        num_classes: int | None = None,
        in_chans: int = 3,
        drop_path_rate: float | None = None,
        global_pool: str | None = None,
        features_only: bool = False,
        out_indices: int | Sequence[int] | None = None,
    ) -> nn.Module:
        config = _changed(name, pretrained, in_chans, drop_path_rate)
        if features_only:
            backbone = get_backbone(name, pretrained) if config is None else XCiT(backbone_of(config))
            wrapped: nn.Module = build_model_with_cfg(
                lambda **_: backbone,
                name,
                False,
                pretrained_cfg=backbone.pretrained_cfg,
                features_only=True,
                feature_cfg={"out_indices": 4 if out_indices is None else out_indices, "feature_cls": "getter"},
            )
            return wrapped
        model = get_xcit(name, pretrained) if config is None else XCiT(config)
        if num_classes is not None and num_classes != model.num_classes:
            model.reset_classifier(num_classes)
        if global_pool is not None:
            model.reset_classifier(model.num_classes, global_pool)
        return model.train()  # as timm gives it

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"`{name}` of the package xcit."
    return create


class PyramidFeatures(nn.Module):
    """Images (B, in_channels, h, w) to a list of maps (B, D, height, width) of strides out of 4, 8, 16 and 32.

    What none of the wanted maps needs is dropped.

    Attributes:
        feature_info: timm's account of channels and strides.
    """

    def __init__(self, pyramid: XCiTPyramid, out_indices: int | Sequence[int] | None) -> None:
        super().__init__()
        wanted = _wanted(out_indices)
        self.blocks = [pyramid.out_indices[index] for index in wanted]
        self.model = pyramid.xcit
        self.model.prune_intermediate_layers(self.blocks)
        self.resize = nn.ModuleList(getattr(pyramid.pyramid, f"stride{STRIDES[index]}") for index in wanted)
        self.feature_info = FeatureInfo(
            [
                {"num_chs": pyramid.embed_dim, "reduction": stride, "module": f"model.blocks.{block}"}
                for stride, block in zip(STRIDES, pyramid.out_indices, strict=True)
            ],
            tuple(wanted),
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        self.model.set_grad_checkpointing(enable)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps, from the finest."""
        maps = self.model.forward_intermediates(images, self.blocks, intermediates_only=True)
        return [resize(tokens) for resize, tokens in zip(self.resize, maps, strict=True)]


def _wanted(out_indices: int | Sequence[int] | None) -> list[int]:
    """Maps, 0 the finest: the last n for an int, all for none, else these; negative counts from the end."""
    count = len(STRIDES)
    if out_indices is None:
        return list(range(count))
    indices = range(-out_indices, 0) if isinstance(out_indices, int) else out_indices
    if not indices or not all(-count <= index < count for index in indices):
        raise XCiTError(f"out_indices is {out_indices}: a pyramid has {count} maps, of strides {STRIDES}")
    return sorted({index % count for index in indices})


def _pyramid_entrypoint(name: str) -> Callable[..., nn.Module]:
    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        *,
        in_chans: int = 3,
        drop_path_rate: float | None = None,
        features_only: bool = False,
        out_indices: int | Sequence[int] | None = None,
    ) -> nn.Module:
        if not features_only:
            raise XCiTError(f"pyramid_{name} gives feature maps alone: pass features_only=True, or take {name}")
        config = _changed(name, pretrained, in_chans, drop_path_rate)
        pyramid = get_backbone(name, pretrained, pyramid=True) if config is None else XCiTPyramid(backbone_of(config))
        return PyramidFeatures(pyramid, out_indices).train()

    create.__name__ = create.__qualname__ = f"pyramid_{name}"
    create.__doc__ = f"The feature pyramid on `{name}` of the package xcit."
    return create


def _changed(name: str, pretrained: bool, in_chans: int, drop_path_rate: float | None) -> XCiTConfig | None:
    """The shape with the caller's changes; none where there are none, so that weights can be loaded."""
    config = find_checkpoint(name).config
    changes: dict[str, Any] = {} if drop_path_rate is None else {"drop_path_rate": drop_path_rate}
    if in_chans != config.in_channels:
        if pretrained:
            raise XCiTError(
                f"{name}: its weights take {config.in_channels} channels, not {in_chans}: leave pretrained out"
            )
        changes["in_channels"] = in_chans
    if changes and pretrained:
        raise XCiTError(f"{name}: drop_path_rate can't be changed with pretrained weights here: set it in a recipe")
    return replace(config, **changes) if changes else None


NAMES = tuple(dict.fromkeys([*CHECKPOINTS, *(f"xcit-{architecture}" for architecture in PUBLISHED_ARCHITECTURES)]))
"""What is registered, and once more with `pyramid_` before it."""

for _name in NAMES:
    register_model(_entrypoint(_name))
    register_model(_pyramid_entrypoint(_name))
