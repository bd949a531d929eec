"""Computes attention as arrays: the class token's attention over the patches, and XCA's attention between channels.

Shapes: `h`, `w` pixels of the image, `H = ceil(h / patch)`, `W = ceil(w / patch)` cells of the token grid, `N = H*W`,
`D` width, `M` heads, `C = D/M` channels per head, `L` XCA blocks.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from xcit.draw import attention as draw_attention
from xcit.draw.cells import at_image_size
from xcit.errors import XCiTError, escaped
from xcit.images.cell_place import CellPlace
from xcit.images.map_tiff import write_map_tiff
from xcit.images.preprocess import Preprocessing, normalize, pixel_mode, resize_short_side
from xcit.images.read import ImageSource
from xcit.images.resize_8bit import Pixels
from xcit.inference.classify import DEFAULT_MODEL, prepare_model
from xcit.inference.full_size import FullSize, LargeAttention, asked_full_size, attention_each
from xcit.inference.reading import Readable, Unreadable, collected, listed, read_ahead
from xcit.models import XCiT
from xcit.models.fused import FusedClassAttentionBlock, FusedXCABlock
from xcit.ops import reference
from xcit.streaming.budget import Memory

Numbers = np.ndarray[Any, np.dtype[np.float32]]
Inputs = tuple[Any, ...]
"""The arguments of a call of a block."""

Kind = TypeVar("Kind", bound=np.generic)

_NUM_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class ClassAttentionMaps:
    """The attention of an image's class token in one class attention block.

    For each head the map and `class_token` are parts of one softmax, so `heads.sum(axis=(1, 2)) + class_token` is 1.
    Cell (i, j) of the grid is centred on pixel (i * patch_size, j * patch_size); `to_pixels` places it there. Cells
    that a mask leaves out of an image at full size are NaN in `heads`.

    Attributes:
        source: the image's path, or its place in the input.
        image: (h, w, 3), RGB, as the model sees it: upright, grey for a model of grey images, resized if requested.
        block: the class attention block, from 0.
        patch_size: number of pixels of `image` from one cell to the next.
        heads: (M, H, W), each head's attention over the patches.
        class_token: (M,), the share of each head's attention on the class token itself.
        scale: pixels of the input per pixel of `image`. It is 1, except for large images at full size, where `image` is
            a small copy.
        cells: position of the cells in the file and on the map, for an image at full size.
    """

    source: str
    image: Pixels
    block: int
    patch_size: int
    heads: Numbers
    class_token: Numbers
    scale: int = 1
    cells: CellPlace | None = None

    @property
    def mean(self) -> Numbers:
        """The mean of the heads, (H, W)."""
        mean: Numbers = self.heads.mean(axis=0)
        return mean

    def to_pixels(self, maps: np.ndarray[Any, np.dtype[Kind]]) -> np.ndarray[Any, np.dtype[Kind]]:
        """Returns maps (..., H, W) at the image's size (..., h, w); each pixel gets the value of its nearest cell."""
        return at_image_size(maps, self.image.shape[:2], self.patch_size)

    def write_tiff(self, path: Path) -> None:
        """Writes the mean of the heads and each head to a float32 TIFF; it is a GeoTIFF if the image is one."""
        patch = float(self.patch_size * self.scale)
        cells = self.cells or CellPlace(source=self.source, to_pixels=(patch, 0.0, 0.0, 0.0, patch, 0.0))
        names = ["mean", *(f"head {head}" for head in range(len(self.heads)))]
        write_map_tiff(path, np.concatenate([self.mean[None], self.heads]), names, cells)

    def overlay(self, *, threshold: float | None = None) -> Image.Image:
        """Returns the mean of the heads in colour over the grey image; with a threshold, only its largest cells."""
        return draw_attention.overlay_mean(self.image, self.heads, self.patch_size, threshold=threshold)

    def draw(self, path: Path, *, threshold: float | None = None) -> None:
        """Draws the image, the mean of the heads over it, and each head's map to a PNG file."""
        rows, columns = self.heads.shape[1:]
        draw_attention.draw_class_attention(
            self.image,
            self.heads,
            self.class_token,
            self.patch_size,
            path,
            title=f"{escaped(Path(self.source).name)}: class attention block {self.block}, {columns} x {rows} cells",
            threshold=threshold,
        )


@dataclass(frozen=True, kw_only=True)
class ChannelAttentionMaps:
    """How XCA mixes the channels of an image in every block: row c of a map has the weights of output channel c.

    Attributes:
        source: the image's path, or its place in the input.
        covariance: (L, M, C, C), the cosines between the channels of queries (rows) and of keys (columns), -1..1.
        temperatures: (L, M), the learned factors, which are the same for all images.
        attention: (L, M, C, C), the softmax over each row of the covariance times the head's temperature.
    """

    source: str
    covariance: Numbers
    temperatures: Numbers
    attention: Numbers

    def draw(self, path: Path) -> None:
        """Draws the covariance of every block and head to a PNG file."""
        draw_attention.draw_channel_attention(
            self.covariance, path, title=f"{escaped(Path(self.source).name)}: channels in XCA"
        )


def class_attention(
    images: ImageSource | Sequence[ImageSource],
    model: str | os.PathLike[str] | XCiT = DEFAULT_MODEL,
    *,
    block: int = -1,
    resize: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    full_size: bool = False,
    memory: Memory = None,
    ignore_exif: bool = False,
) -> list[ClassAttentionMaps | Unreadable]:
    """Returns the class token's attention over images, head by head.

    Images go through the model at their own size; they are not resized or cropped, and need not be a multiple of the
    patch size. The code of the paper's own pictures was never published; the default, the last block, is our choice.

    Args:
        images: paths of files and folders (searched recursively), patterns such as "photos/**/*.jpg", PIL images,
            arrays (h, w, 3) and tensors (3, h, w), one or several, each of any size; or batches of arrays or tensors.
        model: a name (its published weights are downloaded once), a weights file, or a model from `get_model`, fused or
            not; the maps are the same.
        block: class attention block, from 0; negative values count from the end.
        resize: scale the short side to this number of pixels first; None keeps the image's size.
        device: device of the computation; None means the device of a model that is passed in, else a GPU if there is
            one, else the CPU.
        dtype: float32, bfloat16 or float16; the softmax is in float32.
        full_size: stream the image from its file, however large; `image` is then a small copy of it (see `scale`).
        memory: with `full_size`: as in `predict`.
        ignore_exif: take the pixels as they are stored, whatever the EXIF orientation.

    Returns:
        One result per image, in order. An image that can't be read is replaced by an `Unreadable`.

    Raises:
        XCiTError: if none of the images can be read and has the size of a patch or more, if the model can't be loaded,
            or if it has no such block.
    """
    results = class_attention_each(
        listed(images, ignore_exif=ignore_exif),
        model,
        block=block,
        resize=resize,
        device=device,
        dtype=dtype,
        full_size=asked_full_size(full_size, memory),
    )
    return collected(results)


def class_attention_each(
    images: Iterable[Readable],
    model: str | os.PathLike[str] | XCiT = DEFAULT_MODEL,
    *,
    block: int = -1,
    resize: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    full_size: FullSize | None = None,
) -> Iterator[ClassAttentionMaps | Unreadable]:
    """Like `class_attention`, for any number of images, one at a time.

    An unreadable image gives an `Unreadable`.
    """
    network, info, place = prepare_model(model, device, dtype)
    num_blocks, patch_size = network.config.cls_depth, network.config.patch_size
    if not num_blocks:
        raise XCiTError(f"{info.name} has no class attention: its cls_depth is 0")
    if not -num_blocks <= block < num_blocks:
        raise XCiTError(f"there is no class attention block {block}: {info.name} has {num_blocks}, counted from 0")
    if full_size is not None:
        if resize is not None:
            raise XCiTError("give resize, or full_size, not both")
        for large in attention_each(images, network, block % num_blocks, full_size):
            yield large if isinstance(large, Unreadable) else _of_large(large, block % num_blocks, patch_size)
        return
    blocks = [network.get_submodule(f"cls_blocks.{block % num_blocks}")]
    for result in _look_inside(images, network, info.preprocessing, blocks, _attend, resize, place, dtype):
        if isinstance(result, Unreadable):
            yield result
            continue
        (attention,) = result.found
        height, width = (-(-length // patch_size) for length in result.image.shape[:2])
        yield ClassAttentionMaps(
            source=result.source,
            image=result.image,
            block=block % num_blocks,
            patch_size=patch_size,
            heads=attention[:, 1:].unflatten(1, (height, width)).numpy(),
            class_token=attention[:, 0].numpy(),
        )


def _of_large(large: LargeAttention, block: int, patch_size: int) -> ClassAttentionMaps:
    return ClassAttentionMaps(
        source=large.source,
        image=large.overview,
        block=block,
        patch_size=patch_size // large.scale,
        heads=large.heads,
        class_token=large.class_token,
        scale=large.scale,
        cells=large.cells,
    )


def channel_attention(
    images: ImageSource | Sequence[ImageSource],
    model: str | os.PathLike[str] | XCiT = DEFAULT_MODEL,
    *,
    resize: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    ignore_exif: bool = False,
) -> list[ChannelAttentionMaps | Unreadable]:
    """Returns XCA's covariance and its attention between channels, of every block and head.

    Arguments are as in `class_attention`. The attention is defined in the paper's section 3.2. As in the published
    code, the temperature is a factor and not a divisor.
    """
    results = channel_attention_each(
        listed(images, ignore_exif=ignore_exif), model, resize=resize, device=device, dtype=dtype
    )
    return collected(results)


def channel_attention_each(
    images: Iterable[Readable],
    model: str | os.PathLike[str] | XCiT = DEFAULT_MODEL,
    *,
    resize: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[ChannelAttentionMaps | Unreadable]:
    """Like `channel_attention`, for any number of images, one at a time.

    An unreadable image gives an `Unreadable`.
    """
    network, info, place = prepare_model(model, device, dtype)
    blocks = [network.get_submodule(f"blocks.{index}") for index in range(network.config.depth)]
    temperatures = torch.stack([block.get_parameter("temperature").flatten() for block in blocks])
    temperatures = temperatures.float().cpu()
    for result in _look_inside(images, network, info.preprocessing, blocks, _correlate, resize, place, dtype):
        if isinstance(result, Unreadable):
            yield result
            continue
        covariance = torch.stack(result.found)
        yield ChannelAttentionMaps(
            source=result.source,
            covariance=covariance.numpy(),
            temperatures=temperatures.numpy(),
            attention=(covariance * temperatures[..., None, None]).softmax(dim=-1).numpy(),
        )


@dataclass(frozen=True)
class _Seen:
    source: str
    image: Pixels  # (h, w, 3)
    found: list[Tensor]  # one per block, on the CPU


def _look_inside(
    images: Iterable[Readable],
    network: XCiT,
    spec: Preprocessing,
    blocks: Sequence[nn.Module],
    look: Callable[[nn.Module, Inputs], Tensor],
    resize: int | None,
    place: torch.device,
    dtype: torch.dtype,
) -> Iterator[_Seen | Unreadable]:
    """Runs each image separately, because sizes differ, and collects what `look` computes from each block's input."""
    patch_size = network.config.patch_size
    if resize is not None and resize < patch_size:
        raise XCiTError(f"resize is {resize}, must be at least one patch of {patch_size} pixels")
    prepare = partial(_prepare, spec=spec, patch_size=patch_size, resize=resize)
    for result in read_ahead(images, prepare, num_ahead=_NUM_AHEAD):
        if isinstance(result, Unreadable):
            yield result
            continue
        source, (image, tensor) = result
        try:
            found = _run(network, blocks, look, tensor[None].to(place, dtype))
        except torch.OutOfMemoryError:
            size = f"{image.shape[1]} x {image.shape[0]} pixels"
            yield Unreadable(source=source, reason=f"{source}: no memory for {size}; a resize makes it smaller")
            continue
        yield _Seen(source, image, found)


def _prepare(
    picture: Image.Image, *, spec: Preprocessing, patch_size: int, resize: int | None
) -> tuple[Pixels, Tensor]:
    picture = picture.convert(pixel_mode(spec))
    if resize is not None:
        picture = resize_short_side(picture, resize)
    if min(picture.size) < patch_size:
        raise XCiTError(
            f"{picture.width} x {picture.height} pixels, smaller than one patch of {patch_size} x {patch_size}; "
            "a resize makes it larger"
        )
    return np.asarray(picture.convert("RGB")), normalize(picture, spec)


def _run(
    network: XCiT, blocks: Sequence[nn.Module], look: Callable[[nn.Module, Inputs], Tensor], batch: Tensor
) -> list[Tensor]:
    found: list[Tensor] = []

    def note(block: nn.Module, inputs: Inputs) -> None:
        found.append(look(block, inputs))

    hooks = [block.register_forward_pre_hook(note) for block in blocks]
    try:
        with torch.inference_mode():
            network.forward_features(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _attend(block: nn.Module, inputs: Inputs) -> Tensor:
    """Returns the class token's attention (M, 1+N), from class token (1, 1, D) and patches (1, N, D)."""
    assert isinstance(block, FusedClassAttentionBlock)
    tokens = block.norm_attn(torch.cat(inputs[:2], dim=1))
    query, key = block.attn.q(tokens[:, 0]).float(), block.attn.k(tokens).float()
    # The attention does not depend on the values, so any tensor will do.
    _, attention = reference.class_attention(query, key, key, block.attn.num_heads)
    return attention[0].cpu()


def _correlate(block: nn.Module, inputs: Inputs) -> Tensor:
    """Returns the cosines between the channels of queries and keys (M, C, C), from tokens (1, N, D).

    This repeats the first half of `reference.xca`, which does not return them.
    """
    assert isinstance(block, FusedXCABlock)
    num_heads = block.temperature.shape[0]
    qkv: Tensor = block.qkv(block.norm_xca(inputs[0][0])).float()  # (N, 3D)
    query, key, _ = qkv.unflatten(1, (3, num_heads, -1)).permute(1, 2, 3, 0)  # each (M, C, N)
    return (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)).cpu()
