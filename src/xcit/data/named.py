"""Opens named data sets: finds them on this machine, or downloads them."""

import gzip
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from xcit.errors import XCiTError
from xcit.regular import expanded

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10, FashionMNIST

Split = Literal["train", "val"]

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""The folder with the four gzipped IDX files of Debian's package `dataset-fashion-mnist`."""

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def data_dir() -> Path:
    """Returns the folder of named data sets: the value of XCIT_DATA if it is set, else a folder in the user's cache."""
    if "XCIT_DATA" in os.environ:
        return Path(os.environ["XCIT_DATA"])
    return (
        expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "set XCIT_DATA to a folder for data") / "xcit" / "data"
    )


def fashion_mnist_root(debian: Path = DEBIAN_FASHION_MNIST) -> Path:
    """Returns the folder for torchvision's FashionMNIST.

    If the data are not in this folder, they are unpacked from Debian's package or downloaded.

    Args:
        debian: the folder of Debian's package.

    Raises:
        XCiTError: if the data are not on the machine and can't be downloaded.
    """
    root = data_dir()
    raw = root / "FashionMNIST" / "raw"
    names = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    if all((raw / name).is_file() for name in names):
        return root
    if all((debian / f"{name}.gz").is_file() for name in names):
        raw.mkdir(parents=True, exist_ok=True)
        for name in names:
            part = raw / f"{name}.{os.getpid()}.part"
            with gzip.open(debian / f"{name}.gz") as source, part.open("wb") as target:
                shutil.copyfileobj(source, target)
            part.replace(raw / name)
        return root
    if _is_offline():
        raise XCiTError(_missing(root, "this machine is set to be offline"))
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise XCiTError(_missing(root, str(error))) from None
    return root


def open_fashion_mnist(split: Split) -> "FashionMNIST":
    """Returns Fashion-MNIST's 60,000 training images (for "train") or its 10,000 test images (for "val").

    Raises:
        XCiTError: as in `fashion_mnist_root`.
    """
    from torchvision.datasets import FashionMNIST

    return FashionMNIST(str(fashion_mnist_root()), train=split == "train")


def _missing(root: Path, reason: str) -> str:
    return (
        f"Fashion-MNIST is not on this machine and could not be downloaded ({reason}); install Debian's package "
        f"dataset-fashion-mnist, or put its four IDX files, decompressed, into {root / 'FashionMNIST' / 'raw'}"
    )


def open_cifar(name: str, split: Split) -> "CIFAR10":
    """Opens the data set "cifar10" or "cifar100".

    The files are read from the folder `data_dir()`. If they are missing there, they are unpacked from the published
    archive in the same folder, or downloaded.

    The files are pickles, which can run any code. So torchvision compares the MD5 sum of each file with the published
    sum before it opens the file. The MD5 sum of the archive is checked in the same way.

    Raises:
        XCiTError: if the published files are not on the machine and can't be downloaded.
    """
    from filelock import FileLock
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    root, is_train = data_dir(), split == "train"
    try:
        return kind(str(root), train=is_train)
    except RuntimeError:
        pass  # the files are missing, or are not the published files
    archive = root / kind.filename
    has_archive = check_integrity(archive, kind.tgz_md5)
    found = f"{archive} is not the published archive" if archive.is_file() and not has_archive else ""
    if not has_archive and _is_offline():
        raise XCiTError(_missing_cifar(name, archive, found or "this machine is set to be offline"))
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{archive}.lock"):  # only one process per machine unpacks the archive
            return kind(str(root), train=is_train, download=True)
    except (OSError, RuntimeError) as error:
        raise XCiTError(_missing_cifar(name, archive, found or " ".join(str(error).split()))) from None


def _is_offline() -> bool:
    return bool(os.environ.get("HF_HUB_OFFLINE") or os.environ.get("XCIT_OFFLINE"))


def _missing_cifar(name: str, archive: Path, reason: str) -> str:
    return (
        f"{name} is not on this machine and could not be downloaded ({reason}); "
        f"put the published {archive.name} into {archive.parent}"
    )
