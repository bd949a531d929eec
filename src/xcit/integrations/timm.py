"""Registers our classifiers and feature backbones with timm: `import xcit.integrations.timm`, then `timm.create_model`.

    timm.create_model("xcit-small-12-p8_3rdparty-dist_in1k", pretrained=True)
    timm.create_model("xcit-small-12-p8", num_classes=10, in_chans=4)
    timm.create_model("xcit-small-12-p8", features_only=True, out_indices=(3, 5, 7, 11))

Names are those of `xcit list`, and `xcit-<architecture>`. timm's own XCiT is spelled with underscores, so neither takes
the other's place. (timm reads a name with a slash as a repository of the Hub.)
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from xcit.errors import XCiTError
from xcit.zoo import CHECKPOINTS, get_backbone, get_xcit
from xcit.zoo.architectures import ARCHITECTURES
from xcit.zoo.changes import Changes

try:
    from timm.models import build_model_with_cfg, register_model
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
        out_indices: int | Sequence[int] | None = None,
    ) -> nn.Module:
        changes = Changes(in_channels=in_chans, drop_path_rate=drop_path_rate, global_pool=global_pool)
        if features_only:
            backbone = get_backbone(name, pretrained, changes=replace(changes, global_pool=None))
            wrapped: nn.Module = build_model_with_cfg(
                lambda **_: backbone,
                name,
                False,
                pretrained_cfg=backbone.pretrained_cfg,
                features_only=True,
                feature_cfg={"out_indices": 4 if out_indices is None else out_indices, "feature_cls": "getter"},
            )
            return wrapped
        model = get_xcit(name, pretrained, num_classes=num_classes, changes=changes)
        return model.train()  # as timm gives it

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"`{name}` of the package xcit."
    return create


NAMES = tuple(dict.fromkeys([*CHECKPOINTS, *(f"xcit-{architecture}" for architecture in ARCHITECTURES)]))
"""What is registered."""

for _name in NAMES:
    register_model(_entrypoint(_name))
