"""Computes attention as arrays: the class token's attention over the patches, and XCA's attention between channels.

Shapes: `h`, `w` height and width of the image in pixels, `H = ceil(h / patch)`, `W = ceil(w / patch)` size of the token
grid, `N = H*W` cells of the grid, `D` width of the model, `M` heads, `C = D/M` channels per head, `L` XCA blocks.
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
"""The positional arguments with which a block is called."""

Kind = TypeVar("Kind", bound=np.generic)

_NUM_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class ClassAttentionMaps:
    """The attention of an image's class token in one class attention block.

    One softmax per head covers the patches and the class token, so `heads.sum(axis=(1, 2)) + class_token` is 1. The
    centre of cell (i, j) of the grid is pixel (i * patch_size, j * patch_size); the method `to_pixels` uses this
    position. If a mask is used with an image at full size, the cells that the mask leaves out are NaN in `heads`.

    Attributes:
        source: the image's path or name; for an image in memory, "image N", where N is its index in the input.
        image: the image as the model sees it, RGB (h, w, 3). It is grey if the model has one channel, and resized if
            `resize` was given.
        block: index of the class attention block, from 0.
        patch_size: number of pixels of `image` from one cell to the next.
        heads: (M, H, W), each head's attention over the patches.
        class_token: (M,), each head's attention on the class token itself.
        scale: number of pixels of the original image per pixel of `image`, along a side. It is above 1 only for a large
            image at full size: `image` is then a small copy.
        cells: position of the cells in the image file and on the ground (see `CellPlace`); None if the image was not
            processed at full size.
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
        """Writes the mean of the heads and each head to a float32 TIFF: a GeoTIFF if the image is georeferenced."""
        patch = float(self.patch_size * self.scale)
        cells = self.cells or CellPlace(source=self.source, to_pixels=(patch, 0.0, 0.0, 0.0, patch, 0.0))
        names = ["mean", *(f"head {head}" for head in range(len(self.heads)))]
        write_map_tiff(path, np.concatenate([self.mean[None], self.heads]), names, cells)

    def overlay(self, *, threshold: float | None = None) -> Image.Image:
        """Returns the mean of the heads in colour over the grey image.

        With a threshold, only the cells with the largest values are coloured (see `largest_cells`).
        """
        return draw_attention.overlay_mean(self.image, self.heads, self.patch_size, threshold=threshold)

    def draw(self, path: Path, *, threshold: float | None = None) -> None:
        """Draws one PNG file with the image, the mean of the heads overlaid on the image, and the map of each head."""
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
    """The attention between channels in every XCA block, for one image.

    Row c of an attention map contains the weights of all input channels for output channel c.

    Attributes:
        source: the image's path or name; for an image in memory, "image N", where N is its index in the input.
        covariance: (L, M, C, C), the cosines between the channels of queries (rows) and of keys (columns), in -1..1.
        temperatures: (L, M), the learned factors of the heads, which do not depend on the image.
        attention: (L, M, C, C), the covariance times the head's temperature, after a softmax over each row.
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
    """Computes the attention of the class token over the patches of images, for each head.

    Images are processed at their own size, without resizing or cropping. Their sides need not be multiples of the patch
    size. The code for the paper's attention maps was not published, so the default block (the last one) is our choice.

    Args:
        images: one or several images of any size: paths of files or folders (searched recursively), patterns such as
            "photos/**/*.jpg", PIL images, arrays (h, w, 3), tensors (3, h, w), or batches of arrays or tensors.
        model: a name (the published weights are downloaded at the first use), a weights file, or a model from
            `get_model` (fused or not).
        block: index of the class attention block, from 0; negative numbers count from the end.
        resize: number of pixels to which the short side of an image is resized first; None keeps the image's size.
        device: device of the computation; None means the device of a model that is passed in, else a GPU if there is
            one, else the CPU.
        dtype: dtype of the computation: float32, bfloat16 or float16. The softmax is always computed in float32.
        full_size: process images of any size in bounded memory. `image` is then a small copy of a large image (see
            `scale`).
        memory: with `full_size`: limit of the memory, see `predict`.
        ignore_exif: use the pixels as they are stored, without the rotation in the EXIF data.

    Returns:
        One result per image, in order. An image that can't be read is replaced by an `Unreadable`.

    Raises:
        XCiTError: if all images are unreadable or smaller than a patch, if the model can't be loaded, or if the model
            has no such block.
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
    """Yields the results of `class_attention` one at a time, for any number of images.

    For an image that can't be read, yields an `Unreadable`. It is not an error if no image can be read.
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
    """Computes the covariance and the attention between channels, for every XCA block and head.

    The arguments are those of `class_attention`. The paper defines the attention in section 3.2. As in the published
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
    """Yields the results of `channel_attention` one at a time, for any number of images.

    For an image that can't be read, yields an `Unreadable`. It is not an error if no image can be read.
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
    """Runs the model on one image at a time, because image sizes differ. Yields the results of `look` for `blocks`.

    Args:
        images: the images.
        network: the fused model.
        spec: preprocessing of the images.
        blocks: the blocks for which `look` is called.
        look: a function that is called with a block and the block's inputs, and returns a tensor.
        resize: see `class_attention`.
        place: the device.
        dtype: the dtype of the model.
    """
    patch_size = network.config.patch_size
    if resize is not None and resize < patch_size:
        raise XCiTError(f"resize is {resize}, but must be at least one patch of {patch_size} pixels")
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
            yield Unreadable(
                source=source, reason=f"{source}: not enough memory for {size}; use resize to make the image smaller"
            )
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
            "use resize to make the image larger"
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
    """Computes the class token's attention (M, 1+N) from the block's inputs.

    The inputs are the class token (1, 1, D) and the patch tokens (1, N, D).
    """
    assert isinstance(block, FusedClassAttentionBlock)
    tokens = block.norm_attn(torch.cat(inputs[:2], dim=1))
    query, key = block.attn.q(tokens[:, 0]).float(), block.attn.k(tokens).float()
    # The attention does not depend on the values, so the key is passed instead of the value.
    _, attention = reference.class_attention(query, key, key, block.attn.num_heads)
    return attention[0].cpu()


def _correlate(block: nn.Module, inputs: Inputs) -> Tensor:
    """Computes the cosines between the channels of queries and keys (M, C, C), from tokens (1, N, D).

    The code repeats the first half of `reference.xca`, because that function does not return the cosines.
    """
    assert isinstance(block, FusedXCABlock)
    num_heads = block.temperature.shape[0]
    qkv: Tensor = block.qkv(block.norm_xca(inputs[0][0])).float()  # (N, 3D)
    query, key, _ = qkv.unflatten(1, (3, num_heads, -1)).permute(1, 2, 3, 0)  # each (M, C, N)
    return (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)).cpu()
