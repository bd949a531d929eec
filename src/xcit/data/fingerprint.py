"""Computes fingerprints of data sets, without reading image files.

Different data sets have different fingerprints, and the fingerprint of a data set changes when the data change.
"""

import hashlib
from typing import Any

import numpy as np

from xcit.data.classification import ImageFiles, KnownImages, LabelledImages
from xcit.data.hub import HubImages


def fingerprint(images: LabelledImages) -> str | None:
    """Returns a SHA-256 digest in hex; None if images of this type have no fingerprint or an image file is missing.

    The digest is computed from the class names and the following data:

    - for image files: paths, labels, file sizes and modification times;
    - for torchvision's data sets: all pixels and labels;
    - for data sets of the Hugging Face Hub: the fingerprint from the `datasets` library, and the two column names.
    """
    sha = hashlib.sha256()
    if isinstance(images, ImageFiles):
        for path, label in images.items:
            try:
                status = path.stat()
            except OSError:
                return None
            sha.update(f"{path.absolute()}\0{label}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="replace"))
    elif isinstance(images, KnownImages):
        contents: list[Any] = [getattr(images.images, name, None) for name in ("data", "targets")]
        if any(content is None for content in contents):
            return None
        for content in contents:
            array = np.ascontiguousarray(content)
            sha.update(f"{array.dtype} {array.shape}\n".encode() + array.tobytes())
    elif isinstance(images, HubImages):
        sha.update(f"{images.rows._fingerprint}\n{images.image} {images.label}".encode())
    else:
        return None
    sha.update("\n".join(images.class_ids).encode(errors="replace"))
    return sha.hexdigest()
