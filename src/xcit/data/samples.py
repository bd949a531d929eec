"""Defines `StreamSample`, a labelled image of a stream, and functions for labels and class names."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image

from xcit.errors import XCiTError
from xcit.images.read import read_encoded_image

MOST_BYTES = 2**30
"""The largest accepted size of an image file, in bytes. Without a limit, a sparse file could fill the memory."""


@dataclass(frozen=True)
class StreamSample:
    """An image of a stream. The image is read when `read` is called.

    Attributes:
        name: name of the image, for messages.
        label: class index of the image; -1 if the image has no label or can't be read.
        load: a function that returns the bytes of the image file, or raises an `XCiTError` with the name and the
            reason.
        ignore_exif: see `read_image`.
    """

    name: str
    label: int
    load: Callable[[], bytes]
    ignore_exif: bool = False

    def read(self) -> Image.Image:
        """Returns the image, as `read_image` does.

        Raises:
            XCiTError: "<name>: <reason>" if the bytes can't be read or are not an image.
        """
        return read_encoded_image(self.load(), self.name, ignore_exif=self.ignore_exif)

    def fetched(self) -> "StreamSample":
        """Returns the same sample with the bytes of its image file in memory.

        If the bytes can't be read, returns the sample unchanged.
        """
        try:
            data = self.load()
        except XCiTError:
            return self
        return replace(self, load=lambda: data)


def unreadable_sample(name: str, reason: str) -> StreamSample:
    """Returns a replacement for a sample that can't be read; reading the replacement raises an error with the reason.

    So the sample is counted and reported in the same way as an unreadable image.
    """

    def refuse() -> bytes:
        raise XCiTError(f"{name}: {reason}")

    return StreamSample(name, -1, refuse)


def label_problem(label: object, num_classes: int) -> str:
    """Returns the reason why a label is invalid; "" if the label is the index of a class."""
    if type(label) is int and 0 <= label < num_classes:
        return ""
    shown = repr(label) if label is None or isinstance(label, int | float | str) else f"(a {type(label).__name__})"
    return f"its label {shown} is not one of the {num_classes} classes"


def parse_class_names(text: str) -> tuple[str, ...]:
    """Returns the class names in a text with one name per line, in the order of the labels."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def numbered_classes(num_classes: int) -> tuple[str, ...]:
    """Returns names for classes without names: "0", "1" and so on."""
    return tuple(map(str, range(num_classes)))
