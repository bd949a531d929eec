"""Fixtures for all tests: no network, a separate cache for the session, and Fashion-MNIST if this machine has it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from xcit.data.named import fashion_mnist_root
from xcit.errors import XCiTError


@pytest.fixture(autouse=True, scope="session")
def _nothing_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("session")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("XCIT_CACHE", str(folder))
        patch.delenv("XCIT_MIRROR", raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Disables `os.fsync`, which takes about 10 ms per file; files of tests need not survive a power failure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session")
def fashion_mnist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Sets XCIT_DATA to a folder with Fashion-MNIST: the user's folder, or one with the files of Debian's package.

    If Fashion-MNIST is in neither, the test is skipped, or fails if XCIT_REQUIRE_FASHION_MNIST is set. Nothing is
    downloaded.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not (Path(os.environ.get("XCIT_DATA", "")) / "FashionMNIST" / "raw").is_dir():
            patch.setenv("XCIT_DATA", str(tmp_path_factory.mktemp("data")))
        try:
            root = fashion_mnist_root()
        except XCiTError as error:
            if os.environ.get("XCIT_REQUIRE_FASHION_MNIST"):
                pytest.fail(str(error))
            pytest.skip(str(error))
        yield root
