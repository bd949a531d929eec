"""One tar shard in WebDataset's form as labelled images: consecutive files of one key are one sample.

The standard library reads the tar. The readers of `webdataset` and `datasets` read every byte of every sample, wanted
or not, take damage for the end of a shard, and leave out links without a word.
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
    """The samples of a shard, in order.

    A sample is files of one key, which is the path up to the first dot of the file's name, as in WebDataset: of
    `a.b/1.left.jpg` it is `a.b/1`, and `left.jpg` is the extension. It has an image, by the last part of an extension,
    and likewise `cls` with the class index as text, or `json` with an object whose "label" is that. An extension of
    that part alone goes before others; of two others neither is taken. Files that are neither image nor label, hidden
    ones and those whose names begin with two underscores are left out.

    Of an uncompressed file on disk nothing but labels is read before a sample's `load`. What is damaged comes as a
    sample that can't be read: one in place of the rest of a shard that is cut off.

    Args:
        shard: a path, or a URL (see `open_url`).
        num_classes: labels run from 0 to one less.

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
    """Every image of a shard, in order, whatever lies beside it; see `read_tar` for damage and errors.

    Raises:
        XCiTError: if the shard is missing, or the disk or the connection fails.
    """
    try:
        for file in _files(shard):
            if file.extension.rpartition(".")[2] not in _IMAGES:
                continue
            name = f"{shard}/{file.key}.{file.extension}"
            if file.load is None:
                yield unreadable_sample(name, "a link in the shard, where a file should be")
            else:
                yield StreamSample(name, -1, file.load)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        yield unreadable_sample(shard, f"the archive is damaged or cut off ({error})")
    except OSError as error:
        raise XCiTError(f"{shard}: the shard cannot be read ({error.strerror or error})") from error


class _File(NamedTuple):
    """A file in a tar; `load` is none of a link, which can lead anywhere."""

    key: str
    extension: str
    load: Callable[[], bytes] | None


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
            suffix = extension.rpartition(".")[2]
            is_meta = not stem or stem.startswith("__")  # hidden files, and notes of the shard's writer
            if member.isdir() or is_meta or not (suffix in _IMAGES or suffix in _LABELS):
                continue
            load: Callable[[], bytes] | None = None
            if member.isreg() and member.size > (MOST_BYTES if suffix in _IMAGES else _MOST_LABEL_BYTES):
                load = partial(
                    _refuse, f"{shard}/{member.name}: of {member.size:,} bytes, too many for a file of its kind"
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
        return unreadable_sample(name, f"two files of one name ({', '.join(extensions)})")
    images, labels = _chosen(extensions, _IMAGES), _chosen(sorted(extensions), _LABELS)
    if not images:
        return unreadable_sample(name, "no image with this label in the shard")
    if not labels:
        reason = 'no label with this image in the shard (a file .cls, or .json with a "label")'
        return unreadable_sample(name, reason)
    for kind, found in (("image", images), ("label", labels)):
        if len(found) > 1:
            reason = f"its name ends at the first dot, and it has more than one {kind} ({', '.join(found)})"
            return unreadable_sample(name, reason)
    loads = {file.extension: file.load for file in files}
    image, text = loads[images[0]], loads[labels[0]]
    if image is None or text is None:
        return unreadable_sample(name, "a link in the shard, where a file should be")
    try:
        label, problem = _label(labels[0], text(), num_classes)
    except XCiTError as error:
        return unreadable_sample(name, str(error))
    if problem:
        return unreadable_sample(name, problem)
    return StreamSample(f"{name}.{images[0]}", label, image)


def _chosen(extensions: Sequence[str], kinds: Collection[str]) -> list[str]:
    """The first that is one of the kinds, else all that end as one of them."""
    exact = [extension for extension in extensions if extension in kinds]
    return exact[:1] or [extension for extension in extensions if extension.rpartition(".")[2] in kinds]


def _label(extension: str, text: bytes, num_classes: int) -> tuple[int, str]:
    """The class index, or what is wrong with it."""
    if extension.endswith("cls"):
        word = text.decode(errors="replace").strip()
        # No class has a number of more digits, and Python refuses to read one of thousands.
        label: object = int(word) if word.isdecimal() and len(word) <= _MOST_DIGITS else word
    else:
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            return -1, "its json is damaged"
        label = fields.get("label") if isinstance(fields, dict) else None
    problem = label_problem(label, num_classes)
    return (label if isinstance(label, int) else -1), problem
