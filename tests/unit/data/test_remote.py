"""A connection that breaks off is taken up again where it broke; the server's own no is final."""

import http.server
from pathlib import Path
from typing import Any, ClassVar

import pytest

from xcit.data.remote import open_url, read_url
from xcit.errors import XCiTError

DATA = bytes(range(256)) * 4000


class Flaky(http.server.BaseHTTPRequestHandler):
    """Breaks off after 300,000 bytes of each answer; what it understands and says is set by each test."""

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
        end = start + 300_000 if self.knows_ranges or len(self.asked) == 1 else len(DATA)
        self.wfile.write(DATA[start:end])


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_connection_is_taken_up_again(tmp_path: Path, serve: Any, knows_ranges: bool) -> None:
    handler: Any = type("Handler", (Flaky,), {"asked": [], "knows_ranges": knows_ranges})
    with open_url(serve(tmp_path, handler)) as file:
        assert file.read() == DATA
    assert handler.asked[:2] == [None, "bytes=300000-"]
    assert len(handler.asked) == (4 if knows_ranges else 2)


def test_another_file_is_not_spliced_in(tmp_path: Path, serve: Any) -> None:
    handler: Any = type("Handler", (Flaky,), {"asked": [], "versions": ['"1"', '"2"']})
    with open_url(serve(tmp_path, handler)) as file, pytest.raises(XCiTError, match="the file has changed"):
        file.read()


def test_the_last_try_says_what_was_wrong(tmp_path: Path, serve: Any) -> None:
    handler: Any = type("Handler", (Flaky,), {"asked": []})
    url = serve(tmp_path, handler)
    with pytest.raises(XCiTError) as caught, open_url(url, waits=()) as file:
        file.read()
    assert str(caught.value) == f"{url}: cannot be read (the connection closed after 300,000 of 1,024,000 bytes)"


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
