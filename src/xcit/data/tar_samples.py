"""One tar shard in WebDataset's form as labelled images: consecutive files of one name are one sample.

The standard library reads the tar. The `webdataset` package would read every byte of every sample, wanted or not, and
starts another program for each URL.
"""

import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from xcit.data.remote import is_url, open_url
from xcit.data.samples import StreamSample, label_problem, unreadable_sample
from xcit.errors import XCiTError
from xcit.images.read import IMAGE_SUFFIXES

_IMAGES = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
_LABELS = ("cls", "json")


def read_tar(shard: str, num_classes: int) -> Iterator[StreamSample]:
    """The samples of a shard, in order.

    A sample is files of one name up to the first dot: an image, and `cls` with the class index as text, or `json` with
    an object whose "label" is that. Of an uncompressed file on disk nothing but labels is read before a sample's
    `load`. What is damaged comes as a sample that can't be read: one in place of the rest of a shard that is cut off.

    Args:
        shard: a path, or a URL (see `open_url`).
        num_classes: labels run from 0 to one less.

    Raises:
        XCiTError: if the shard is missing, or the disk or the connection fails.
    """
    try:
        for key, files in groupby(_files(shard), key=lambda file: file.key):
            yield _sample(f"{shard}/{key}", {file.extension: file for file in files}, num_classes)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        yield unreadable_sample(shard, f"the archive is damaged or cut off ({error})")
    except OSError as error:
        raise XCiTError(f"{shard}: the shard cannot be read ({error.strerror or error})") from error


class _File(NamedTuple):
    """A file in a tar; `key` is its path up to the first dot of its name, `extension` the rest in lower case."""

    key: str
    extension: str
    name: str
    load: Callable[[], bytes]


class _Member(tarfile.TarInfo):
    """Takes nothing but the two zero blocks at its end for a tar's end; `tarfile` would take any damage for it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            raise tarfile.ReadError(str(error)) from error


def _files(shard: str) -> Iterator[_File]:
    can_seek = not is_url(shard) and shard.endswith(".tar")
    with (
        _open(shard) as file,
        tarfile.open(fileobj=file, mode="r:", tarinfo=_Member)
        if can_seek
        else tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as archive,
    ):
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # else they are kept to the end of the shard
            folder, slash, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            extension = extension.lower()
            is_image = extension in _IMAGES
            is_meta = not stem or stem.startswith("__")  # hidden files, and notes of the shard's writer
            if not member.isreg() or is_meta or not (is_image or extension in _LABELS):
                continue
            load: Callable[[], bytes]
            if can_seek and is_image and not member.issparse():
                load = partial(_read_part, shard, member.name, member.offset_data, member.size)
            else:
                load = _read_member(archive, member)
            yield _File(folder + slash + stem, extension, member.name, load)


def _open(shard: str) -> BinaryIO:
    return open_url(shard) if is_url(shard) else Path(shard).open("rb")


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    file = archive.extractfile(member)
    assert file is not None
    data = file.read()
    return lambda: data


def _read_part(shard: str, name: str, offset: int, size: int) -> bytes:
    try:
        with Path(shard).open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise XCiTError(f"{shard}/{name}: the shard cannot be read ({error.strerror or error})") from error
    if len(data) < size:
        raise XCiTError(f"{shard}/{name}: the shard is cut off")
    return data


def _sample(name: str, files: Mapping[str, _File], num_classes: int) -> StreamSample:
    image = next((file for extension, file in files.items() if extension in _IMAGES), None)
    if image is None:
        return unreadable_sample(name, "no image with this label in the shard")
    label, problem = _label(files, num_classes)
    if problem:
        return unreadable_sample(name, problem)
    return StreamSample(f"{name}.{image.extension}", label, image.load)


def _label(files: Mapping[str, _File], num_classes: int) -> tuple[int, str]:
    """The class index, or what is wrong with it."""
    if "cls" in files:
        text = files["cls"].load().decode(errors="replace").strip()
        label: object = int(text) if text.isdecimal() else text
    elif "json" in files:
        try:
            fields = json.loads(files["json"].load())
        except ValueError:
            return -1, "its json is damaged"
        label = fields.get("label") if isinstance(fields, dict) else None
    else:
        return -1, 'no label with this image in the shard (a file .cls, or .json with a "label")'
    problem = label_problem(label, num_classes)
    return (label if isinstance(label, int) else -1), problem
