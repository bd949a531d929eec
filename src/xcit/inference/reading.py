"""Reads inputs in threads, before they are needed, and yields them in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xcit.data.inputs import NamedImage, StoredPixels, as_stored
from xcit.errors import XCiTError
from xcit.images.find import find_images
from xcit.images.read import ImageSource, read_image
from xcit.images.sources import as_url

Readable = ImageSource | NamedImage
"""The types of inputs that can be read ahead."""

Result = TypeVar("Result")
Prepared = TypeVar("Prepared")


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """The result for an input that can't be read as an image.

    A successful result has other attributes. Reading one of them raises an AttributeError with the reason.

    Attributes:
        source: the input's path or name; for an image in memory, "image N", where N is its index in the input.
        reason: why the input can't be read, in one line.
    """

    source: str
    reason: str

    def __getattr__(self, name: str) -> NoReturn:
        if name in ("source", "reason") or name.startswith("__"):  # copying an object looks these names up
            raise AttributeError(name)
        raise AttributeError(f"{self.reason}: the result has no {name!r}")


def default_device() -> torch.device:
    """Returns the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read_ahead(
    images: Iterable[Readable],
    prepare: Callable[[Any], Prepared],
    *,
    num_ahead: int,
    read: Callable[[ImageSource], Any] = read_image,
) -> Iterator[tuple[str, Prepared] | Unreadable]:
    """Reads inputs in threads, and yields, in order, each input's source and the result of `prepare`.

    Threads are useful, because Pillow releases Python's global lock (GIL) while it decodes and resizes.

    Args:
        images: the inputs. An input that can't be read gives an `Unreadable`.
        prepare: converts an image to a result. If it raises an `XCiTError`, the input gives an `Unreadable`.
        num_ahead: number of inputs that are read before they are needed.
        read: opens an image.
    """
    numbered = enumerate(images)
    num_threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_threads) as pool:
        pending: deque[Future[tuple[str, Prepared] | Unreadable]] = deque()

        def submit(count: int) -> None:
            pending.extend(pool.submit(_read, index, image, prepare, read) for index, image in islice(numbered, count))

        try:
            submit(num_ahead)
            while pending:
                result = pending.popleft().result()
                submit(1)
                yield result
        finally:
            for future in pending:
                future.cancel()


def _read(
    index: int, image: Readable, prepare: Callable[[Any], Prepared], read: Callable[[ImageSource], Any]
) -> tuple[str, Prepared] | Unreadable:
    if isinstance(image, NamedImage):
        return _read_named(image, prepare, read)
    path = (as_url(image) or os.fspath(image)) if isinstance(image, str | os.PathLike) else None
    source = f"image {index}" if path is None else path
    try:
        picture = read(image)
    except XCiTError as error:
        return Unreadable(source=source, reason=f"{source}: {error}" if path is None else str(error))
    try:
        return source, prepare(picture)
    except XCiTError as error:
        return Unreadable(source=source, reason=f"{source}: {error}")


def _read_named(
    image: NamedImage, prepare: Callable[[Any], Prepared], read: Callable[[ImageSource], Any]
) -> tuple[str, Prepared] | Unreadable:
    try:
        picture: Any = image.read()
    except XCiTError as error:
        return Unreadable(source=image.name, reason=str(error))
    try:
        return image.name, prepare(picture if read is read_image else read(picture))
    except XCiTError as error:
        return Unreadable(source=image.name, reason=f"{image.name}: {error}")


def listed(images: ImageSource | Sequence[ImageSource], *, ignore_exif: bool = False) -> list[Readable]:
    """Returns a list of the images in one or several inputs: searches folders and patterns, and splits batches.

    Args:
        images: see `predict`.
        ignore_exif: whether to use the pixels as they are stored, without the rotation in the EXIF data.

    Raises:
        XCiTError: if a folder has no images, a pattern matches nothing, or a batch is empty.
    """
    one = isinstance(images, str | os.PathLike | bytes | Image.Image | np.ndarray | Tensor) or hasattr(images, "read")
    items: Any = [images] if one else images
    found: list[Any] = []
    for item in items:
        if isinstance(item, str | os.PathLike):
            found += find_images([item])
        elif isinstance(item, np.ndarray | Tensor) and item.ndim == 4:
            if not len(item):
                raise XCiTError(f"the batch is empty: {tuple(item.shape)}")
            found += list(item)
        else:
            found.append(item)
    return [_as_stored(index, item) for index, item in enumerate(found)] if ignore_exif else found


def _as_stored(index: int, item: Any) -> Readable:
    if isinstance(item, np.ndarray | Tensor):  # arrays and tensors have no EXIF data
        return item
    return as_stored(item) if isinstance(item, Path | NamedImage) else StoredPixels(f"image {index}", item)


def readable(result: Result | Unreadable) -> Result:
    """Returns a result, or raises an `XCiTError` with the reason if the result is an `Unreadable`."""
    if isinstance(result, Unreadable):
        raise XCiTError(result.reason)
    return result


def collected(results: Iterable[Result | Unreadable]) -> list[Result | Unreadable]:
    """Returns all results in a list, in order. An image that can't be read has an `Unreadable` as its result.

    Raises:
        XCiTError: if no image can be read. An empty input raises no error.
    """
    found = list(results)
    reasons = [result.reason for result in found if isinstance(result, Unreadable)]
    if reasons and len(reasons) == len(found):
        others = f" (and {len(found) - 1} others: none of the images can be read)" if len(found) > 1 else ""
        raise XCiTError(f"{reasons[0]}{others}")
    return found
