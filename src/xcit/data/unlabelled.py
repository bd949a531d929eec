"""Opens training images without labels: a folder of any layout, or a named data set."""

from pathlib import Path

from xcit.data.classification import ImageFiles, LabelledImages, open_labelled_images
from xcit.data.splits import find_splits, left_out
from xcit.errors import XCiTError
from xcit.images.find import images_below
from xcit.images.passed_by import PassedBy


def open_unlabelled_images(data: str) -> LabelledImages:
    """Opens the training images of a data set.

    The caller must ignore the labels in the result: for a folder, they are all 0.

    Args:
        data: a folder, or any other data that `open_labelled_images` opens. If a folder has splits (see `find_splits`),
            its training images are used. Otherwise, all images in the folder and in all its subfolders are used.

    Raises:
        XCiTError: if the data set or folder does not exist, or has no images.
    """
    root = Path(data)
    if not root.is_dir():
        return open_labelled_images(data, "train")
    root = find_splits(root).of("train")
    passed_by = PassedBy()
    images = images_below(root, passed_by)
    if not images:
        raise XCiTError(f"{root}: a folder without images")
    return ImageFiles([(path, 0) for path in images], ("",), str(root), tuple(left_out(root, passed_by)))
