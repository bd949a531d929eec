import errno
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from xcit.errors import XCiTError
from xcit.training.engine.checkpoint import keep_checkpoint, load_checkpoint, save_checkpoint

FullDisk = Callable[[int], AbstractContextManager[None]]

STATE = {"model": {"weight": torch.arange(6.0).reshape(2, 3)}, "optimizer": {"lr": 0.1}, "ema": None, "epoch": 3}


class BreaksOff:
    """Interrupts the writing in the middle."""

    def __reduce__(self) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def assert_is_state(path: Path) -> None:
    state = load_checkpoint(path)
    assert state.keys() == STATE.keys()
    assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])  # type: ignore[index]
    assert (state["optimizer"], state["ema"], state["epoch"]) == ({"lr": 0.1}, None, 3)


def test_comes_back_and_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint({"optimizer": {}, "epoch": 2}, path)
    save_checkpoint(STATE, path)
    assert_is_state(path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_an_error_while_writing_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(STATE, path)
    with pytest.raises(XCiTError, match=r"last\.pt: can't be written: .*No space left.*previous checkpoint is kept"):
        save_checkpoint({**STATE, "model": {"weight": torch.zeros(1000)}, "more": BreaksOff()}, path)
    assert_is_state(path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, full_disk: FullDisk) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(STATE, path)
    with (
        full_disk(100_000),
        pytest.raises(XCiTError, match=r"last\.pt: can't be written: .*; the previous checkpoint is kept"),
    ):
        save_checkpoint({**STATE, "model": {"weight": torch.zeros(100_000)}}, path)
    assert_is_state(path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_checkpoint_has_a_second_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(STATE, tmp_path / "last.pt")
    keep_checkpoint(tmp_path / "last.pt", "best.pt")
    assert (tmp_path / "best.pt").samefile(tmp_path / "last.pt")
    monkeypatch.delattr(os, "link")
    monkeypatch.setattr(os, "link", no_links, raising=False)
    keep_checkpoint(tmp_path / "last.pt", "best.pt")
    assert not (tmp_path / "best.pt").samefile(tmp_path / "last.pt")
    save_checkpoint({"optimizer": {}}, tmp_path / "last.pt")
    assert_is_state(tmp_path / "best.pt")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.pt", "last.pt"]


def no_links(*_: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match=r"gone/last\.pt: can't be written: .*No such file"):
        save_checkpoint(STATE, tmp_path / "gone" / "last.pt")


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, marker = tmp_path / "last.pt", tmp_path / "run"
    torch.save({**STATE, "more": Hostile(marker)}, path)
    with pytest.raises(
        XCiTError, match=r"last\.pt: not a checkpoint of a run, or damaged; no code from the file was executed"
    ) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(pickle.dumps({**STATE, "more": Hostile(marker)}, protocol=2))
    with pytest.raises(XCiTError, match="not a checkpoint of a run"):
        load_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("what", ["empty", "cut", "text", "zip", "pickle", "tensor", "weights"])
def test_what_is_no_checkpoint_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(STATE, path)
    good = path.read_bytes()
    if what == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "hello")
    elif what in ("tensor", "weights"):
        torch.save(torch.zeros(3) if what == "tensor" else {"weight": torch.zeros(3)}, path)
    else:
        contents = {"empty": b"", "cut": good[: len(good) // 2], "text": b"hello", "pickle": b"\x80\x02garbage."}
        path.write_bytes(contents[what])
    with pytest.raises(XCiTError, match=r"last\.pt: not a checkpoint of a run") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match=r"last\.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "last.pt")
