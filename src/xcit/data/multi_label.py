"""Opens images that may have several classes, one class or none. A CSV file lists the images and their classes."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from xcit.data.named import Split
from xcit.errors import XCiTError, some_of
from xcit.images.read import read_image
from xcit.regular import is_file, regular

KNOWN_LISTS = (
    "a CSV file, or a folder with train.csv and val.csv. The first line of a file names the columns. The first column "
    "has the paths of the images. Then there is one column with class names, separated by spaces, or a column of 0 and "
    "1 for each class"
)

_BITS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}


@dataclass(frozen=True)
class MultiLabelImages:
    """Image files, each with any number of classes. The label of an image is the index of its row in `targets`.

    Attributes:
        paths: paths of the N image files.
        targets: uint8 (N, K), 1 if the image has the class, else 0.
        class_ids: names of the K classes.
    """

    paths: Sequence[Path]
    targets: Tensor
    class_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self.paths[index]), index

    def image_name(self, index: int) -> str:
        """Returns the name of an image for messages."""
        return str(self.paths[index])


def has_validation_list(data: str) -> bool:
    """Returns whether a folder has a list of validation images, `val.csv`."""
    return (Path(data) / "val.csv").is_file()


def open_multi_label(data: str, split: Split, *, class_ids: tuple[str, ...] = ()) -> MultiLabelImages:
    """Opens one split of a data set of images that may have several classes.

    Args:
        data: a folder with train.csv and val.csv, or one CSV file. If there is only one file, it is used for both
            splits. The first line of a file names the columns. The first column has the path of an image, relative to
            the folder of the CSV file. If there are two columns, the second column has the class names of the image,
            separated by spaces. If there are more columns, each further column is a class, with 1 for images that have
            the class and 0 for all other images.
        split: the split to open; "val" is the split for evaluation.
        class_ids: the class names of a model or of another split, in the order of the logits. If empty, the
            classes have the order of the columns, or alphabetical order if the file has two columns.

    Raises:
        XCiTError: if the CSV file does not exist, a line is invalid, an image is missing, or a class is not in
            `class_ids`.
    """
    path = Path(data)
    if path.is_dir():
        own = path / f"{split}.csv"
        path = own if own.is_file() else path / "train.csv"
    if not path.is_file():
        raise XCiTError(f"{path}: no such file; data must be {KNOWN_LISTS}")
    head, rows = _read(path)
    lists = _by_column(path, head, rows) if len(head) > 2 else [(line, row[1].split()) for line, row in rows]
    found = tuple(head[1:]) if len(head) > 2 else tuple(sorted({name for _, names in lists for name in names}))
    known = class_ids or found
    index_of = {name: index for index, name in enumerate(known)}
    if unknown := [name for name in found if name not in index_of]:
        raise XCiTError(
            f"{path}: {some_of(map(repr, unknown))} {'is' if len(unknown) == 1 else 'are'} not among the "
            f"{len(known)} known classes"
        )
    if not known:
        raise XCiTError(f"{path}: no image has a class")
    targets = torch.zeros(len(rows), len(known), dtype=torch.uint8)
    for row, (_, names) in enumerate(lists):
        targets[row, [index_of[name] for name in names]] = 1
    paths = [path.parent / row[0] for _, row in rows]
    if missing := [image for image in paths if not is_file(image)]:
        raise XCiTError(f"{path}: {len(missing)} of its {len(paths)} images do not exist; the first: {missing[0]}")
    return MultiLabelImages(paths, targets, known)


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Returns the column names; and for each line that is not empty, the line number and the cells."""
    try:
        with regular(path).open(encoding="utf-8-sig", newline="") as file:
            lines = list(enumerate(csv.reader(file), start=1))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise XCiTError(f"{path}: can't be read: {error}") from None
    rows = [(number, [cell.strip() for cell in row]) for number, row in lines if any(cell.strip() for cell in row)]
    if len(rows) < 2 or len(rows[0][1]) < 2:
        raise XCiTError(f"{path}: not a list of images: data must be {KNOWN_LISTS}")
    (_, head), *rows = rows
    if len(set(head)) < len(head):
        raise XCiTError(f"{path}: two columns have the same name")
    for number, row in rows:
        if len(row) != len(head):
            raise XCiTError(f"{path}, line {number}: {len(row)} columns, but the first line names {len(head)}")
    return head, rows


def _by_column(path: Path, head: list[str], rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Returns the line number and the class names of each line. The classes are the columns with a 1 in the line."""
    for number, row in rows:
        for name, cell in zip(head[1:], row[1:], strict=True):
            if cell not in _BITS:
                raise XCiTError(f"{path}, line {number}: {name} is {cell!r}, but must be 0 or 1")
    return [
        (number, [name for name, cell in zip(head[1:], row[1:], strict=True) if _BITS[cell]]) for number, row in rows
    ]
