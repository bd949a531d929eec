"""Images to train on whose classes do not count: a folder of any layout, or a data set known by name."""

from collections import Counter
from pathlib import Path

from xcit.data.classification import ImageFiles, LabelledImages, open_labelled_images
from xcit.data.splits import find_splits, left_out
from xcit.errors import XCiTError
from xcit.images.find import images_below


def open_unlabelled_images(data: str) -> LabelledImages:
    """Opens the training images of a data set; their labels mean nothing.

    Args:
        data: a folder, of which all images at any depth are taken, or those to train on where it has splits (see
            `find_splits`); or any other data that `open_labelled_images` opens.

    Raises:
        XCiTError: if there is no such data set or folder, or no image in it.
    """
    root = Path(data)
    if not root.is_dir():
        return open_labelled_images(data, "train")
    root = find_splits(root).of("train")
    others: Counter[str] = Counter()
    images = images_below(root, others)
    if not images:
        raise XCiTError(f"{root}: a folder without images")
    return ImageFiles([(path, 0) for path in images], ("",), str(root), tuple(left_out(root, others)))
