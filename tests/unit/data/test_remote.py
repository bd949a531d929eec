"""Tests that a broken connection is resumed where it broke, and that a refusal by the server is final."""

import http.server
import io
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from fsspec import AbstractFileSystem

from xcit.data.remote import open_url, read_url
from xcit.errors import XCiTError

DATA = bytes(range(256)) * 40_000
CUT = 3_000_000


class Flaky(http.server.BaseHTTPRequestHandler):
    """A server that closes the connection after CUT bytes of each answer; tests set its features and versions."""

    protocol_version = "HTTP/1.0"
    knows_ranges = True
    versions: ClassVar[list[str]] = []
    asked: ClassVar[list[str | None]] = []

    def __init__(self, *arguments: Any, directory: str) -> None:
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.knows_ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
        self.send_header("Content-Length", str(len(DATA) - start))
        self.send_header("ETag", self.versions.pop(0) if self.versions else '"1"')
        self.end_headers()
        end = start + CUT if self.knows_ranges or len(self.asked) == 1 else len(DATA)
        self.wfile.write(DATA[start:end])


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_connection_is_taken_up_again(tmp_path: Path, serve: Any, knows_ranges: bool) -> None:
    handler: Any = type("Handler", (Flaky,), {"asked": [], "knows_ranges": knows_ranges})
    with open_url(serve(tmp_path, handler)) as file:
        assert file.read() == DATA
    places = [int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0 for asked in handler.asked]
    assert len(places) == (4 if knows_ranges else 2)
    # The download resumes a few bytes before the break: the HTTP library drops the last bytes of a broken answer.
    assert all(CUT - 1_000_000 < new - old <= CUT for old, new in pairwise(places))


def test_another_file_is_not_spliced_in(tmp_path: Path, serve: Any) -> None:
    handler: Any = type("Handler", (Flaky,), {"asked": [], "versions": ['"1"', '"2"']})
    with open_url(serve(tmp_path, handler)) as file, pytest.raises(XCiTError, match="the file has changed"):
        file.read()


def test_the_last_try_says_what_was_wrong(tmp_path: Path, serve: Any) -> None:
    handler: Any = type("Handler", (Flaky,), {"asked": []})
    url = serve(tmp_path, handler)
    with pytest.raises(XCiTError) as caught, open_url(url, waits=()) as file:
        file.read()
    assert str(caught.value).startswith(f"{url}: cannot be read (Response payload is not completed")


def test_the_servers_no_is_final(tmp_path: Path, serve: Any) -> None:
    (tmp_path / "small.txt").write_bytes(b"hello")
    url = serve(tmp_path)
    assert read_url(f"{url}/small.txt") == b"hello"
    assert read_url(f"{url}/missing.txt") is None
    with pytest.raises(XCiTError, match=r"missing.txt: cannot be read \(HTTP 404\)"):
        open_url(f"{url}/missing.txt")


def test_nobody_there() -> None:
    with pytest.raises(XCiTError, match=r"^http://127.0.0.1:9/a: cannot be read \(.*refused\)$"):
        read_url("http://127.0.0.1:9/a")


def test_files_of_other_protocols(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(DATA)
    with open_url(f"file://{path}") as file:
        assert file.read() == DATA
    assert read_url(f"file://{tmp_path}/missing") is None
    with pytest.raises(XCiTError) as caught:
        open_url(f"file://{tmp_path}/missing")
    assert str(caught.value) == f"file://{tmp_path}/missing: cannot be read (No such file or directory)"


class Breaking(AbstractFileSystem):
    """Files that return CUT bytes and then raise an error. If `changes` is set, each opening gives a new version."""

    protocol = "breaking"
    cachable = False
    changes = False
    num_opened = 0

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(DATA), "type": "file", "version": self.num_opened if self.changes else 0}

    def open(self, *_: Any, **__: Any) -> Any:
        type(self).num_opened += 1
        file, left = io.BytesIO(DATA), [CUT]

        def read(size: int) -> bytes:
            if not left[0]:
                raise RuntimeError("the library's own error,\nin two lines")
            chunk = file.read(min(size, left[0]))
            left[0] -= len(chunk)
            return chunk

        return SimpleNamespace(read=read, seek=file.seek, close=file.close)


@pytest.mark.parametrize("changes", [False, True])
def test_another_librarys_connection_is_taken_up_again(monkeypatch: pytest.MonkeyPatch, changes: bool) -> None:
    kind: Any = type("Kind", (Breaking,), {"num_opened": 0, "changes": changes})
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "breaking", kind)
    with open_url("breaking://a", waits=(0,)) as file:
        if changes:
            with pytest.raises(XCiTError, match="the file has changed"):
                file.read()
            return
        assert file.read() == DATA
    assert kind.num_opened == 4
    with pytest.raises(XCiTError, match=r"^breaking://a: cannot be read \(the library's own error, in two lines\)$"):
        read_url("breaking://a")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("s3fs", "aiohttp"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    for url, line in (
        ("s3://bucket/a.tar", "s3://bucket/a.tar: cannot be read: Install s3fs to access S3"),
        ("https://a.b/c", "https://a.b/c: cannot be read: .*aiohttp.* \\(pip install 'xcit\\[train\\]'\\)"),
        ("nothing://a", "nothing://a: cannot be read: Protocol not known: nothing"),
    ):
        with pytest.raises(XCiTError, match=f"^{line}$"):
            open_url(url)
