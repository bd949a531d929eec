"""Tests that results are written completely or not at all, through links, and to devices without replacing them."""

import os
import stat
import threading
from pathlib import Path

import pytest

from xcit.errors import XCiTError
from xcit.writing import is_stream, whole_file, whole_folder

needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root makes devices")


def write(path: Path, text: str) -> None:
    with whole_file(path) as part:
        part.write_text(text)


def test_a_file_is_replaced_at_the_end_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write(path, "first")
    with whole_file(path) as part:
        part.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mistake", [XCiTError, KeyError, KeyboardInterrupt])
def test_a_failure_leaves_the_earlier_file(tmp_path: Path, mistake: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    write(path, "first")

    def fail() -> None:
        with whole_file(path) as part:
            part.write_text("half")
            raise mistake

    with pytest.raises(mistake):
        fail()
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_body_that_removes_its_file_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write(path, "first")
    with whole_file(path) as part:
        part.unlink()
    assert path.read_text() == "first"


def test_nobodys_file_is_taken_for_the_temporary_one(tmp_path: Path) -> None:
    for name in ("a.txt.part", "a.txt.tmp"):
        (tmp_path / name).write_text("mine")
    write(tmp_path / "a.txt", "text")
    assert [(tmp_path / name).read_text() for name in ("a.txt.part", "a.txt.tmp")] == ["mine", "mine"]


def test_the_mode_is_what_a_new_file_has(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with whole_file(tmp_path / "a") as part:
        part.unlink()
        part.touch(mode=0o600)  # as safetensors does
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("there", [True, False])
def test_of_a_link_the_target_is_replaced(tmp_path: Path, there: bool) -> None:
    target, first, second = tmp_path / "elsewhere" / "a.txt", tmp_path / "first", tmp_path / "second"
    target.parent.mkdir()
    if there:
        target.write_text("first")
    first.symlink_to("elsewhere/a.txt")
    second.symlink_to(first)
    write(second, "second")
    assert target.read_text() == "second"
    assert not target.is_symlink() and first.is_symlink() and second.is_symlink()
    assert list(target.parent.iterdir()) == [target]


def test_a_ring_of_links_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(XCiTError, match=r"a: can't be written: "):
        write(tmp_path / "a", "text")
    assert (tmp_path / "a").is_symlink() and (tmp_path / "b").is_symlink()


def test_a_pipe_gets_the_bytes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(pipe, "text")
    reader.join()
    assert read == ["text"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@needs_root
@pytest.mark.parametrize("linked", [False, True])
def test_a_device_stays_a_device(tmp_path: Path, linked: bool) -> None:
    """Creates a device node with the device numbers of /dev/null, because root could replace /dev/null by a file."""
    null = tmp_path / "null"
    try:
        os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        null.write_text("")
    except OSError as error:
        pytest.skip(f"devices can't be made or used here: {error}")
    path = null
    if linked:
        path = tmp_path / "link"
        path.symlink_to(null)
    write(path, "text")
    with pytest.raises(KeyError), whole_file(path):
        raise KeyError
    assert stat.S_ISCHR(null.stat().st_mode)
    assert null.read_bytes() == b""


def test_what_a_descriptor_is_open_on_is_written_into(tmp_path: Path) -> None:
    """With `--csv /dev/stdout > file`, the file that the shell has opened must not be replaced."""
    path = tmp_path / "a.txt"
    with path.open("w") as file:
        own = Path(f"/proc/self/fd/{file.fileno()}")
        if not own.exists():
            pytest.skip("no /proc here")
        inode = path.stat().st_ino
        assert is_stream(own)
        write(own, "text")
    assert path.read_text() == "text"
    assert path.stat().st_ino == inode


def test_what_can_t_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, reason in (("nowhere/a", "No such file"), ("file/a", "Not a directory"), (".", "Is a directory")):
        with pytest.raises(XCiTError, match=rf"can't be written: {reason}"), whole_file(tmp_path / place):
            pytest.fail("the work began")


def fill(folder: Path, *, fails: bool = False) -> None:
    with whole_folder(folder) as part:
        (part / "sub").mkdir()
        (part / "sub" / "a.txt").write_text("text")
        if fails:
            raise KeyError


@pytest.mark.parametrize("there", [True, False])
def test_a_failed_folder_does_not_block_its_retry(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "above" / "data"
    if there:
        folder.mkdir(parents=True)
    with pytest.raises(KeyError):
        fill(folder, fails=True)
    assert folder.exists() == there
    (folder / ".xcit-0123456789abcdef.tmp").mkdir(parents=True)  # left by a killed process
    fill(folder)
    assert (folder / "sub" / "a.txt").read_text() == "text"
    with pytest.raises(XCiTError, match=r"data already exists: choose another folder, or remove it"):
        fill(folder)


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    with pytest.raises(XCiTError, match="already exists"):
        fill(tmp_path / "data")
    assert (tmp_path / "data").read_text() == "mine"
