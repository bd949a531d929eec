"""Converts the tensor names of an XCiT between this package's own (native) names and each published format.

Each format has a bijective table. A row maps the native name of a module or parameter to its published name. The last
part of a tensor's name in a module, such as "weight", is the same in both names. `{i}` is the index of a block or of a
convolution in the stem. `{2i}` is twice the index, because the official stem also counts its activations.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from xcit.errors import XCiTError

Format = Literal["xcit", "official", "timm", "mmpretrain"]
FORMATS: tuple[Format, ...] = get_args(Format)

_NATIVE_TO_TIMM = {
    "cls_token": "cls_token",
    "stem.{i}.conv": "patch_embed.proj.{2i}.0",
    "stem.{i}.norm": "patch_embed.proj.{2i}.1",
    "position.projection": "pos_embed.token_projection",
    "blocks.{i}.norm_xca": "blocks.{i}.norm1",
    "blocks.{i}.xca.temperature": "blocks.{i}.attn.temperature",
    "blocks.{i}.xca.qkv": "blocks.{i}.attn.qkv",
    "blocks.{i}.xca.proj": "blocks.{i}.attn.proj",
    "blocks.{i}.scale_xca": "blocks.{i}.gamma1",
    "blocks.{i}.norm_lpi": "blocks.{i}.norm3",
    "blocks.{i}.lpi.conv1": "blocks.{i}.local_mp.conv1",
    "blocks.{i}.lpi.norm": "blocks.{i}.local_mp.bn",
    "blocks.{i}.lpi.conv2": "blocks.{i}.local_mp.conv2",
    "blocks.{i}.scale_lpi": "blocks.{i}.gamma3",
    "blocks.{i}.norm_mlp": "blocks.{i}.norm2",
    "blocks.{i}.mlp.fc1": "blocks.{i}.mlp.fc1",
    "blocks.{i}.mlp.fc2": "blocks.{i}.mlp.fc2",
    "blocks.{i}.scale_mlp": "blocks.{i}.gamma2",
    "cls_blocks.{i}.norm_attn": "cls_attn_blocks.{i}.norm1",
    "cls_blocks.{i}.attn.q": "cls_attn_blocks.{i}.attn.q",
    "cls_blocks.{i}.attn.k": "cls_attn_blocks.{i}.attn.k",
    "cls_blocks.{i}.attn.v": "cls_attn_blocks.{i}.attn.v",
    "cls_blocks.{i}.attn.proj": "cls_attn_blocks.{i}.attn.proj",
    "cls_blocks.{i}.scale_attn": "cls_attn_blocks.{i}.gamma1",
    "cls_blocks.{i}.norm_mlp": "cls_attn_blocks.{i}.norm2",
    "cls_blocks.{i}.mlp.fc1": "cls_attn_blocks.{i}.mlp.fc1",
    "cls_blocks.{i}.mlp.fc2": "cls_attn_blocks.{i}.mlp.fc2",
    "cls_blocks.{i}.scale_mlp": "cls_attn_blocks.{i}.gamma2",
    "norm": "norm",
    "head": "head",
}

# The official class attention has one matrix for q, k and v; `_split_qkv` and `_fuse_qkv` convert it.
_NATIVE_TO_OFFICIAL = _NATIVE_TO_TIMM | {"position.projection": "pos_embeder.token_projection"}

_NATIVE_TO_MMPRETRAIN = {
    "cls_token": "backbone.cls_token",
    "stem.{i}.conv": "backbone.patch_embed.proj.{i}.conv",
    "stem.{i}.norm": "backbone.patch_embed.proj.{i}.bn",
    "position.projection": "backbone.pos_embed.token_projection.conv",
    "blocks.{i}.norm_xca": "backbone.xca_layers.{i}.norm1",
    "blocks.{i}.xca.temperature": "backbone.xca_layers.{i}.attn.temperature",
    "blocks.{i}.xca.qkv": "backbone.xca_layers.{i}.attn.qkv",
    "blocks.{i}.xca.proj": "backbone.xca_layers.{i}.attn.proj",
    "blocks.{i}.scale_xca": "backbone.xca_layers.{i}.gamma1",
    "blocks.{i}.norm_lpi": "backbone.xca_layers.{i}.norm3",
    "blocks.{i}.lpi.conv1": "backbone.xca_layers.{i}.local_mp.conv1.conv",
    "blocks.{i}.lpi.norm": "backbone.xca_layers.{i}.local_mp.conv1.bn",
    "blocks.{i}.lpi.conv2": "backbone.xca_layers.{i}.local_mp.conv2.conv",
    "blocks.{i}.scale_lpi": "backbone.xca_layers.{i}.gamma3",
    "blocks.{i}.norm_mlp": "backbone.xca_layers.{i}.norm2",
    "blocks.{i}.mlp.fc1": "backbone.xca_layers.{i}.ffn.layers.0.0",
    "blocks.{i}.mlp.fc2": "backbone.xca_layers.{i}.ffn.layers.1",
    "blocks.{i}.scale_mlp": "backbone.xca_layers.{i}.gamma2",
    "cls_blocks.{i}.norm_attn": "backbone.ca_layers.{i}.norm1",
    "cls_blocks.{i}.attn.q": "backbone.ca_layers.{i}.attn.q",
    "cls_blocks.{i}.attn.k": "backbone.ca_layers.{i}.attn.k",
    "cls_blocks.{i}.attn.v": "backbone.ca_layers.{i}.attn.v",
    "cls_blocks.{i}.attn.proj": "backbone.ca_layers.{i}.attn.proj",
    "cls_blocks.{i}.scale_attn": "backbone.ca_layers.{i}.gamma1",
    "cls_blocks.{i}.norm_mlp": "backbone.ca_layers.{i}.norm2",
    "cls_blocks.{i}.mlp.fc1": "backbone.ca_layers.{i}.ffn.layers.0.0",
    "cls_blocks.{i}.mlp.fc2": "backbone.ca_layers.{i}.ffn.layers.1",
    "cls_blocks.{i}.scale_mlp": "backbone.ca_layers.{i}.gamma2",
    "norm": "backbone.norm",
    "head": "head.fc",
}

NATIVE_TO: dict[Format, dict[str, str]] = {
    "xcit": {row: row for row in _NATIVE_TO_TIMM},
    "official": _NATIVE_TO_OFFICIAL,
    "timm": _NATIVE_TO_TIMM,
    "mmpretrain": _NATIVE_TO_MMPRETRAIN,
}
"""The table of each format, which maps native names to published names."""

_TO_NATIVE: dict[Format, dict[str, str]] = {
    format: {published: native for native, published in rows.items()} for format, rows in NATIVE_TO.items()
}

# The first number between dots. Leading zeros are not allowed, because a name with leading zeros could not be restored.
_NUMBER = re.compile(r"(?<=\.)(?:0|[1-9]\d{0,5})(?=\.)")
_FUSED = re.compile(r"(cls_attn_blocks\.\d+\.attn\.)qkv(\.weight|\.bias)")
_APART = re.compile(r"(cls_attn_blocks\.\d+\.attn\.)([qkv])(\.weight|\.bias)")


def detect_format(names: Iterable[str]) -> Format | None:
    """Returns the format whose table matches the largest number of names; None if there is no XCiT.

    The names must contain the names of an XCA block. So the result is None for a head without a backbone, and for other
    transformers that have some names in common with XCiT.
    """
    names = list(names)
    best: Format | None = None
    best_count = 0
    for format in FORMATS:
        known = [native for name in names if (native := _rename(_apart(name), _TO_NATIVE[format]))]
        # The temperature of XCA occurs in no other architecture with similar names.
        if any(native.endswith(".xca.temperature") for native in known) and len(known) > best_count:
            best, best_count = format, len(known)
    return best


def to_native(state: Mapping[str, Tensor], format: Format) -> dict[str, Tensor]:
    """Renames a state dict of the given format to native names. Unknown names do not change.

    Raises:
        XCiTError: if two tensors would get the same name.
    """
    if format == "official":
        state = _split_qkv(state)
    return _renamed(state, _TO_NATIVE[format])


def from_native(state: Mapping[str, Tensor], format: Format) -> dict[str, Tensor]:
    """Renames a native state dict to the given format; this is the inverse of `to_native`. Unknown names do not change.

    Raises:
        XCiTError: if two tensors would get the same name.
    """
    published = _renamed(state, NATIVE_TO[format])
    return _fuse_qkv(published) if format == "official" else published


def _renamed(state: Mapping[str, Tensor], rows: Mapping[str, str]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new_name = _rename(name, rows) or name
        if new_name in renamed:
            raise XCiTError(f"two tensors are called {new_name!r} after renaming: the state dict mixes several formats")
        renamed[new_name] = tensor
    return renamed


def _rename(name: str, rows: Mapping[str, str]) -> str | None:
    """Returns the new name of a tensor, from a table that maps old names to new names; None if no row matches."""
    for template, index in _templates(name):
        module, _, leaf = template.rpartition(".")
        for row, rest in ((template, ""), (module, f".{leaf}")):
            if row in rows:
                return rows[row].replace("{i}", str(index)).replace("{2i}", str(2 * index)) + rest
    return None


def _templates(name: str) -> Iterator[tuple[str, int]]:
    """Yields each row (with `{i}` or `{2i}` instead of the number) that may match a name, together with the index i."""
    match = _NUMBER.search(name)
    if match is None:
        yield name, 0
        return
    before, number, after = name[: match.start()], int(match[0]), name[match.end() :]
    yield f"{before}{{i}}{after}", number
    if number % 2 == 0:
        yield f"{before}{{2i}}{after}", number // 2


def _apart(name: str) -> str:
    """Returns the name of the q matrix if `name` is the name of a fused q, k and v matrix; else returns `name`."""
    return _FUSED.sub(r"\1q\2", name)


def _split_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Splits the fused matrices of the class attention into q, k and v.

    A matrix that can't be split is kept, so that strict loading reports it.
    """
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _FUSED.fullmatch(name)
        if match is None or tensor.ndim == 0 or tensor.shape[0] % 3:
            split[name] = tensor
            continue
        for part, rows in zip("qkv", tensor.chunk(3), strict=True):
            split[f"{match[1]}{part}{match[2]}"] = rows
    return split


def _fuse_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reverses `_split_qkv`. Parts with different shapes or dtypes are kept, so that strict loading reports them."""
    fused: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _APART.fullmatch(name)
        parts = [state.get(f"{match[1]}{part}{match[3]}") for part in "qkv"] if match else []
        whole = [part for part in parts if part is not None and _alike(part, tensor)]
        if match is None or len(whole) < 3:
            fused[name] = tensor
        elif match[2] == "q":
            fused[f"{match[1]}qkv{match[3]}"] = torch.cat(whole)
    return fused


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype
