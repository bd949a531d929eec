"""Data sets of the Hugging Face Hub, and folders in its forms (parquet, arrow): in full (`hf:`) or as a stream."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl

from PIL import Image

from xcit.data.named import Split
from xcit.data.samples import StreamSample, label_problem, numbered_classes, parse_class_names, unreadable_sample
from xcit.errors import XCiTError
from xcit.images.read import read_encoded_image

_SPLITS: Mapping[Split, tuple[str, ...]] = {"train": ("train",), "val": ("validation", "val", "valid", "test")}

_LABEL_COLUMNS = ("label", "labels", "cls", "class", "target")
"""Names by which a column of plain numbers or texts is known for the labels."""

_ROWS_AT_ONCE = 16
_NUM_SAVED_SHARDS = 128


@dataclass(frozen=True)
class _Columns:
    """Where a row has its image and its label; `index_of` tells the indices of labels that are texts."""

    image: str
    label: str
    index_of: Mapping[str, int] | None

    def index(self, value: Any, name: str, num_classes: int) -> int:
        """The class index that a row's label stands for.

        Raises:
            XCiTError: if it stands for none.
        """
        label = value if self.index_of is None else self.index_of.get(value, value)
        if problem := label_problem(label, num_classes):
            raise XCiTError(f"{name}: {problem}")
        return int(label)


@dataclass(frozen=True)
class HubImages:
    """One split on this disk, a list of labelled images (see `LabelledImages`)."""

    name: str
    class_ids: tuple[str, ...]
    rows: Any
    columns: _Columns

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        row, name = self.rows[index], self.image_name(index)
        label = self.columns.index(row[self.columns.label], name, len(self.class_ids))
        return read_encoded_image(_file_of(row[self.columns.image], name), name), label

    def image_name(self, index: int) -> str:
        """The data set, the split and the number of the row."""
        return f"{self.name} row {index}"


@dataclass(frozen=True)
class HubStream:
    """One split shard by shard, a stream of labelled images (see `LabelledStream`)."""

    name: str
    class_ids: tuple[str, ...]
    num_images: int
    rows: Any
    columns: _Columns
    is_local: bool

    @property
    def num_shards(self) -> int:
        """Files, of most data sets."""
        return int(self.rows.num_shards)

    def shard(self, index: int) -> Iterator[StreamSample]:
        """The rows of one shard."""
        from pyarrow import ArrowInvalid

        shard, place = f"{self.name} shard {index}", 0
        # `iter`, for in a worker of torch's a plain loop would give no more than that worker's share of the shard.
        batches = self.rows.shard(num_shards=self.num_shards, index=index).iter(batch_size=_ROWS_AT_ONCE)
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # of Arrow, of the file system or of the HTTP library
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                if not (self.is_local or isinstance(error, ArrowInvalid)):
                    raise XCiTError(f"{shard}: cannot be read ({reason})") from error
                yield unreadable_sample(shard, f"damaged after row {place} ({reason})")
                return
            if batch is None:
                return
            for image, label in zip(batch[self.columns.image], batch[self.columns.label], strict=True):
                yield self._sample(f"{shard} row {place}", image, label)
                place += 1

    def _sample(self, name: str, image: Any, label: Any) -> StreamSample:
        try:
            index = self.columns.index(label, name, len(self.class_ids))
        except XCiTError as error:
            return unreadable_sample(name, str(error).removeprefix(f"{name}: "))
        return StreamSample(name, index, lambda: _file_of(image, name))


def open_hub_images(data: str, split: Split) -> HubImages:
    """Opens `hf:NAME`, or `hf:NAME?config=CONFIG&image=COLUMN&label=COLUMN` with any of these.

    Args:
        data: NAME is a data set of the Hub, which is downloaded, or a folder of parquet or arrow files, or one that
            `save_to_disk` wrote. The `datasets` library keeps a copy in its cache that is read as it lies on the disk.
            Names of classes are those of the label column's type, else of a file `classes.txt` in the folder, else the
            texts or the numbers from 0 that are the labels of the training split.
        split: "val" is the validation split, or if there is none the test split.

    Raises:
        XCiTError: if the data set, its split or its columns are missing or not clear, or the library is not installed.
    """
    source = _parse(data, "hf")
    splits = _open(source, streaming=False).rows
    name = _split_name(source, splits, split)
    image, label = _find_columns(source, splits[name].features)
    class_ids = _named_classes(source, splits[name].features[label])
    if class_ids is None:
        class_ids = _classes_of(splits.get("train", splits[name]).unique(label))
    columns = _Columns(image, label, _index_of(splits[name].features[label], class_ids))
    return HubImages(f"{data} {name}", class_ids, _undecoded(splits[name], image, label), columns)


def open_hub_stream(data: str, split: Split, num_classes: int | None) -> HubStream:
    """Opens `hf-stream:NAME`, with columns as in `open_hub_images`, and `#COUNT` for the number of images.

    Args:
        data: NAME is a data set of the Hub, read over the network and never stored, or a folder as for
            `open_hub_images`, without a copy in the cache.
        split: as in `open_hub_images`.
        num_classes: how many classes there are, for labels that are plain numbers.

    Raises:
        XCiTError: as `open_hub_images`, and if the number of images or the classes are not known.
    """
    source = _parse(data, "hf-stream")
    opened = _open(source, streaming=True)
    name = _split_name(source, opened.rows, split)
    rows = opened.rows[name]
    if rows.features is None:
        raise XCiTError(f"{data}: its columns have no types; write it as parquet files, or use another data set")
    image, label = _find_columns(source, rows.features)
    feature = rows.features[label]
    class_ids = _named_classes(source, feature)
    if class_ids is None and _is_text(feature):
        raise XCiTError(
            f"{data}: its labels are texts, and a stream does not know them all: open it as hf:{source.name}"
        )
    if class_ids is None and num_classes is None:
        raise XCiTError(f"{data}: its labels are numbers without names: write a file classes.txt into the folder")
    class_ids = class_ids or numbered_classes(num_classes or 0)
    num_images = source.count or opened.num_images(name)
    if num_images is None:
        raise XCiTError(
            f"{data}: how many images there are is not known: add the count to the name, as in {data}#1281167"
        )
    columns = _Columns(image, label, _index_of(feature, class_ids))
    is_local = source.folder is not None
    return HubStream(f"{data} {name}", class_ids, num_images, _undecoded(rows, image, label), columns, is_local)


# ---- where the data are


@dataclass(frozen=True)
class _Source:
    """What a person asked for, in parts."""

    data: str
    name: str
    config: str | None
    image: str | None
    label: str | None
    count: int | None

    @property
    def folder(self) -> Path | None:
        """The folder, None for a data set of the Hub."""
        folder = Path(self.name).expanduser()
        return folder if folder.is_dir() else None


def _parse(data: str, kind: str) -> _Source:
    count = r"(?:#(\d+))?" if kind == "hf-stream" else "()"
    found = re.fullmatch(rf"{kind}:([^?#]+)(?:\?([^#]*))?{count}", data)
    options = dict(parse_qsl(found[2] or "", keep_blank_values=True)) if found else {}
    if found is None or not options.keys() <= {"config", "image", "label"}:
        raise XCiTError(
            f"{data}: must be of the form {kind}:NAME, or {kind}:NAME?config=NAME&image=COLUMN&label=COLUMN"
        )
    source = _Source(
        data, found[1], options.get("config"), options.get("image"), options.get("label"), int(found[3] or 0) or None
    )
    if source.folder is None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source.name):
        raise XCiTError(f"{data}: no such folder, and no name of a data set of the Hugging Face Hub")
    return source


@dataclass(frozen=True)
class _Opened:
    """The splits of a data set, the counts of rows that are known already, and the parquet files that tell others."""

    rows: Mapping[str, Any]
    counts: Mapping[str, int]
    parquet_files: Mapping[str, Sequence[str]]

    def num_images(self, split: str) -> int | None:
        if split in self.counts or split not in self.parquet_files:
            return self.counts.get(split)
        from pyarrow import parquet

        return sum(parquet.read_metadata(file).num_rows for file in self.parquet_files[split])


def _open(source: _Source, *, streaming: bool) -> _Opened:
    datasets = _library()
    try:
        folder = source.folder
        if folder and any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            saved = datasets.load_from_disk(str(folder))
            splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
            counts = {name: len(rows) for name, rows in splits.items()}
            if streaming:
                splits = {
                    name: rows.to_iterable_dataset(min(len(rows), _NUM_SAVED_SHARDS)) for name, rows in splits.items()
                }
            return _Opened(splits, counts, {})
        builder = datasets.load_dataset_builder(str(folder or source.name), source.config)
        if not streaming:
            builder.download_and_prepare()
            return _Opened(builder.as_dataset(), {}, {})
        counts = {name: info.num_examples for name, info in (builder.info.splits or {}).items() if info.num_examples}
        files = {str(name): list(files) for name, files in (builder.config.data_files or {}).items()}
        local = {name: files for name, files in files.items() if folder and all(f.endswith(".parquet") for f in files)}
        return _Opened(builder.as_streaming_dataset(), counts, local)
    except Exception as error:  # its own, those of the Hub's client, and those of its HTTP library
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = "the folder cannot be read" if source.folder else "no such folder, and the Hugging Face Hub gives none"
        raise XCiTError(f"{source.data}: {what} ({reason})") from error


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError:
        raise XCiTError(
            "data sets of the Hugging Face Hub need the library datasets: pip install 'xcit[hub]'"
        ) from None
    library: ModuleType = datasets
    return library


def _split_name(source: _Source, splits: Mapping[str, Any], split: Split) -> str:
    for name in _SPLITS[split]:
        if name in splits:
            return name
    raise XCiTError(
        f"{source.data}: no split {' or '.join(_SPLITS[split])}, only {', '.join(splits)}; name the files for their "
        "splits, or hold out a part of the training images"
    )


# ---- what is in them


def _find_columns(source: _Source, features: Mapping[str, Any]) -> tuple[str, str]:
    """The columns of images and of labels."""
    datasets = _library()
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)] or [
        name for name, feature in features.items() if _holds_files(feature)
    ]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)] or [
        name for name, feature in features.items() if name in _LABEL_COLUMNS and (_is_text(feature) or _is_int(feature))
    ]
    image = _choose(source, "image", source.image, images, features)
    label = _choose(source, "label", source.label, labels, features)
    feature = features[label]
    if not (isinstance(feature, datasets.ClassLabel) or _is_text(feature) or _is_int(feature)):
        raise XCiTError(f"{source.data}: the column {label} has no class labels: it is of type {feature}")
    return image, label


def _choose(
    source: _Source, what: str, wanted: str | None, candidates: Sequence[str], columns: Mapping[str, Any]
) -> str:
    if wanted is None and len(candidates) == 1:
        return candidates[0]
    if wanted is not None and wanted in columns:
        return wanted
    which = f"there is no column {wanted}" if wanted else f"which column holds the {what}s is not clear"
    place = f"{source.data.partition('#')[0].partition('?')[0]}?{what}=COLUMN"
    raise XCiTError(f"{source.data}: {which}; the columns are {', '.join(columns)}; name it as in {place}")


def _holds_files(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("binary", "large_binary") or (
        isinstance(feature, dict) and "bytes" in feature
    )


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("string", "large_string")


def _is_int(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint"))


def _named_classes(source: _Source, feature: Any) -> tuple[str, ...] | None:
    """The classes by the label column's type, else by a file in the folder."""
    if isinstance(feature, _library().ClassLabel):
        return tuple(feature.names) if feature.names else numbered_classes(feature.num_classes)
    if source.folder and (source.folder / "classes.txt").is_file():
        return parse_class_names((source.folder / "classes.txt").read_text(encoding="utf-8"))
    return None


def _classes_of(labels: Sequence[Any]) -> tuple[str, ...]:
    """The classes by the labels themselves."""
    numbers = [label for label in labels if isinstance(label, int)]
    if numbers:
        return numbered_classes(max(numbers) + 1)
    return tuple(sorted(label for label in labels if isinstance(label, str)))


def _index_of(feature: Any, class_ids: Sequence[str]) -> Mapping[str, int] | None:
    return {name: index for index, name in enumerate(class_ids)} if _is_text(feature) else None


def _undecoded(rows: Any, image: str, label: str) -> Any:
    """The two columns, images as files: the library's own decoder leaves them lying and knows fewer modes."""
    return rows.select_columns([image, label]).cast_column(image, _library().Image(decode=False))


def _file_of(image: Any, name: str) -> bytes:
    """The bytes of a row's image file, which is in the row, or on this disk or the Hub beside the table."""
    path = image["path"] if isinstance(image, dict) and image["bytes"] is None else None
    if isinstance(image, dict) and path is None:
        image = image["bytes"]
    if isinstance(image, bytes):
        return image
    if path is None or ("://" in path and not path.startswith("hf://")):
        raise XCiTError(f"{name}: there is no image in this row")
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            data: bytes = file.read()
    except OSError as error:
        raise XCiTError(f"{name}: {path} cannot be read ({error.strerror or error})") from error
    return data
