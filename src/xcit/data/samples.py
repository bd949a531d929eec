"""One labelled image of a stream: named and labelled when it goes by, its picture read only when it is wanted."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image

from xcit.errors import XCiTError
from xcit.images.read import read_encoded_image

MOST_BYTES = 2**30
"""Bytes of the largest image file that is read whole; a sparse file can claim any number."""


@dataclass(frozen=True)
class StreamSample:
    """An image that is not read yet.

    Attributes:
        name: what to call it in a message.
        label: index of its class; -1 where it can't be read.
        load: gives the bytes of the image file, or raises `XCiTError` with the name and the reason.
        ignore_exif: see `read_image`.
    """

    name: str
    label: int
    load: Callable[[], bytes]
    ignore_exif: bool = False

    def read(self) -> Image.Image:
        """The picture, as `read_image` gives it.

        Raises:
            XCiTError: "<name>: <reason>" if the bytes can't be had or are no image.
        """
        return read_encoded_image(self.load(), self.name, ignore_exif=self.ignore_exif)

    def fetched(self) -> "StreamSample":
        """The same with its bytes in memory; one whose bytes can't be had stays as it is."""
        try:
            data = self.load()
        except XCiTError:
            return self
        return replace(self, load=lambda: data)


def unreadable_sample(name: str, reason: str) -> StreamSample:
    """Takes the place of what can't be read, so that it is counted and named like any other unreadable image."""

    def refuse() -> bytes:
        raise XCiTError(f"{name}: {reason}")

    return StreamSample(name, -1, refuse)


def label_problem(label: object, num_classes: int) -> str:
    """What is wrong with a label, "" if it is the index of a class."""
    if type(label) is int and 0 <= label < num_classes:
        return ""
    shown = repr(label) if label is None or isinstance(label, int | float | str) else f"(a {type(label).__name__})"
    return f"its label {shown} is none of the {num_classes} classes"


def parse_class_names(text: str) -> tuple[str, ...]:
    """The class names of a file with one a line, in the order of the labels."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def numbered_classes(num_classes: int) -> tuple[str, ...]:
    """Names for classes that have none: "0", "1" and so on."""
    return tuple(map(str, range(num_classes)))
