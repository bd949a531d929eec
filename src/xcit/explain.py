"""Functions that return a model's attention maps (class attention and XCA) as arrays, which can be drawn."""

from xcit.draw.cells import largest_cells
from xcit.inference.attention import (
    ChannelAttentionMaps,
    ClassAttentionMaps,
    channel_attention,
    channel_attention_each,
    class_attention,
    class_attention_each,
)

__all__ = [
    "ChannelAttentionMaps",
    "ClassAttentionMaps",
    "channel_attention",
    "channel_attention_each",
    "class_attention",
    "class_attention_each",
    "largest_cells",
]
