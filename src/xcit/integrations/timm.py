"""Registers our classifiers and feature backbones with timm: `import xcit.integrations.timm`, then `timm.create_model`.

    timm.create_model("xcit-small-12-p8_3rdparty-dist_in1k", pretrained=True)
    timm.create_model("xcit-small-12-p8", num_classes=10, in_chans=4)
    timm.create_model("xcit-small-12-p8", features_only=True, out_indices=(3, 5, 7, 11))

    timm.create_model("pyramid_xcit-small-12-p8", features_only=True)  # maps of strides 4, 8, 16, 32
    segmentation_models_pytorch.Unet("tu-pyramid_xcit-small-12-p8")

The names are those of the classifiers and backbones in `xcit list`, and `xcit-<architecture>` for each architecture.
They differ from timm's own XCiT names, which begin with `xcit_`. A prefix such as `xcit/` is not possible, because timm
interprets a name with a slash as a repository of the Hugging Face Hub.

Each name is also registered with the prefix `pyramid_`, for decoders that need feature maps of several strides. Without
the prefix, all feature maps have the same stride, because all blocks of an XCiT have the same stride.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.extras import missing_package
from xcit.images.preprocess import published_preprocessing
from xcit.models import FX_LEAF_MODULES, XCiTPyramid
from xcit.models.pyramid import STRIDES
from xcit.models.timm_calls import data_config
from xcit.zoo import CHECKPOINTS, get_backbone, get_xcit
from xcit.zoo.architectures import ARCHITECTURES
from xcit.zoo.changes import Changes
from xcit.zoo.names import find_checkpoint, find_shape, is_known

try:
    from timm.models import (
        DefaultCfg,
        FeatureInfo,
        PretrainedCfg,
        build_model_with_cfg,
        register_model,
        register_notrace_module,
    )
except ModuleNotFoundError:
    raise missing_package("xcit.integrations.timm", "timm") from None


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        *,
        num_classes: int | None = None,
        in_chans: int | None = None,
        drop_path_rate: float | None = None,
        global_pool: str | None = None,
        features_only: bool = False,
        feature_cls: str = "getter",
        out_indices: int | Sequence[int] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        if feature_cls != "getter":
            raise XCiTError(f"{name}: feature_cls is {feature_cls!r}, but must be 'getter'")
        changes = Changes(in_channels=in_chans, drop_path_rate=drop_path_rate)
        if features_only:
            with _place(device, pretrained):
                backbone = get_backbone(name, pretrained, changes=changes)
            wrapped: nn.Module = build_model_with_cfg(
                lambda **_: backbone,
                name,
                False,
                pretrained_cfg=_data_cfg(name, backbone.config.in_channels),
                features_only=True,
                feature_cfg={"out_indices": 4 if out_indices is None else out_indices, "feature_cls": "getter"},
            )
            return wrapped.to(device=device, dtype=dtype)
        with _place(device, pretrained):
            model = get_xcit(
                name, pretrained, num_classes=num_classes, changes=replace(changes, global_pool=global_pool)
            )
        if model.info is None:
            model.pretrained_cfg = _data_cfg(name, model.config.in_channels)
        return model.to(device=device, dtype=dtype).train()  # timm also returns its models in training mode

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"Builds the model `{name}` of the package xcit."
    return create


def _place(device: str | torch.device | None, pretrained: bool) -> AbstractContextManager[Any]:
    """Returns a context in which random weights are created on `device`. The meta device stores no values."""
    return nullcontext() if device is None or pretrained else torch.device(device)


class PyramidFeatures(nn.Module):
    """Maps images (B, in_channels, h, w) to a list of feature maps (B, D, height, width).

    The strides of the maps are 4, 8, 16 and 32. If `out_indices` requests only some of these maps, parts of the model
    that are used only for the other maps are removed.

    Attributes:
        feature_info: timm's description of the channels and strides of the maps.
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
        """Switches gradient checkpointing on or off: blocks are computed again in the backward pass to save memory."""
        self.model.set_grad_checkpointing(enable)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the maps, in ascending order of their strides."""
        maps = self.model.forward_intermediates(images, self.blocks, intermediates_only=True)
        return [resize(tokens) for resize, tokens in zip(self.resize, maps, strict=True)]


def _wanted(out_indices: int | Sequence[int] | None) -> list[int]:
    """Returns the numbers of the requested maps, sorted. Map 0 has the smallest stride.

    As in timm, an int n requests the last n maps, and None requests all maps. In a sequence, negative numbers count
    from the end.
    """
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
        in_chans: int | None = None,
        drop_path_rate: float | None = None,
        features_only: bool = False,
        out_indices: int | Sequence[int] | None = None,
    ) -> nn.Module:
        if not features_only:
            raise XCiTError(f"pyramid_{name} returns only feature maps: pass features_only=True, or use {name}")
        changes = Changes(in_channels=in_chans, drop_path_rate=drop_path_rate)
        pyramid = get_backbone(name, pretrained, pyramid=True, changes=changes)
        return PyramidFeatures(pyramid, out_indices).train()

    create.__name__ = create.__qualname__ = f"pyramid_{name}"
    create.__doc__ = f"Builds a feature pyramid on the model `{name}` of the package xcit."
    return create


def _default_cfg(name: str) -> DefaultCfg:
    """Returns timm's default config for a model name: the preprocessing, and the location of the weights.

    timm's tools read the default config before the model is built.
    """
    shape = None if is_known(name) else find_shape(name)
    place: dict[str, Any] = {}
    if shape is not None:  # an architecture without published weights
        spec, config = published_preprocessing("official", 224), shape
    else:
        record = find_checkpoint(name)
        spec, config, source = record.preprocessing, record.config, record.sources[0] if record.sources else None
        on_hub = source is not None and source.kind == "huggingface"
        place = {
            "url": source.location if source is not None and not on_hub else None,
            "hf_hub_id": source.location if source is not None and on_hub else None,
            "hf_hub_filename": source.filename if source is not None and on_hub else None,
            "file": record.packaged,
            "license": record.licence,
        }
    cfg = PretrainedCfg(
        **data_config(spec, config.in_channels),
        num_classes=config.num_classes,
        first_conv="stem.0.conv",
        classifier="head",
        **place,
    )
    return DefaultCfg(tags=deque([""]), cfgs={"": cfg}, is_pretrained=shape is None)


def _data_cfg(name: str, in_channels: int) -> dict[str, Any]:
    """Returns `pretrained_cfg` of a model for images with `in_channels` channels.

    If the default config has another number of channels, mean and std are replaced by their averages over the channels.
    """
    cfg = default_cfgs[name].default.to_dict()
    if cfg["input_size"][0] != in_channels:
        cfg["input_size"] = (in_channels, *cfg["input_size"][1:])
        cfg["mean"], cfg["std"] = ((fmean(cfg[key]),) * in_channels for key in ("mean", "std"))
    return cfg


NAMES = tuple(dict.fromkeys([*CHECKPOINTS, *(f"xcit-{architecture}" for architecture in ARCHITECTURES)]))
"""The registered names. Each name is also registered with the prefix `pyramid_`."""

default_cfgs = {name: _default_cfg(name) for name in NAMES}
"""Maps each name to its default config. timm's `register_model` reads this variable."""

for _name in NAMES:
    register_model(_entrypoint(_name))
    register_model(_pyramid_entrypoint(_name))

for _class in FX_LEAF_MODULES:  # the fx tracers of timm's tools must not trace into these modules
    register_notrace_module(_class)
