"""Initial weights for the backbone of a detector or segmenter."""

from typing import Any

from xcit.errors import XCiTError
from xcit.zoo import get_backbone
from xcit.zoo.changes import Changes

_SHAPE = ("in_channels", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias")


def take_backbone(model: Any, source: str) -> None:
    """Loads the initial weights of the backbone of a detector or segmenter.

    Args:
        model: the detector or segmenter, with an `XCiTPyramid` as attribute `backbone`.
        source: the name or file of a classifier, a feature backbone, a detector or a segmenter.

    Raises:
        XCiTError: if the weights can't be loaded, or do not fit the backbone.
    """
    ours = model.config.backbone
    changes = Changes(stem_strides=ours.stem_strides or None)
    found = get_backbone(source, pretrained=True, pyramid=True, changes=changes)
    theirs = found.config
    for name in _SHAPE:
        if getattr(ours, name) != getattr(theirs, name):
            raise XCiTError(
                f"backbone_weights: {source} does not fit: its {name} is {getattr(theirs, name)}, but the "
                f"model's is {getattr(ours, name)}"
            )
    model.backbone.load_state_dict(found.state_dict())
