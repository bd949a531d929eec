"""Finds the images that a user names: files, folders, patterns, lists, URLs, tar shards, Parquet files, data sets."""

import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

from PIL import Image

from xcit.data.classification import LabelledImages, open_labelled_images
from xcit.data.hub import HubImages
from xcit.data.named import Split
from xcit.data.parquet_images import count_rows, is_parquet, read_parquet
from xcit.data.remote import is_url, list_urls, open_url, read_whole
from xcit.data.samples import StreamSample
from xcit.data.shards import list_shards
from xcit.data.streams import open_stream
from xcit.data.tar_samples import read_tar_images
from xcit.errors import XCiTError
from xcit.images.find import find_images, is_image_name
from xcit.images.passed_by import PassedBy
from xcit.images.read import ImageSource, read_image
from xcit.images.sources import as_url
from xcit.regular import regular

_DATA_SETS = ("fashion-mnist", "cifar10", "cifar100")
_TARS = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class DataSetImage:
    """An image of a data set. The image is read from the data set when `read` is called."""

    images: LabelledImages
    index: int
    ignore_exif: bool = False

    @property
    def name(self) -> str:
        """The image's name in the data set."""
        return self.images.image_name(self.index)

    def read(self) -> Image.Image:
        """Returns the image; if it can't be read, raises an `XCiTError` with the image's name and the reason."""
        if isinstance(self.images, HubImages):
            return self.images.picture(self.index, ignore_exif=self.ignore_exif)
        return self.images[self.index][0]  # the images of these data sets have no EXIF orientation


@dataclass(frozen=True)
class StoredPixels:
    """An image that is read as stored, without the EXIF rotation. It is read when `read` is called."""

    name: str
    source: ImageSource

    def read(self) -> Image.Image:
        """Returns the image; if it can't be read, raises an `XCiTError` with the image's name and the reason."""
        return read_image(self.source, ignore_exif=True)


NamedImage = StreamSample | DataSetImage | StoredPixels
"""An image that has not been read yet. It has a name for messages."""

Input = Path | NamedImage


@dataclass(frozen=True)
class Unit:
    """Images that one process reads in order: some files, some images of a data set, or a shard.

    Attributes:
        name: a unique name: the paths of the files, or the path, URL or name of the shard.
        num_images: number of images; None if the number is only known after reading.
        open: a function that returns an iterator over the images, always in the same order.
    """

    name: str
    num_images: int | None
    open: Callable[[], Iterator[Input]]


@dataclass(frozen=True)
class Inputs:
    """All images that a user named.

    Attributes:
        units: the units that contain the images.
        passed_by: counts of the files that were left out when folders were searched.
    """

    units: tuple[Unit, ...]
    passed_by: PassedBy = field(default_factory=PassedBy)

    @property
    def num_images(self) -> int | None:
        """Number of images; None if the number is only known after reading."""
        counts = [unit.num_images for unit in self.units]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def sha256(self) -> str:
        """The SHA-256 digest of the names of the units, in hex."""
        return hashlib.sha256("\0".join(unit.name for unit in self.units).encode(errors="surrogateescape")).hexdigest()

    def images(self) -> Iterator[Input]:
        """Yields the images."""
        return chain.from_iterable(unit.open() for unit in self.units)

    def as_stored(self) -> "Inputs":
        """Returns the same inputs, but each image is read without the EXIF rotation (see the function `as_stored`)."""

        def opened(unit: Unit) -> Iterator[Input]:
            return map(as_stored, unit.open())

        return replace(self, units=tuple(replace(unit, open=partial(opened, unit)) for unit in self.units))


def as_stored(image: Input) -> Input:
    """Returns the same image, which will be read without the EXIF rotation.

    Files of arrays (.npy, .zarr) have no EXIF data and are returned unchanged.
    """
    if isinstance(image, StreamSample | DataSetImage):
        return replace(image, ignore_exif=True)
    if isinstance(image, StoredPixels) or image.suffix.lower() in (".npy", ".zarr"):
        return image
    return StoredPixels(as_url(image) or str(image), image)


def open_inputs(words: Sequence[str | os.PathLike[str]], *, split: Split = "val", unit_size: int = 1024) -> Inputs:
    """Finds the images that a user names.

    Args:
        words: each word is one of the following.

            - A file, a folder or a pattern, see `find_images`.
            - `@FILE`: a list, where FILE is a path or a URL. Each line is one of the items listed here, but not a
              pattern and not another list. Paths are relative to the current folder.
            - A URL of an image, with any protocol that fsspec supports. If the protocol can list files, two more forms
              of URL are possible. A URL that ends in `/` stands for all images in this folder and its subfolders. A
              URL with `*` is a pattern, and stands for all files that match the pattern.
            - A `.tar`, `.tar.gz` or `.tgz` file or its URL, or `wds:PATTERN` (see `list_shards`). All images in the
              tar files are used, with or without labels.
            - A `.parquet` file or its URL, see `read_parquet`.
            - `fashion-mnist`, `cifar10`, `cifar100` or `hf:NAME`, see `open_labelled_images`.
            - `hf-stream:NAME`, see `open_stream`.
        split: the split that is used if a word names a data set.
        unit_size: number of images per unit, except for shards. Each shard is one unit.

    Raises:
        XCiTError: if one of the inputs can't be found.
    """
    units: list[Unit] = []
    files: dict[str, Input] = {}  # maps paths or URLs to the images that are not in a unit yet

    def finish() -> None:
        items = list(files.items())
        for first in range(0, len(items), unit_size):
            some = items[first : first + unit_size]
            names, images = "\n".join(key for key, _ in some), [image for _, image in some]
            units.append(Unit(names, len(images), partial(iter, images)))
        seen.update(files)
        files.clear()

    seen: set[str] = set()
    passed_by = PassedBy()
    for word, is_listed in _listed(words):
        for key, found in _find(word, is_listed, split, unit_size, passed_by):
            if isinstance(found, Unit):
                finish()
                units.append(found)
            elif key in seen or key in files:
                passed_by.num_again += 1
            else:
                files[key] = found
    finish()
    return Inputs(tuple(units), passed_by)


def _listed(words: Sequence[str | os.PathLike[str]]) -> Iterator[tuple[str, bool]]:
    """Yields each word, and whether the word comes from a list. A word `@FILE` is replaced by the lines of the file."""
    for word in [os.fspath(word) for word in words]:
        if not word.startswith("@") or os.path.lexists(word):
            yield word, False
            continue
        place = word[1:]
        try:
            if is_url(place):
                with open_url(place) as file:
                    data = read_whole(file, place)
            else:
                data = regular(place).read_bytes()
        except OSError as error:
            raise XCiTError(f"{place}: the list can't be read: {error.strerror or error}") from None
        lines = [os.fsdecode(line.rstrip(b"\r")) for line in data.split(b"\n")]
        if not any(lines):
            raise XCiTError(f"{place}: an empty list; it must have one path or URL per line")
        yield from ((line, True) for line in lines if line)


def _find(
    word: str, is_listed: bool, split: Split, unit_size: int, passed_by: PassedBy
) -> Iterator[tuple[str, Input | Unit]]:
    """Yields the images and units that a word names, each as a pair of a key and the image or unit.

    The key of an image is its absolute path or its URL. The key of a unit is "". A word from a list is not treated as a
    pattern.
    """
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
        yield from map(_of_url, _urls(word, passed_by))
    elif is_parquet(word) and not glob.has_magic(word.partition("?")[0]):
        yield "", _parquet(word)
    else:
        for path in [Path(word)] if is_listed and not Path(word).is_dir() else find_images([word], passed_by):
            if path.name.lower().endswith(_TARS):
                yield "", _tar(str(path))
            elif is_parquet(str(path)):
                yield "", _parquet(str(path))
            else:
                yield os.path.abspath(path), path  # noqa: PTH100  (Path.absolute keeps "..")


def _urls(word: str, passed_by: PassedBy) -> list[str]:
    if word.endswith("/"):
        found = list_urls(word)
        urls = [url for url in found if is_image_name(Path(url))]
        for url in set(found).difference(urls):
            passed_by.add(Path(url))
        if not urls:
            raise XCiTError(f"{word}: a folder without images")
        return urls
    # In a URL, a question mark begins the query, so it is not a part of a pattern.
    if not word.startswith(("http://", "https://")) and glob.has_magic(word.partition("?")[0]):
        found = list_urls(word)
        # For URLs the same rule applies as for local paths: a pattern matches hidden files only if its last part begins
        # with a dot. fsspec's "*" also matches hidden files, so they are removed here.
        urls = (
            found if Path(word).name.startswith(".") else [url for url in found if not Path(url).name.startswith(".")]
        )
        passed_by.num_hidden += len(found) - len(urls)
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
        return read_whole(file, url)


def _tar(shard: str) -> Unit:
    return Unit(shard, None, partial(read_tar_images, shard))


def _parquet(place: str) -> Unit:
    return Unit(place, count_rows(place), partial(read_parquet, place))


def _some_of(images: LabelledImages, some: range) -> Iterator[Input]:
    return (DataSetImage(images, index) for index in some)
