"""What a person names as images: files, folders and patterns, lists of them, URLs, tar shards, Parquet, data sets."""

import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from PIL import Image

from xcit.data.classification import LabelledImages, open_labelled_images
from xcit.data.named import Split
from xcit.data.parquet_images import count_rows, is_parquet, read_parquet
from xcit.data.remote import is_url, list_urls, open_url
from xcit.data.samples import StreamSample
from xcit.data.shards import list_shards
from xcit.data.streams import open_stream
from xcit.data.tar_samples import read_tar_images
from xcit.errors import XCiTError
from xcit.images.find import find_images
from xcit.images.formats import IMAGE_SUFFIXES

_DATA_SETS = ("fashion-mnist", "cifar10", "cifar100")
_TARS = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class DataSetImage:
    """An image of a data set that is not read yet."""

    images: LabelledImages
    index: int

    @property
    def name(self) -> str:
        """Its place in the data set."""
        return self.images.image_name(self.index)

    def read(self) -> Image.Image:
        """The picture; an `XCiTError` with the name and the reason if it can't be read."""
        return self.images[self.index][0]


NamedImage = StreamSample | DataSetImage
"""An image that is not read yet, with what to call it."""

Input = Path | NamedImage


@dataclass(frozen=True)
class Unit:
    """Images that one process goes through from the first to the last: some files, or a shard.

    Attributes:
        name: tells it from other units: what is in it, or where.
        num_images: how many there are, none where only reading tells.
        open: the images, in an order that is always the same.
    """

    name: str
    num_images: int | None
    open: Callable[[], Iterator[Input]]


@dataclass(frozen=True)
class Inputs:
    """All images that were named."""

    units: tuple[Unit, ...]

    @property
    def num_images(self) -> int | None:
        """How many there are, none where only reading tells."""
        counts = [unit.num_images for unit in self.units]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def sha256(self) -> str:
        """A digest of the names, in hex: other images have another."""
        return hashlib.sha256("\0".join(unit.name for unit in self.units).encode(errors="surrogateescape")).hexdigest()

    def images(self) -> Iterator[Input]:
        """The images one after another."""
        return chain.from_iterable(unit.open() for unit in self.units)


def open_inputs(words: Sequence[str | os.PathLike[str]], *, split: Split = "val", unit_size: int = 1024) -> Inputs:
    """Finds the images that a person names.

    Args:
        words: each one of

            - a file, a folder or a pattern, see `find_images`;
            - `@FILE`: a file or URL of a list, a path, URL or other word of these a line, but no pattern; paths are
              from the current folder;
            - a URL of an image, of any protocol that fsspec knows; one that ends in `/` stands for the images below,
              and one with `*` for those that match, where the protocol can list files;
            - a `.tar` file or its URL, or `wds:PATTERN` (see `list_shards`): every image in it, labelled or not;
            - a `.parquet` file or its URL, see `read_parquet`;
            - `fashion-mnist`, `cifar10`, `cifar100`, `hf:NAME` and `hf-stream:NAME`, see `open_labelled_images`.
        split: which images of a data set.
        unit_size: how many images of those that need no order go into a unit.

    Raises:
        XCiTError: if one can't be found.
    """
    units: list[Unit] = []
    files: dict[str, Input] = {}  # by what makes each one; those that are still to become units

    def finish() -> None:
        items = list(files.items())
        for first in range(0, len(items), unit_size):
            some = items[first : first + unit_size]
            names, images = "\n".join(key for key, _ in some), [image for _, image in some]
            units.append(Unit(names, len(images), partial(iter, images)))
        seen.update(files)
        files.clear()

    seen: set[str] = set()
    for word, is_listed in _listed(words):
        for key, found in _find(word, is_listed, split, unit_size):
            if isinstance(found, Unit):
                finish()
                units.append(found)
            elif key not in seen:
                files.setdefault(key, found)
    finish()
    return Inputs(tuple(units))


def _listed(words: Sequence[str | os.PathLike[str]]) -> Iterator[tuple[str, bool]]:
    """The words, with those of a list file in its place, and whether they are of one."""
    for word in [os.fspath(word) for word in words]:
        if not word.startswith("@") or os.path.lexists(word):
            yield word, False
            continue
        place = word[1:]
        try:
            if is_url(place):
                with open_url(place) as file:
                    data = file.read()
            else:
                data = Path(place).read_bytes()
        except OSError as error:
            raise XCiTError(f"{place}: the list can't be read: {error.strerror or error}") from None
        lines = [os.fsdecode(line.rstrip(b"\r")) for line in data.split(b"\n")]
        if not any(lines):
            raise XCiTError(f"{place}: an empty list; it has a path or URL a line")
        yield from ((line, True) for line in lines if line)


def _find(word: str, is_listed: bool, split: Split, unit_size: int) -> Iterator[tuple[str, Input | Unit]]:
    """What a word stands for: units, or single images with what tells them apart. A list has no patterns."""
    if word.startswith("wds:"):
        for shard in list_shards(word.removeprefix("wds:")):
            yield "", _tar(shard)
    elif word.startswith("hf-stream:"):
        stream = open_stream(word, split)
        for index in range(stream.num_shards):
            yield "", Unit(f"{word} {split} {index}", None, partial(stream.shard, index))
    elif word.startswith("hf:") or (word in _DATA_SETS and not os.path.lexists(word)):
        images = open_labelled_images(word, split)
        for first in range(0, len(images), unit_size):
            some = range(first, min(first + unit_size, len(images)))
            yield "", Unit(f"{word} {split} {some.start}..{some.stop}", len(some), partial(_some_of, images, some))
    elif is_url(word):
        yield from map(_of_url, _urls(word))
    elif is_parquet(word) and not glob.has_magic(word.partition("?")[0]):
        yield "", _parquet(word)
    else:
        for path in [Path(word)] if is_listed and not Path(word).is_dir() else find_images([word]):
            if path.name.lower().endswith(_TARS):
                yield "", _tar(str(path))
            elif is_parquet(str(path)):
                yield "", _parquet(str(path))
            else:
                yield os.path.abspath(path), path  # noqa: PTH100  (Path.absolute keeps "..")


def _urls(word: str) -> list[str]:
    if word.endswith("/"):
        urls = [url for url in list_urls(word) if Path(url).suffix.lower() in IMAGE_SUFFIXES]
        if not urls:
            raise XCiTError(f"{word}: a folder without images")
        return urls
    # A question mark begins a query.
    if not word.startswith(("http://", "https://")) and glob.has_magic(word.partition("?")[0]):
        urls = list_urls(word)
        if not urls:
            raise XCiTError(f"{word}: no file matches this pattern")
        return urls
    return [word]


def _of_url(url: str) -> tuple[str, Input | Unit]:
    if is_parquet(url):
        return "", _parquet(url)
    if url.partition("?")[0].lower().endswith(_TARS):
        return "", _tar(url)
    return url, StreamSample(url, -1, partial(_load, url))


def _load(url: str) -> bytes:
    with open_url(url) as file:
        return file.read()


def _tar(shard: str) -> Unit:
    return Unit(shard, None, partial(read_tar_images, shard))


def _parquet(place: str) -> Unit:
    return Unit(place, count_rows(place), partial(read_parquet, place))


def _some_of(images: LabelledImages, some: range) -> Iterator[Input]:
    return (DataSetImage(images, index) for index in some)
