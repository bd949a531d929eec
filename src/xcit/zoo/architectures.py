"""The table of architectures: 14 published architectures, the robust models' architectures, and our own small one."""

from dataclasses import replace

from xcit.models import XCiTConfig


def _published(embed_dim: int, num_heads: int, depth: int, patch_size: int) -> XCiTConfig:
    return XCiTConfig(
        patch_size=patch_size,
        embed_dim=embed_dim,
        num_heads=num_heads,
        depth=depth,
        # Deep models need small initial values of LayerScale (paper, section 4). In nano models, the second norm of a
        # class attention block is applied only to the class token.
        layer_scale=1.0 if depth == 12 else 1e-5,
        tokens_norm=embed_dim != 128,
    )


_WIDTH_AND_HEADS = {"nano": (128, 4), "tiny": (192, 4), "small": (384, 8), "medium": (512, 8), "large": (768, 16)}
_SIZES_AND_DEPTHS = (
    ("nano", 12),
    ("tiny", 12),
    ("small", 12),
    ("tiny", 24),
    ("small", 24),
    ("medium", 24),
    ("large", 24),
)

PUBLISHED_ARCHITECTURES: dict[str, XCiTConfig] = {
    f"{size}-{depth}-p{patch_size}": _published(*_WIDTH_AND_HEADS[size], depth, patch_size)
    for size, depth in _SIZES_AND_DEPTHS
    for patch_size in (16, 8)
}
"""The published architectures, named `<size>-<depth>-p<patch>`, for 1000 classes."""

ARCHITECTURES: dict[str, XCiTConfig] = {
    **PUBLISHED_ARCHITECTURES,
    **{f"{size}-12-p16": _published(*_WIDTH_AND_HEADS[size], 12, 16) for size in ("medium", "large")},
    # For CIFAR: the stem has the convolutions of a stem for patches of 16, so that weights for patches of 16 can be
    # loaded, but its strides give patches of 4.
    **{
        f"{size}-12-p4": replace(_published(*_WIDTH_AND_HEADS[size], 12, 16), stem_strides=(1, 1, 2, 2))
        for size in ("small", "medium", "large")
    },
    # Our own architecture, for greyscale images of about 28 x 28 pixels.
    "pico-6-p4": XCiTConfig(patch_size=4, embed_dim=64, num_heads=4, depth=6, in_channels=1, num_classes=10),
}


def backbone_of(architecture: XCiTConfig) -> XCiTConfig:
    """Returns an architecture's config without class attention and classifier: the model computes only patch tokens."""
    return replace(architecture, cls_depth=0, num_classes=0, global_pool="none")
