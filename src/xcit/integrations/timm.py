"""Registers our classifiers and feature backbones with timm: `import xcit.integrations.timm`, then `timm.create_model`.

    timm.create_model("xcit-small-12-p8_3rdparty-dist_in1k", pretrained=True)
    timm.create_model("xcit-small-12-p8", num_classes=10, in_chans=4)
    timm.create_model("xcit-small-12-p8", features_only=True, out_indices=(3, 5, 7, 11))

Names are those of `xcit list`, and `xcit-<architecture>`. timm's own XCiT is spelled with underscores, so neither takes
the other's place. (timm reads a name with a slash as a repository of the Hub.)
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import nn

from xcit.errors import XCiTError
from xcit.models import FX_LEAF_MODULES, XCiT, XCiTConfig
from xcit.zoo import CHECKPOINTS, get_backbone, get_xcit
from xcit.zoo.architectures import PUBLISHED_ARCHITECTURES, backbone_of
from xcit.zoo.names import find_checkpoint

try:
    from timm.models import DefaultCfg, PretrainedCfg, build_model_with_cfg, register_model, register_notrace_module
except ImportError:
    raise XCiTError("xcit.integrations.timm needs timm: pip install 'xcit[train]'") from None


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
        record = find_checkpoint(name)
        if feature_cls != "getter":
            raise XCiTError(f"{name}: feature_cls is {feature_cls!r}, must be 'getter'")
        if drop_path_rate is not None and pretrained:
            raise XCiTError(f"{name}: drop_path_rate can't be changed with pretrained weights here: set it in a recipe")
        in_channels = record.config.in_channels if in_chans is None else in_chans
        config = replace(record.config, in_channels=in_channels)
        if drop_path_rate is not None:
            config = replace(config, drop_path_rate=drop_path_rate)
        if features_only:
            backbone = get_backbone(name, True) if pretrained else _new(backbone_of(config), device)
            _take_channels(backbone, in_channels)
            wrapped: nn.Module = build_model_with_cfg(
                lambda **_: backbone,
                name,
                False,
                pretrained_cfg=_data_cfg(name, in_channels),
                features_only=True,
                feature_cfg={"out_indices": 4 if out_indices is None else out_indices, "feature_cls": "getter"},
            )
            return wrapped.to(device=device, dtype=dtype)
        model = get_xcit(name, True) if pretrained else _new(config, device)
        _take_channels(model, in_channels)
        if model.info is None:
            model.pretrained_cfg = _data_cfg(name, in_channels)
        if num_classes is not None and num_classes != model.num_classes:
            model.reset_classifier(num_classes)
        if global_pool is not None:
            model.reset_classifier(model.num_classes, global_pool)
        return model.to(device=device, dtype=dtype).train()  # in training mode, as timm gives it

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"`{name}` of the package xcit."
    return create


def _new(config: XCiTConfig, device: str | torch.device | None) -> XCiT:
    """A model with random weights, on the meta device without any."""
    with torch.device(device) if device is not None else nullcontext():
        return XCiT(config)


def _take_channels(model: XCiT, in_channels: int) -> None:
    """Makes a model take images of other channels by timm's rule: sums of its weights, or repetitions of them."""
    if in_channels == model.config.in_channels:
        return
    conv = model.stem[0].conv
    assert isinstance(conv, nn.Conv2d)
    weight, had = conv.weight.detach(), conv.in_channels
    if in_channels == 1:
        weight = weight.sum(dim=1, keepdim=True)
    else:
        weight = weight.repeat(1, -(-in_channels // had), 1, 1)[:, :in_channels] * (had / in_channels)
    conv.weight, conv.in_channels = nn.Parameter(weight), in_channels
    model.config = replace(model.config, in_channels=in_channels)
    model.info = None  # its preprocessing is that of the channels it had


def _default_cfg(name: str) -> DefaultCfg:
    """What timm's tools ask of a name before there is a model: how images are prepared, whether there are weights."""
    record = find_checkpoint(name)
    spec, source = record.preprocessing, record.sources[0] if record.sources else None
    on_hub = source is not None and source.kind == "huggingface"
    cfg = PretrainedCfg(
        url=source.location if source is not None and not on_hub else None,
        hf_hub_id=source.location if source is not None and on_hub else None,
        hf_hub_filename=source.filename if source is not None and on_hub else None,
        file=record.packaged,
        input_size=(record.config.in_channels, spec.image_size, spec.image_size),
        crop_pct=spec.image_size / spec.resize_to if spec.resize == "short_side" else 1.0,
        crop_mode="center" if spec.resize == "short_side" else "squash",
        mean=spec.mean,
        std=spec.std,
        num_classes=record.config.num_classes,
        first_conv="stem.0.conv",
        classifier="head",
        license=record.licence,
    )
    return DefaultCfg(tags=deque([""]), cfgs={"": cfg}, is_pretrained=True)


def _data_cfg(name: str, in_channels: int) -> dict[str, Any]:
    """`pretrained_cfg` of a model; other channels than those of the weights are normalised by the mean of theirs."""
    cfg = default_cfgs[name].default.to_dict()
    if cfg["input_size"][0] != in_channels:
        cfg["input_size"] = (in_channels, *cfg["input_size"][1:])
        cfg["mean"], cfg["std"] = ((fmean(cfg[key]),) * in_channels for key in ("mean", "std"))
    return cfg


NAMES = tuple(dict.fromkeys([*CHECKPOINTS, *(f"xcit-{architecture}" for architecture in PUBLISHED_ARCHITECTURES)]))
"""What is registered."""

default_cfgs = {name: _default_cfg(name) for name in NAMES}
"""Where `register_model` looks for them."""

for _name in NAMES:
    register_model(_entrypoint(_name))

for _class in FX_LEAF_MODULES:  # for the fx tracers of timm's tools
    register_notrace_module(_class)
