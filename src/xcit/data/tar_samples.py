"""Reads a tar shard in WebDataset's format as labelled images: successive files with the same key are one sample.

The tar file is read with the standard library. The readers of `webdataset` and `datasets` are not used, because they
read every byte of every sample, treat damage as the end of a shard, and skip links without a message.
"""

import json
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import BinaryIO, NamedTuple, Self

from xcit.data.remote import is_url, open_url
from xcit.data.samples import MOST_BYTES, StreamSample, label_problem, unreadable_sample
from xcit.errors import XCiTError
from xcit.images.formats import IMAGE_SUFFIXES
from xcit.regular import regular

_IMAGES = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
_LABELS = ("cls", "json")
_MOST_DIGITS = 18
_MOST_LABEL_BYTES = 2**20


def read_tar(shard: str, num_classes: int) -> Iterator[StreamSample]:
    """Yields the samples of a shard, in order.

    A sample consists of files with the same key. As in WebDataset, the key is the path up to the first dot of the file
    name. For example, the file `a.b/1.left.jpg` has the key `a.b/1` and the extension `left.jpg`, and the suffix is
    `jpg`, the last part of the extension.

    A sample needs an image file, with the suffix of an image format, and a label file. The suffix of a label file is
    `cls` (the class index as text) or `json` (an object with the class index as "label"). If several files have a
    suitable suffix, the first file with an extension of one part is used. If all their extensions have several parts,
    the sample is unreadable. Files with other suffixes, hidden files, and files with a name that begins with two
    underscores are skipped.

    If the shard is an uncompressed file on disk, an image file is not read before the sample's `load` is called. A
    damaged sample is replaced by an unreadable sample (see `unreadable_sample`). If the shard is cut off or damaged,
    one unreadable sample replaces the rest of the shard.

    Args:
        shard: a path or a URL (see `open_url`).
        num_classes: number of classes. Valid labels are 0 to `num_classes` - 1.

    Raises:
        XCiTError: if the shard is missing, or the disk or the connection fails.
    """
    try:
        for key, files in groupby(_files(shard), key=lambda file: file.key):
            yield _sample(f"{shard}/{key}", list(files), num_classes)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        yield unreadable_sample(shard, f"the archive is damaged or cut off ({error})")
    except OSError as error:
        raise XCiTError(f"{shard}: the shard cannot be read ({error.strerror or error})") from error


def read_tar_images(shard: str) -> Iterator[StreamSample]:
    """Yields all images of a shard, in order, and skips all other files. Damage is treated as in `read_tar`.

    Raises:
        XCiTError: if the shard is missing, or the disk or the connection fails.
    """
    try:
        for file in _files(shard):
            if file.extension.rpartition(".")[2] not in _IMAGES:
                continue
            name = f"{shard}/{file.key}.{file.extension}"
            if file.load is None:
                yield unreadable_sample(name, "the shard contains a link instead of this file")
            else:
                yield StreamSample(name, -1, file.load)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        yield unreadable_sample(shard, f"the archive is damaged or cut off ({error})")
    except OSError as error:
        raise XCiTError(f"{shard}: the shard cannot be read ({error.strerror or error})") from error


class _File(NamedTuple):
    """A file in a tar file. For a link, `load` is None: links are not followed, because they can lead anywhere."""

    key: str
    extension: str
    load: Callable[[], bytes] | None


class _Member(tarfile.TarInfo):
    """A member of a tar file. Only a block of zeros is the end of the archive; any damage raises `tarfile.ReadError`.

    Without this class, `tarfile` would treat a damaged header as the end of the archive.
    """

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
            archive.members.clear()  # type: ignore[attr-defined]  # otherwise all members stay in memory
            folder, slash, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            extension = extension.lower()
            suffix = extension.rpartition(".")[2]
            is_meta = not stem or stem.startswith("__")  # hidden files, and files with metadata
            if member.isdir() or is_meta or not (suffix in _IMAGES or suffix in _LABELS):
                continue
            load: Callable[[], bytes] | None = None
            if member.isreg() and member.size > (MOST_BYTES if suffix in _IMAGES else _MOST_LABEL_BYTES):
                load = partial(
                    _refuse, f"{shard}/{member.name}: {member.size:,} bytes are too many for a file of this type"
                )
            elif member.isreg() and can_seek and suffix in _IMAGES and not member.issparse():
                load = partial(_read_part, shard, member.name, member.offset_data, member.size)
            elif member.isreg():
                load = _read_member(archive, member)
            yield _File(folder + slash + stem, extension, load)


def _open(shard: str) -> BinaryIO:
    return open_url(shard) if is_url(shard) else regular(shard).open("rb")


def _refuse(problem: str) -> bytes:
    raise XCiTError(problem)


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    file = archive.extractfile(member)
    assert file is not None
    data = file.read()
    return lambda: data


def _read_part(shard: str, name: str, offset: int, size: int) -> bytes:
    try:
        with regular(shard).open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise XCiTError(f"{shard}/{name}: the shard cannot be read ({error.strerror or error})") from error
    if len(data) < size:
        raise XCiTError(f"{shard}/{name}: the shard is cut off")
    return data


def _sample(name: str, files: Sequence[_File], num_classes: int) -> StreamSample:
    extensions = [file.extension for file in files]
    if len(set(extensions)) < len(files):
        return unreadable_sample(name, f"two files have the same name ({', '.join(extensions)})")
    images, labels = _chosen(extensions, _IMAGES), _chosen(sorted(extensions), _LABELS)
    if not images:
        return unreadable_sample(name, "the shard has no image for this label")
    if not labels:
        reason = 'the shard has no label for this image (a file .cls, or .json with a "label")'
        return unreadable_sample(name, reason)
    for kind, found in (("image", images), ("label", labels)):
        if len(found) > 1:
            reason = f"more than one {kind} for this sample ({', '.join(found)}): a sample's name ends at the first dot"
            return unreadable_sample(name, reason)
    loads = {file.extension: file.load for file in files}
    image, text = loads[images[0]], loads[labels[0]]
    if image is None or text is None:
        return unreadable_sample(name, "the shard contains a link instead of this file")
    try:
        label, problem = _label(labels[0], text(), num_classes)
    except XCiTError as error:
        return unreadable_sample(name, str(error))
    if problem:
        return unreadable_sample(name, problem)
    return StreamSample(f"{name}.{images[0]}", label, image)


def _chosen(extensions: Sequence[str], kinds: Collection[str]) -> list[str]:
    """Returns a list with the first of the extensions that is contained in `kinds`.

    If none is contained, the list has all extensions whose part after the last dot is contained in `kinds`, such as
    "left.png" if `kinds` contains "png".
    """
    exact = [extension for extension in extensions if extension in kinds]
    return exact[:1] or [extension for extension in extensions if extension.rpartition(".")[2] in kinds]


def _label(extension: str, text: bytes, num_classes: int) -> tuple[int, str]:
    """Returns the class index, and the reason why it is invalid; the reason is "" if the index is valid."""
    if extension.endswith("cls"):
        word = text.decode(errors="replace").strip()
        # No class index has more than `_MOST_DIGITS` digits, and Python raises an error for numbers with thousands of
        # digits.
        label: object = int(word) if word.isdecimal() and len(word) <= _MOST_DIGITS else word
    else:
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            return -1, "its json is damaged"
        label = fields.get("label") if isinstance(fields, dict) else None
    problem = label_problem(label, num_classes)
    return (label if isinstance(label, int) else -1), problem
