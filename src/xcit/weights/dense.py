"""Converts the tensor names of detectors and segmenters between this package's own (native) and the published names.

A dense model (a detector or segmenter) consists of a `backbone`, which is an XCiT with a pyramid, and one or more
heads. Each head has a bijective table. A row of the table maps the native name of a module to its published name. The
last part of a tensor's name, such as "weight", is the same in both names. The tensor names within the XCiT are in
`weights/formats.py`. The list of all heads is in the table of model kinds (`zoo/kinds.py`).
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

from xcit.errors import XCiTError
from xcit.weights.formats import from_native, to_native

Rows = Mapping[str, str]
"""Maps native module names to published module names, for all modules of a dense model except its XCiT."""

Heads = Mapping[str, Rows]
"""Maps the name of a head to its table."""

XCIT = "backbone.xcit."
"""The prefix of the XCiT's native names within a dense model."""

_BACKBONE = "backbone."

PYRAMID: Rows = {
    "backbone.pyramid.stride4.0": "backbone.fpn1.0",
    "backbone.pyramid.stride4.1": "backbone.fpn1.1",
    "backbone.pyramid.stride4.3": "backbone.fpn1.3",
    "backbone.pyramid.stride8.0": "backbone.fpn2.0",
}


def _conv_norm(native: str, published: str) -> dict[str, str]:
    return {f"{native}.conv": f"{published}.conv", f"{native}.norm": f"{published}.bn"}


UPERNET: Rows = {
    **PYRAMID,
    **{
        native: published
        for i in range(4)
        for native, published in _conv_norm(f"head.pools.{i}", f"decode_head.psp_modules.{i}.1").items()
    },
    **_conv_norm("head.bottleneck", "decode_head.bottleneck"),
    **{
        native: published
        for i in range(3)
        for native, published in (
            *_conv_norm(f"head.laterals.{i}", f"decode_head.lateral_convs.{i}").items(),
            *_conv_norm(f"head.smooths.{i}", f"decode_head.fpn_convs.{i}").items(),
        )
    },
    **_conv_norm("head.fusion", "decode_head.fpn_bottleneck"),
    "head.classifier": "decode_head.conv_seg",
    **_conv_norm("auxiliary.conv", "auxiliary_head.convs.0"),
    "auxiliary.classifier": "auxiliary_head.conv_seg",
}

SEM_FPN: Rows = {
    **PYRAMID,
    **{
        native: published
        for i in range(4)
        for native, published in (
            (f"neck.laterals.{i}", f"neck.lateral_convs.{i}.conv"),
            (f"neck.smooths.{i}", f"neck.fpn_convs.{i}.conv"),
        )
    },
    **{
        native: published
        for level, num_convs in enumerate((1, 1, 2, 3))
        for i in range(num_convs)
        for native, published in _conv_norm(
            # The numbers in the published names also count the upsampling layers between the convolutions.
            f"head.levels.{level}.{i}",
            f"decode_head.scale_heads.{level}.{2 * i}",
        ).items()
    },
    "head.classifier": "decode_head.conv_seg",
}

# The logits have the published order of classes, with the background last. Only the labels use torchvision's order,
# with the background first.
MASK_RCNN: Rows = {
    **PYRAMID,
    **{
        native: published
        for i in range(4)
        for native, published in (
            (f"fpn.inner_blocks.{i}.0", f"neck.lateral_convs.{i}.conv"),
            (f"fpn.layer_blocks.{i}.0", f"neck.fpn_convs.{i}.conv"),
            (f"roi_heads.mask_head.{i}.0", f"roi_head.mask_head.convs.{i}.conv"),
        )
    },
    "rpn.head.conv.0.0": "rpn_head.rpn_conv",
    "rpn.head.cls_logits": "rpn_head.rpn_cls",
    "rpn.head.bbox_pred": "rpn_head.rpn_reg",
    "roi_heads.box_head.fc6": "roi_head.bbox_head.shared_fcs.0",
    "roi_heads.box_head.fc7": "roi_head.bbox_head.shared_fcs.1",
    "roi_heads.box_predictor.cls_score": "roi_head.bbox_head.fc_cls",
    "roi_heads.box_predictor.bbox_pred": "roi_head.bbox_head.fc_reg",
    "roi_heads.mask_predictor.conv5_mask": "roi_head.mask_head.upsample",
    "roi_heads.mask_predictor.mask_fcn_logits": "roi_head.mask_head.conv_logits",
}


def detect_head(names: Iterable[str], heads: Heads) -> str | None:
    """Returns the name of the known head that has the largest number of modules in common with a state dict.

    The result is None if no known head has a module in common with the state dict.

    Args:
        names: the tensor names of the state dict, native or published.
        heads: the known heads.
    """
    modules = {name.rpartition(".")[0] for name in names if not name.startswith(_BACKBONE)}
    best: str | None = None
    best_count = 0
    for head, rows in heads.items():
        count = max(len(modules & rows.keys()), len(modules & set(rows.values())))
        if count > best_count:
            best, best_count = head, count
    return best


def dense_to_native(state: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """Renames a published state dict to native names. Native and unknown names do not change.

    Args:
        state: the state dict of the whole model.
        rows: the table of the model's head, or `PYRAMID` if the head is unknown.

    Raises:
        XCiTError: if two tensors would get the same name.
    """
    if any(name.startswith(XCIT) for name in state):
        return dict(state)
    rows = {published: native for native, published in rows.items()}
    renamed = _renamed(state, rows)
    xcit = {name: tensor for name, tensor in state.items() if _is_xcit(name, rows)}
    official = {name.removeprefix(_BACKBONE): tensor for name, tensor in xcit.items()}
    return _joined(
        {name: tensor for name, tensor in renamed.items() if name not in xcit},
        {f"{XCIT}{name}": tensor for name, tensor in to_native(official, "official").items()},
    )


def dense_from_native(state: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """Renames a native state dict to published names; this is the inverse of `dense_to_native`.

    Raises:
        XCiTError: if two tensors would get the same name.
    """
    renamed = _renamed(state, rows)
    return _joined(
        {name: tensor for name, tensor in renamed.items() if not name.startswith(XCIT)},
        {f"{_BACKBONE}{name}": tensor for name, tensor in from_native(xcit_of(state), "official").items()},
    )


def xcit_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Extracts the XCiT from a native state dict of a dense model. The prefix `XCIT` is removed from the names."""
    return {name.removeprefix(XCIT): tensor for name, tensor in state.items() if name.startswith(XCIT)}


def _is_xcit(name: str, rows: Rows) -> bool:
    return name.startswith(_BACKBONE) and name.rpartition(".")[0] not in rows


def _renamed(state: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, dot, leaf = name.rpartition(".")
        renamed = _joined(renamed, {f"{rows.get(module, module)}{dot}{leaf}": tensor})
    return renamed


def _joined(one: dict[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in other.items():
        if name in one:
            raise XCiTError(f"two tensors are called {name!r} after renaming: the state dict mixes several formats")
        one[name] = tensor
    return one
