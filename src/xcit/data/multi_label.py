"""Images that have any number of classes, or no class: a CSV list beside the images."""

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
    "a CSV file, or a folder with train.csv and val.csv, whose first line names the columns: an image's path and its "
    "class names with spaces between them, or an image's path and a column of 0 and 1 for each class"
)

_BITS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}


@dataclass(frozen=True)
class MultiLabelImages:
    """Image files with any number of classes each. The label of an image is the number of its row in `targets`.

    Attributes:
        paths: paths of N images.
        targets: (N, K) uint8, 1 if an image has a class.
        class_ids: K names.
    """

    paths: Sequence[Path]
    targets: Tensor
    class_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self.paths[index]), index

    def image_name(self, index: int) -> str:
        """Returns a name of an image for messages."""
        return str(self.paths[index])


def has_validation_list(data: str) -> bool:
    """Whether a folder has a list of validation images beside the list of training images."""
    return (Path(data) / "val.csv").is_file()


def open_multi_label(data: str, split: Split, *, class_ids: tuple[str, ...] = ()) -> MultiLabelImages:
    """Opens one split of a data set.

    Args:
        data: a folder with train.csv and val.csv, or one CSV file. A single file, or train.csv without val.csv, serves
            as both splits. The first line names the columns. If there are two columns, the second has the class names
            of an image, separated by spaces. If there are more, each class has a column, with 1 for images that have
            the class and 0 for others. Paths of images are relative to the list.
        split: "val" is the split for evaluation.
        class_ids: the classes of a model or of another split, in the order of its logits. If empty, the order is that
            of the columns, or alphabetical.

    Raises:
        XCiTError: if there is no such list, a line is wrong, an image is missing, or a class is not in `class_ids`.
    """
    path = Path(data)
    if path.is_dir():
        own = path / f"{split}.csv"
        path = own if own.is_file() else path / "train.csv"
    if not path.is_file():
        raise XCiTError(f"{path}: no such file; data is {KNOWN_LISTS}")
    head, rows = _read(path)
    lists = _by_column(path, head, rows) if len(head) > 2 else [(line, row[1].split()) for line, row in rows]
    found = tuple(head[1:]) if len(head) > 2 else tuple(sorted({name for _, names in lists for name in names}))
    known = class_ids or found
    index_of = {name: index for index, name in enumerate(known)}
    if unknown := [name for name in found if name not in index_of]:
        raise XCiTError(
            f"{path}: {len(known)} classes are known, and {some_of(map(repr, unknown))} "
            f"{'is' if len(unknown) == 1 else 'are'} none of them"
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
    """Returns the names of the columns, and the nonempty lines with their numbers."""
    try:
        with regular(path).open(encoding="utf-8-sig", newline="") as file:
            lines = list(enumerate(csv.reader(file), start=1))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise XCiTError(f"{path}: can't be read: {error}") from None
    rows = [(number, [cell.strip() for cell in row]) for number, row in lines if any(cell.strip() for cell in row)]
    if len(rows) < 2 or len(rows[0][1]) < 2:
        raise XCiTError(f"{path}: no list of images: data is {KNOWN_LISTS}")
    (_, head), *rows = rows
    if len(set(head)) < len(head):
        raise XCiTError(f"{path}: two columns have one name")
    for number, row in rows:
        if len(row) != len(head):
            raise XCiTError(f"{path}, line {number}: {len(row)} columns, where the first line names {len(head)}")
    return head, rows


def _by_column(path: Path, head: list[str], rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Returns the class names of each line, from its columns of 0 and 1."""
    for number, row in rows:
        for name, cell in zip(head[1:], row[1:], strict=True):
            if cell not in _BITS:
                raise XCiTError(f"{path}, line {number}: {name} is {cell!r}, must be 0 or 1")
    return [
        (number, [name for name, cell in zip(head[1:], row[1:], strict=True) if _BITS[cell]]) for number, row in rows
    ]
