"""Data sets that are known by name: found on the machine, else downloaded where there is a network."""

import gzip
import os
import shutil
from pathlib import Path

from xcit.errors import XCiTError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts the four IDX files, gzipped."""

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
    """Where named data sets are kept: XCIT_DATA, else beside the user's other caches."""
    if "XCIT_DATA" in os.environ:
        return Path(os.environ["XCIT_DATA"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "xcit" / "data"


def fashion_mnist_root(debian: Path = DEBIAN_FASHION_MNIST) -> Path:
    """The folder that torchvision's FashionMNIST reads, filled from Debian's package or by torchvision's downloader.

    Raises:
        XCiTError: if the data are on the machine in neither form and can't be downloaded.
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
    if os.environ.get("HF_HUB_OFFLINE") or os.environ.get("XCIT_OFFLINE"):
        raise XCiTError(_missing(root, "this machine is set to be offline"))
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise XCiTError(_missing(root, str(error))) from None
    return root


def _missing(root: Path, reason: str) -> str:
    return (
        f"Fashion-MNIST is not on this machine and could not be downloaded ({reason}); install Debian's package "
        f"dataset-fashion-mnist, or put its four IDX files, gunzipped, into {root / 'FashionMNIST' / 'raw'}"
    )
