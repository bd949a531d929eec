"""Computes logits, features and attention of images of any size, without resizing them, by streaming from files."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xcit.data.inputs import NamedImage, StoredPixels
from xcit.draw.components import component_picture
from xcit.errors import XCiTError
from xcit.images.cell_place import CellPlace
from xcit.images.open_rows import open_rows
from xcit.images.overview import overview
from xcit.images.resize_8bit import Pixels
from xcit.images.rows import ImageRows, rows_info
from xcit.images.selection import ALL, Selection
from xcit.inference.reading import Readable, Unreadable
from xcit.models import XCiT
from xcit.models.timm_calls import resolve_indices
from xcit.models.xcit import OutType
from xcit.streaming import ArrayMap, Encoding, Memory, NpyMap, Report, StreamProgress, Wanted, ZarrMap, encode

Array = np.ndarray[Any, np.dtype[np.float32]]

Answer = TypeVar("Answer")

OVERVIEW_PIXELS = 2**24
"""Largest number of pixels of the small copy of a large image."""


@dataclass(frozen=True, kw_only=True)
class FullSize:
    """Options for images that are processed at their own size.

    Attributes:
        memory: limit of the memory; see `xcit.streaming.Budget`.
        progress: called after each stripe of an image; see `StreamProgress`.
        report: called with the name of each finished image and the report on its computation.
        selection: the part of each image that is read, for example a region or some channels.
    """

    memory: Memory = None
    progress: StreamProgress | None = None
    report: Callable[[str, Report], None] | None = None
    selection: Selection = ALL


def asked_full_size(full_size: bool, memory: Memory) -> FullSize | None:
    """Converts the public arguments `full_size` and `memory` to a `FullSize`, or to None if `full_size` is false.

    Raises:
        XCiTError: if `memory` is given without `full_size`.
    """
    if memory is not None and not full_size:
        raise XCiTError("memory is used only with full_size: set full_size too")
    return FullSize(memory=memory) if full_size else None


def logits_each(
    images: Iterable[Readable | ImageRows], network: XCiT, full_size: FullSize
) -> Iterator[tuple[str, Tensor] | Unreadable]:
    """Yields the name and the logits (num_classes,) of each image.

    Raises:
        XCiTError: if the model does not pool its tokens, so that it has no logits for the whole image.
    """
    config = network.config
    last = config.depth + config.cls_depth - 1
    if config.global_pool == "none":
        raise XCiTError("the model does not pool its tokens: it can't classify a whole image")
    pools_class = config.global_pool == "cls"
    wanted = Wanted(class_tokens=frozenset({last})) if pools_class else Wanted(means=frozenset({last}))
    for name, found in _encode_each(images, network, lambda rows: wanted, full_size):
        if isinstance(found, Unreadable):
            yield found
            continue
        pooled = (found.taken.class_tokens if pools_class else found.taken.means)[last]
        with torch.inference_mode():
            yield name, network.head(pooled[None])[0]


def features_each(
    images: Iterable[Readable | ImageRows],
    network: XCiT,
    out_type: OutType,
    layers: Sequence[int],
    full_size: FullSize,
) -> Iterator[tuple[str, dict[int, Array]] | Unreadable]:
    """Yields the name of each image and its features by block number.

    The features are float32, in the shapes of `XCiT.extract_feat` without the batch dimension.
    """
    config = network.config
    blocks = resolve_indices(layers, config.depth + config.cls_depth)
    if out_type == "cls_token":
        Wanted(class_tokens=frozenset(blocks)).check(config.depth, config.cls_depth)
    maps: dict[int, ArrayMap] = {}

    def wanted(rows: ImageRows) -> Wanted:
        maps.clear()
        if out_type == "cls_token":
            return Wanted(class_tokens=frozenset(blocks))
        if out_type == "avg_featmap":
            return Wanted(means=frozenset(blocks))
        maps.update({block: ArrayMap() for block in blocks})
        with_class = frozenset(block for block in blocks if block >= config.depth) if out_type == "raw" else frozenset()
        return Wanted(maps=dict(maps), class_tokens=with_class)

    for name, found in _encode_each(images, network, wanted, full_size):
        if isinstance(found, Unreadable):
            yield found
            continue
        taken = {**found.taken.means, **found.taken.class_tokens}
        vectors = {block: one.float().cpu().numpy() for block, one in taken.items()}
        if out_type == "featmap":
            yield name, {block: one.array.transpose(2, 0, 1) for block, one in maps.items()}
        elif out_type == "raw":
            yield name, {block: _raw(one.array, vectors.get(block)) for block, one in maps.items()}
        else:
            yield name, vectors


def write_feature_map(
    image: Readable | ImageRows, network: XCiT, path: Path, *, layer: int, full_size: FullSize
) -> tuple[int, int, int]:
    """Writes the feature map of an image, after a block of the model, to a .npy file or a .zarr folder.

    The map consists of the patch tokens, float32 (H, W, D), and is written while it is computed. Tokens that a mask
    leaves out are NaN. The position of the map's cells is written to the attributes of the Zarr array, or to a .json
    file beside the .npy file. A picture of the map (see `component_picture`) is written to a .png file beside the map.

    Returns:
        H, W and D.

    Raises:
        XCiTError: if the image can't be read, or the files can't be written.
    """
    (block,) = resolve_indices([layer], network.config.depth + network.config.cls_depth)
    target = ZarrMap(path) if path.suffix == ".zarr" else NpyMap(path)
    about: dict[str, Any] = {}

    def wanted(rows: ImageRows) -> Wanted:
        about.update(CellPlace.of(rows_info(rows), network.config.patch_size).described())
        about.update(size=[rows.width, rows.height], patch_size=network.config.patch_size, block=block)
        return Wanted(maps={block: target})

    ((_, found),) = _encode_each([image], network, wanted, full_size)
    if isinstance(found, Unreadable):
        raise XCiTError(found.reason)
    if isinstance(target, ZarrMap):
        import zarr

        target.finish(about)
        features = zarr.open_array(str(path), mode="r")
    else:
        target.finish()
        features = np.load(path, mmap_mode="r")
    try:
        if isinstance(target, NpyMap):
            path.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        Image.fromarray(component_picture(features)).save(path.with_suffix(".png"))
    except OSError as error:
        raise XCiTError(f"{path}: the .json or .png file of this map can't be written: {error.strerror}") from None
    return (*found.grid, network.config.embed_dim)


@dataclass(frozen=True, kw_only=True)
class LargeAttention:
    """The class token's attention over a large image, and a small copy of the image.

    Shapes: `h`, `w` height and width of the image, `M` heads, `H` x `W` token grid.

    Attributes:
        source: the image's name.
        overview: small copy of the image, 8-bit RGB (h / scale, w / scale, 3).
        scale: number of pixels of the image per pixel of the overview, along a side. It is a divisor of the patch size.
        heads: (M, H, W), each head's attention over the patches.
        class_token: (M,), each head's attention on the class token itself.
        cells: position of the cells of `heads` in the image file and on the ground (see `CellPlace`).
    """

    source: str
    overview: Pixels
    scale: int
    heads: Array
    class_token: Array
    cells: CellPlace


def attention_each(
    images: Iterable[Readable | ImageRows], network: XCiT, block: int, full_size: FullSize
) -> Iterator[LargeAttention | Unreadable]:
    """Yields the class token's attention over each image, in the class attention block with the index `block`."""
    patch_size = network.config.patch_size
    small: list[tuple[Pixels, int, CellPlace]] = []

    def wanted(rows: ImageRows) -> Wanted:
        scale = 1
        while scale < patch_size and rows.height * rows.width > OVERVIEW_PIXELS * scale**2:
            scale *= 2
        small[:] = [(overview(rows, scale), scale, CellPlace.of(rows_info(rows), patch_size))]
        return Wanted(attention=network.config.depth + block)

    for name, found in _encode_each(images, network, wanted, full_size):
        if isinstance(found, Unreadable):
            yield found
            continue
        taken = found.taken
        assert taken.attention is not None and taken.class_shares is not None
        picture, scale, cells = small[0]
        yield LargeAttention(
            source=name,
            overview=picture,
            scale=scale,
            heads=taken.attention.numpy(),
            class_token=taken.class_shares.numpy(),
            cells=cells,
        )


def _encode_each(
    images: Iterable[Readable | ImageRows],
    network: XCiT,
    wanted: Callable[[ImageRows], Wanted],
    full_size: FullSize,
) -> Iterator[tuple[str, Encoding | Unreadable]]:
    """Yields the name of each image with the outputs that `wanted` requests, or with an `Unreadable`."""

    def answer(rows: ImageRows) -> tuple[Encoding, Report]:
        found = encode(network, rows, wanted(rows), memory=full_size.memory, progress=full_size.progress)
        return found, found.report

    return answer_each(images, full_size, answer)


def name_of(image: Readable | ImageRows, index: int) -> str:
    """Returns the name of an image for results and messages: its path or name, or "image N" with its index N."""
    if isinstance(image, NamedImage):
        return image.name
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {index}"


def opened(image: Readable | ImageRows, name: str, full_size: FullSize) -> AbstractContextManager[ImageRows]:
    """Opens the part of an image that `full_size` selects, as a source of rows."""
    selection = full_size.selection
    if isinstance(image, StoredPixels):  # the source is opened, because a file can be read by rows
        image, selection = image.source, replace(selection, ignore_exif=True)
    return open_rows(image.read() if isinstance(image, NamedImage) else image, name=name, selection=selection)


def answer_each(
    images: Iterable[Readable | ImageRows], full_size: FullSize, answer: Callable[[ImageRows], tuple[Answer, Report]]
) -> Iterator[tuple[str, Answer | Unreadable]]:
    """Yields the name of each image with the result of `answer` for its rows, or with an `Unreadable`.

    `full_size.report` is called for each image with a result.
    """
    for index, image in enumerate(images):
        name = name_of(image, index)
        try:
            with opened(image, name, full_size) as rows:
                found, report = answer(rows)
        except XCiTError as error:
            yield name, Unreadable(source=name, reason=str(error))
            continue
        if full_size.report is not None:
            full_size.report(name, report)
        yield name, found


def _raw(patches: Array, cls: Array | None) -> Array:
    """Returns patch tokens (H, W, D) as (N, D). With a class token `cls`, returns (1 + N, D), the class token first."""
    flat = patches.reshape(-1, patches.shape[2])
    return flat if cls is None else np.concatenate([cls[None], flat])
