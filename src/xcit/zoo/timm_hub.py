"""Reads and writes `config.json` in the format of timm's classifiers on the Hub, for timm and transformers.

timm builds the model from the fields `architecture` (name of a timm architecture) and `model_args` (arguments of the
architecture), and then loads weights with timm's tensor names. The class TimmWrapper of transformers reads the same
file. For transformers, `problem_type` states whether an image may have several classes. timm has no stem for a patch
size of 4, and no XCiT without class attention, so such models can't be written in this format.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from xcit.config import from_dict
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models import ModelInfo, XCiTConfig
from xcit.models.timm_calls import data_config, pool_of
from xcit.zoo.architectures import PUBLISHED_ARCHITECTURES
from xcit.zoo.classes import imagenet_class_ids, imagenet_class_names

_ARCHITECTURE = re.compile(r"xcit_((?:nano|tiny|small|medium|large)_(?:12|24)_p(?:8|16))_(?:224|384)")

_MULTI_LABEL = "multi_label_classification"

_ARGUMENTS = {
    "patch_size": "patch_size",
    "embed_dim": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "cls_attn_layers": "cls_depth",
    "tokens_norm": "tokens_norm",
    "eta": "layer_scale",
    "in_chans": "in_channels",
}
"""Maps the names of timm's arguments to the fields of `XCiTConfig`."""

# Arguments of timm that are ignored, because they do not change the outputs of a model with loaded weights.
_IGNORED = (
    "img_size",
    "num_classes",
    "drop_rate",
    "pos_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
)

_POOLS = {"cls": "token", "avg": "avg", "none": ""}


def timm_config(config: XCiTConfig, info: ModelInfo | None) -> dict[str, Any] | None:
    """Returns the content of `config.json`; None if timm has no such model, or if `info` is None."""
    if config.stem_strides or config.patch_size not in (8, 16) or not config.cls_depth or info is None:
        return None
    spec = info.preprocessing
    name = _nearest(config)
    base = PUBLISHED_ARCHITECTURES[name]
    # `layer_scale` is left out, because it is only an initial value, which the weights replace.
    arguments = {
        theirs: getattr(config, ours)
        for theirs, ours in _ARGUMENTS.items()
        if ours != "layer_scale" and getattr(config, ours) != getattr(base, ours)
    }
    if config.global_pool != base.global_pool:
        arguments["global_pool"] = _POOLS[config.global_pool]
    content: dict[str, Any] = {
        "architecture": f"xcit_{name.replace('-', '_')}_{384 if spec.image_size == 384 else 224}",
        "num_classes": config.num_classes,
        "num_features": config.embed_dim,
    }
    if _POOLS[config.global_pool]:
        content["global_pool"] = _POOLS[config.global_pool]
    if info.class_names:
        content["label_names"] = [*info.class_names]
    if info.is_multi_label:
        content["problem_type"] = _MULTI_LABEL
    if arguments:
        content["model_args"] = arguments
    content["pretrained_cfg"] = {
        **data_config(spec, config.in_channels),
        "fixed_input_size": False,
        "num_classes": config.num_classes,
        "pool_size": None,
        # timm adapts the convolution in `first_conv` to the number of channels. Older versions of timm adapt even
        # weights that already fit, so `first_conv` is None if the number of channels is not 3.
        "first_conv": "patch_embed.proj.0.0" if config.in_channels == 3 else None,
        "classifier": "head",
    }
    return content


def _nearest(config: XCiTConfig) -> str:
    """Returns the published architecture that differs from `config` in the fewest fields."""
    fields = [ours for ours in _ARGUMENTS.values() if ours != "layer_scale"]

    def distance(name: str) -> int:
        published = PUBLISHED_ARCHITECTURES[name]
        return sum(getattr(published, field) != getattr(config, field) for field in fields)

    return min(PUBLISHED_ARCHITECTURES, key=distance)


def is_timm_config(content: Mapping[str, Any]) -> bool:
    """Returns whether the content of a `config.json` has timm's format; the model need not be an XCiT."""
    return isinstance(content.get("architecture"), str) and content.get("library_name") is None


def read_timm_config(content: Mapping[str, Any], name: str, what: str) -> tuple[XCiTConfig, ModelInfo]:
    """Returns the config and info of a model, from a `config.json` that `timm_config` or timm wrote.

    If this package has no preprocessing that is exactly timm's, the info contains a similar preprocessing, and
    `info.assumed` is True.

    Args:
        content: content of the file.
        name: name of the model, for the info.
        what: beginning of the error message.

    Raises:
        XCiTError: if the model is not an XCiT, or the content is not valid.
    """
    try:
        match = _ARCHITECTURE.fullmatch(content["architecture"])
        if match is None:
            raise XCiTError(f"{what}: its architecture is {content['architecture']!r}, which is not an XCiT of timm")
        prepared = content.get("pretrained_cfg", content)  # timm's first files had no nested `pretrained_cfg`
        num_classes = content.get("num_classes", prepared.get("num_classes", 1000))
        arguments = content.get("model_args") or {}
        channels, height, width = prepared.get("input_size", (3, 224, 224))
        fields = {"in_channels": channels, **_fields_of(arguments, what)}
        pool = arguments.get("global_pool", content.get("global_pool"))
        base = asdict(PUBLISHED_ARCHITECTURES[match[1].replace("_", "-")])
        named = {"num_classes": num_classes, **fields, **({} if pool is None else {"global_pool": pool_of(pool)})}
        config = from_dict(XCiTConfig, base | named)
        spec, is_exact = _preprocessing(prepared, height, width)
        if len(spec.mean) != config.in_channels or len(spec.std) != config.in_channels:
            raise XCiTError(f"its mean and std do not have {config.in_channels} channels")
        names, ids = _classes(content, prepared, num_classes)
    except KeyError as error:
        raise XCiTError(f"{what}: there is no {error}") from None
    except XCiTError as error:
        text = str(error)
        raise XCiTError(text if text.startswith(what) else f"{what}: {text}") from None
    except (ValueError, TypeError, AttributeError, OverflowError, ZeroDivisionError) as error:
        raise XCiTError(f"{what}: {error}") from None
    info = ModelInfo(
        name=name,
        preprocessing=spec,
        class_names=names,
        class_ids=ids,
        is_multi_label=content.get("problem_type") == _MULTI_LABEL,
        assumed=not is_exact,
    )
    return config, info


def _fields_of(arguments: Mapping[str, Any], what: str) -> dict[str, Any]:
    known = {*_ARGUMENTS, *_IGNORED, "global_pool"}
    if unknown := [argument for argument in arguments if argument not in known]:
        raise XCiTError(f"{what}: model_args has {unknown[0]!r}, which this package does not know")
    return {_ARGUMENTS[argument]: value for argument, value in arguments.items() if argument in _ARGUMENTS}


def _preprocessing(prepared: Mapping[str, Any], height: int, width: int) -> tuple[Preprocessing, bool]:
    """Returns the preprocessing, and whether it is exactly timm's."""
    default = Preprocessing()
    resize_to = math.floor(height / prepared.get("crop_pct", 0.875))
    is_squashed = prepared.get("crop_mode", "center") == "squash"
    values = {
        "image_size": height,
        "resize": "exact" if is_squashed else "short_side",
        "resize_to": resize_to,
        "mean": prepared.get("mean", default.mean),
        "std": prepared.get("std", default.std),
    }
    spec = from_dict(Preprocessing, values)
    is_exact = (
        height == width
        and prepared.get("interpolation", "bicubic") == "bicubic"
        and prepared.get("crop_mode", "center") in ("center", "squash")
        and not (is_squashed and resize_to != height)
    )
    return spec, is_exact


def _classes(
    content: Mapping[str, Any], prepared: Mapping[str, Any], num_classes: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the class names, and the names of the class folders (empty if they equal the class names).

    timm's own repositories of ImageNet models contain no class names. So a model with 1000 classes and no class names
    gets the class names of ImageNet.
    """
    labels = content.get("label_names", prepared.get("label_names"))
    if labels is None:
        return (imagenet_class_names(), imagenet_class_ids()) if num_classes == 1000 else ((), ())
    labels = [labels[key] for key in sorted(labels, key=int)] if isinstance(labels, dict) else labels
    names = tuple(map(str, labels))
    if len(names) != num_classes:
        raise XCiTError(f"there are {len(names)} label_names for {num_classes} classes")
    if names == imagenet_class_names():
        return names, imagenet_class_ids()
    descriptions = content.get("label_descriptions", prepared.get("label_descriptions")) or {}
    if all(name in descriptions for name in names):
        return tuple(str(descriptions[name]) for name in names), names
    return names, ()
