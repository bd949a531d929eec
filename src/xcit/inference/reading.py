"""Inputs read ahead by threads, in order; what can't be read is reported in its place."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xcit.data.inputs import NamedImage
from xcit.errors import XCiTError
from xcit.images.find import find_images
from xcit.images.read import ImageSource, read_image
from xcit.images.sources import as_url

Readable = ImageSource | NamedImage
"""What is read ahead."""

Result = TypeVar("Result")
Prepared = TypeVar("Prepared")


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """An input that is no image we can read, and why in one line.

    It stands among the results of the others; what a result has and this has not is an error that says the reason.
    """

    source: str
    reason: str

    def __getattr__(self, name: str) -> NoReturn:
        if name in ("source", "reason") or name.startswith("__"):  # asked for by what copies an object
            raise AttributeError(name)
        raise AttributeError(f"{self.reason}: there is no {name!r} of it")


def default_device() -> torch.device:
    """A GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read_ahead(
    images: Iterable[Readable],
    prepare: Callable[[Any], Prepared],
    *,
    num_ahead: int,
    read: Callable[[ImageSource], Any] = read_image,
) -> Iterator[tuple[str, Prepared] | Unreadable]:
    """Inputs in order, each with its source and what `prepare` makes of what was read, read ahead by threads.

    Pillow decodes and resizes outside Python's lock. An `XCiTError` of `prepare` makes the input unreadable.
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


def listed(images: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    """The images that a person means: one or several, folders and patterns searched, batches taken apart.

    Raises:
        XCiTError: if a folder has no images, a pattern no match, or a batch is empty.
    """
    one = isinstance(images, str | os.PathLike | bytes | Image.Image | np.ndarray | Tensor) or hasattr(images, "read")
    items: Any = [images] if one else images
    found: list[ImageSource] = []
    for item in items:
        if isinstance(item, str | os.PathLike):
            found += find_images([item])
        elif isinstance(item, np.ndarray | Tensor) and item.ndim == 4:
            if not len(item):
                raise XCiTError(f"the batch is empty: {tuple(item.shape)}")
            found += list(item)
        else:
            found.append(item)
    return found


def readable(result: Result | Unreadable) -> Result:
    """A result, or an `XCiTError` with the reason why there is none."""
    if isinstance(result, Unreadable):
        raise XCiTError(result.reason)
    return result


def collected(results: Iterable[Result | Unreadable]) -> list[Result | Unreadable]:
    """All results in order, what can't be read in its place.

    Raises:
        XCiTError: if there are images, and none of them can be read.
    """
    found = list(results)
    reasons = [result.reason for result in found if isinstance(result, Unreadable)]
    if reasons and len(reasons) == len(found):
        others = f" (and {len(found) - 1} others: none of the images can be read)" if len(found) > 1 else ""
        raise XCiTError(f"{reasons[0]}{others}")
    return found
