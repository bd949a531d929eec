"""Opens data sets of the Hugging Face Hub and folders of Parquet or Arrow files, as lists or as streams of images."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from PIL import Image

from xcit.data.named import Split
from xcit.data.samples import (
    MOST_BYTES,
    StreamSample,
    label_problem,
    numbered_classes,
    parse_class_names,
    unreadable_sample,
)
from xcit.errors import XCiTError
from xcit.extras import imported
from xcit.images.read import read_encoded_image
from xcit.regular import expanded, regular

_SPLITS: Mapping[Split, tuple[str, ...]] = {"train": ("train",), "val": ("validation", "val", "valid", "test")}

_COLUMNS = {"image": ("image", "img"), "label": ("label", "labels", "fine_label")}
"""Column names that are recognised as images or labels. If a column has another name, the user must give its name."""

_TYPES = {"image": r"PIL\.Image\.Image|(large_)?binary|struct", "label": r"u?int\d+|(large_)?string"}

_ROWS_AT_ONCE = 16
_NUM_SAVED_SHARDS = 128


@dataclass(frozen=True)
class HubImages:
    """One split of a data set on the local disk, as a list of labelled images (see `LabelledImages`).

    Attributes:
        name: name of the data set and the split, for messages.
        class_ids: names of the classes, in the order of the labels.
        rows: the table, with a column of images and a column of labels.
        image, label: names of these two columns.
        index_of: maps each label that is text to its class index; empty if the labels are numbers.
    """

    name: str
    class_ids: tuple[str, ...]
    rows: Any
    image: str
    label: str
    index_of: Mapping[Any, int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        row, name = self.rows[index], self.image_name(index)
        label = self.index_of.get(row[self.label], row[self.label])
        if problem := label_problem(label, len(self.class_ids)):
            raise XCiTError(f"{name}: {problem}")
        return self.picture(index), label

    def picture(self, index: int, *, ignore_exif: bool = False) -> Image.Image:
        """Returns the image of a row, as `read_image` does.

        Raises:
            XCiTError: if the image can't be read.
        """
        name = self.image_name(index)
        return read_encoded_image(_file_of(self.rows[index][self.image], name), name, ignore_exif=ignore_exif)

    def image_name(self, index: int) -> str:
        """Returns the data set, the split and the number of the row."""
        return f"{self.name} row {index}"


@dataclass(frozen=True)
class HubStream:
    """One split of a data set as a stream of labelled images (see `LabelledStream`), which is read shard by shard.

    See `HubImages` for the other attributes.

    Attributes:
        num_images: number of images in the split.
        is_local: whether the data set is a folder on the local disk.
    """

    name: str
    class_ids: tuple[str, ...]
    num_images: int
    rows: Any
    image: str
    label: str
    index_of: Mapping[Any, int]
    is_local: bool

    @property
    def num_shards(self) -> int:
        """Number of shards. In most data sets, each shard is a file."""
        return int(self.rows.num_shards)

    def shard(self, index: int) -> Iterator[StreamSample]:
        """Yields the rows of one shard."""
        from pyarrow import ArrowInvalid

        shard, place = f"{self.name} shard {index}", 0
        # In a worker of torch's loader, a plain loop over the rows would yield only a part of the shard, because
        # `datasets` divides the rows among the workers. `iter` yields all rows of the shard.
        batches = self.rows.shard(num_shards=self.num_shards, index=index).iter(batch_size=_ROWS_AT_ONCE)
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # an error of Arrow, the file system or the HTTP library
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                if not (self.is_local or isinstance(error, ArrowInvalid)):
                    raise XCiTError(f"{shard}: cannot be read ({reason})") from error
                yield unreadable_sample(shard, f"damaged after row {place} ({reason})")
                return
            if batch is None:
                return
            for image, label in zip(batch[self.image], batch[self.label], strict=True):
                yield self._sample(f"{shard} row {place}", image, label)
                place += 1

    def _sample(self, name: str, image: Any, label: Any) -> StreamSample:
        label = self.index_of.get(label, label)
        if problem := label_problem(label, len(self.class_ids)):
            return unreadable_sample(name, problem)
        return StreamSample(name, label, partial(_file_of, image, name))


def open_hub_images(data: str, split: Split) -> HubImages:
    """Opens one split of a data set of the Hugging Face Hub, or of a folder of Parquet or Arrow files.

    The `datasets` library stores a copy of the data in its cache, except for folders from `save_to_disk`. An image is
    read when it is needed.

    The class names come from the type of the label column. If the type has no names, they come from a file
    `classes.txt` in the folder. If there is no such file, the class names are the labels of the training split: sorted
    texts, or the numbers from 0 to the largest label.

    Args:
        data: `hf:NAME`, or `hf:NAME?config=CONFIG&image=COLUMN&label=COLUMN`, where each parameter may be omitted. NAME
            is a data set of the Hub, which is downloaded; or a folder of Parquet or Arrow files; or a folder that
            `save_to_disk` has written. CONFIG is one of the configurations of the data set. The other two parameters
            are the names of the columns.
        split: "val" is the validation split, or the test split if there is no validation split.

    Raises:
        XCiTError: if the data set, the split or a column is missing, a column is ambiguous, or the `datasets` library
            is not installed.
    """
    source = _parse(data, "hf")
    splits, _ = _open(source, streaming=False)
    name = _split_name(source, splits, split)
    image, label = (_column(source, what, splits[name].features) for what in _COLUMNS)
    feature = splits[name].features[label]
    class_ids = _named_classes(source, feature)
    if class_ids is None:
        labels = splits.get("train", splits[name]).unique(label)
        numbers = [label for label in labels if isinstance(label, int)]
        texts = tuple(sorted(label for label in labels if isinstance(label, str)))
        class_ids = numbered_classes(max(numbers) + 1) if numbers else texts
    rows = _undecoded(splits[name], image, label)
    return HubImages(f"{data} {name}", class_ids, rows, image, label, _index_of(feature, class_ids))


def open_hub_stream(data: str, split: Split, num_classes: int | None) -> HubStream:
    """Opens one split of a data set of the Hugging Face Hub, or of a folder of Parquet or Arrow files, as a stream.

    Args:
        data: `hf-stream:NAME`, with the same parameters as in `open_hub_images`. NAME is a data set of the Hub, or a
            folder that `open_hub_images` can open. A data set of the Hub is read over the network and not stored. A
            folder is not copied to the cache. `data` may end in `#COUNT`, the number of images. `#COUNT` is needed if
            the data do not contain the number of images.
        split: see `open_hub_images`.
        num_classes: number of classes; needed if the labels are numbers and the classes have no names.

    Raises:
        XCiTError: as in `open_hub_images`, and if the number of images or the classes are unknown.
    """
    source = _parse(data, "hf-stream")
    splits, counts = _open(source, streaming=True)
    name = _split_name(source, splits, split)
    if splits[name].features is None:
        raise XCiTError(f"{data}: its columns have no types; write it as parquet files, or use another data set")
    image, label = (_column(source, what, splits[name].features) for what in _COLUMNS)
    feature = splits[name].features[label]
    class_ids = _named_classes(source, feature)
    if class_ids is None and "string" in feature.dtype:
        raise XCiTError(
            f"{data}: its labels are texts, and a stream can't list all of them: open it as hf:{source.name}"
        )
    if class_ids is None and num_classes is None:
        raise XCiTError(f"{data}: its labels are numbers without names: write a file classes.txt into the folder")
    class_ids = class_ids or numbered_classes(num_classes or 0)
    num_images = source.count or counts.get(name)
    if num_images is None:
        raise XCiTError(f"{data}: the number of images is not known: add it to the name, as in {data}#1281167")
    rows, index_of = _undecoded(splits[name], image, label), _index_of(feature, class_ids)
    return HubStream(f"{data} {name}", class_ids, num_images, rows, image, label, index_of, bool(source.folder))


# ---- where the data are


@dataclass(frozen=True)
class _Source:
    """The parts of the name of a data set, as the user gave it."""

    data: str
    name: str
    options: Mapping[str, str]
    count: int

    @property
    def folder(self) -> Path | None:
        """The folder, or None for a data set of the Hub."""
        folder = expanded(self.name, "give the folder's whole path")
        return folder if folder.is_dir() else None


def _parse(data: str, kind: str) -> _Source:
    count = r"(?:#(\d+))?" if kind == "hf-stream" else "()"
    found = re.fullmatch(rf"{kind}:([^?#]+)(?:\?([^#]*))?{count}", data)
    options = dict(parse_qsl(found[2] or "", keep_blank_values=True)) if found else {}
    if found is None or not options.keys() <= {"config", "image", "label"}:
        raise XCiTError(
            f"{data}: must be of the form {kind}:NAME, or {kind}:NAME?config=NAME&image=COLUMN&label=COLUMN"
        )
    source = _Source(data, found[1], options, int(found[3] or 0))
    if source.folder is None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source.name):
        raise XCiTError(f"{data}: no such folder, and not a valid name of a data set of the Hugging Face Hub")
    return source


def _open(source: _Source, *, streaming: bool) -> tuple[Mapping[str, Any], Mapping[str, int]]:
    """Returns two dicts: the rows of each split, and the number of images of each split.

    The second dict contains only known numbers; it may be empty if `streaming` is false.
    """
    datasets, folder = _library(), source.folder
    try:
        if folder and any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            saved = datasets.load_from_disk(str(folder))
            splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
            counts = {name: len(rows) for name, rows in splits.items()}
            if streaming:
                splits = {n: rows.to_iterable_dataset(min(len(rows), _NUM_SAVED_SHARDS)) for n, rows in splits.items()}
            return splits, counts
        builder = datasets.load_dataset_builder(str(folder or source.name), source.options.get("config"))
        if not streaming:
            builder.download_and_prepare()
            return builder.as_dataset(), {}
        counts = {name: info.num_examples for name, info in (builder.info.splits or {}).items() if info.num_examples}
        for name, files in (builder.config.data_files or {}).items() if folder else ():
            if name not in counts and all(file.endswith(".parquet") for file in files):
                from pyarrow import parquet

                counts[str(name)] = sum(parquet.read_metadata(file).num_rows for file in files)
        return builder.as_streaming_dataset(), counts
    except Exception as error:  # errors of the library, the Hub's client or the HTTP library
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = "the folder cannot be read" if folder else "no such folder, and no such data set on the Hugging Face Hub"
        raise XCiTError(f"{source.data}: {what} ({reason})") from error


def _library() -> Any:
    return imported("datasets", "a data set of the Hugging Face Hub")


def _split_name(source: _Source, splits: Mapping[str, Any], split: Split) -> str:
    for name in _SPLITS[split]:
        if name in splits:
            return name
    raise XCiTError(
        f"{source.data}: no split {' or '.join(_SPLITS[split])}, only {', '.join(splits)}; name the files after their "
        "splits, or hold out a part of the training images"
    )


# ---- what the data contain


def _column(source: _Source, what: str, columns: Mapping[str, Any]) -> str:
    """Returns the name of the column of images (if `what` is "image") or of labels (if `what` is "label")."""
    wanted = source.options.get(what)
    found = [wanted] if wanted else [name for name in _COLUMNS[what] if name in columns]
    if len(found) != 1 or found[0] not in columns:
        which = f"there is no column {wanted}" if wanted else f"it is not clear which column has the {what}s"
        place = f"{source.data.partition('#')[0].partition('?')[0]}?{what}=COLUMN"
        raise XCiTError(f"{source.data}: {which}; the columns are {', '.join(columns)}; name the column as in {place}")
    feature = columns[found[0]]
    kind = "struct" if isinstance(feature, dict) and "bytes" in feature else getattr(feature, "dtype", "")
    if not re.fullmatch(_TYPES[what], kind):
        contents = "images" if what == "image" else "class labels"
        raise XCiTError(f"{source.data}: the column {found[0]} has no {contents}: it is of type {feature}")
    return found[0]


def _named_classes(source: _Source, feature: Any) -> tuple[str, ...] | None:
    """Returns the class names from the type of the label column, or from `classes.txt` in the folder.

    If neither has class names, returns None.
    """
    if isinstance(feature, _library().ClassLabel):
        return tuple(feature.names) if feature.names else numbered_classes(feature.num_classes)
    if source.folder and (source.folder / "classes.txt").is_file():
        return parse_class_names((source.folder / "classes.txt").read_text(encoding="utf-8"))
    return None


def _index_of(feature: Any, class_ids: Sequence[str]) -> Mapping[Any, int]:
    return {name: index for index, name in enumerate(class_ids)} if "string" in feature.dtype else {}


def _undecoded(rows: Any, image: str, label: str) -> Any:
    """Returns the column of images, which are not decoded, and the column of labels.

    The images are decoded later by `read_encoded_image`, because the decoder of `datasets` supports fewer image modes
    and always applies the EXIF rotation.
    """
    return rows.select_columns([image, label]).cast_column(image, _library().Image(decode=False))


def _file_of(image: Any, name: str) -> bytes:
    """Returns the bytes of a row's image file. The row contains the bytes, or the path of a file on disk or on the Hub.

    Raises:
        XCiTError: if the row has no image, or the file can't be read or is too large.
    """
    image = image or {"bytes": None, "path": None}
    data: bytes | None = image["bytes"]
    if data is not None:
        return data
    path = image["path"]
    # In fsspec, "::" chains protocols. A path with "::" is not accepted, because it could refer to any file or URL.
    if path is None or "::" in path or ("://" in path and not path.startswith("hf://")):
        raise XCiTError(f"{name}: there is no image in this row")
    import fsspec

    try:
        with fsspec.open(path if "://" in path else str(regular(path)), "rb") as file:
            data = bytes(file.read(MOST_BYTES + 1))
    except OSError as error:
        raise XCiTError(f"{name}: {path} cannot be read ({error.strerror or error})") from error
    if len(data) > MOST_BYTES:
        raise XCiTError(f"{name}: {path} has more than {MOST_BYTES:,} bytes: not an image")
    return data
