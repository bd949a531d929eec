"""Tests images from URLs, from standard input, from bytes and from open files."""

import io
import sys
import threading
import urllib.request
import urllib.response
from collections.abc import Iterator
from email.message import Message
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xcit.errors import XCiTError
from xcit.images.find import find_images
from xcit.images.read import read_image
from xcit.images.sources import as_url
from xcit.inference.reading import Unreadable, listed, read_ahead

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Image.fromarray(PICTURE).save(tmp_path / "a b.png")
    return tmp_path / "a b.png"


@pytest.fixture
def site(file: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(file.parent))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def give_standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_every_source_gives_the_same_picture(file: Path, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    give_standard_input(monkeypatch, file.read_bytes())
    sources: list[Any] = [
        f"{site}/a%20b.png",
        f"{site}/a%20b.png?size=full",
        Path(f"{site}/a%20b.png"),
        file.as_uri(),
        Path(file.as_uri()),
        "-",
        file.read_bytes(),
        bytearray(file.read_bytes()),
        io.BytesIO(file.read_bytes()),
    ]
    import fsspec

    with fsspec.open("memory://folder/a.png", "wb") as target:
        target.write(file.read_bytes())
    sources.append("memory://folder/a.png")
    for source in sources:
        assert (np.asarray(read_image(source)) == PICTURE).all()
    with file.open("rb") as opened:
        assert (np.asarray(read_image(opened)) == PICTURE).all()


def test_what_can_t_be_had_is_named(file: Path, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    give_standard_input(monkeypatch, b"")
    for source, message in (
        (f"{site}/none.png", f"{site}/none.png: the server answered 404"),
        (Path(f"{site}/none.png"), f"{site}/none.png: the server answered 404"),
        ("http://127.0.0.1:9/a.png", "http://127.0.0.1:9/a.png: cannot be fetched ("),
        ("nothing://a.png", "nothing://a.png: cannot be fetched (Protocol not known: nothing"),
        ((file.parent / "none.png").as_uri(), f"{(file.parent / 'none.png').as_uri()}: No such file"),
        ("-", "standard input: the file is empty (0 bytes)"),
        (b"", "image bytes: the file is empty (0 bytes)"),
        (b"<html>", "image bytes: not an image that can be read (it looks like an HTML page)"),
        (io.BytesIO(b"text"), "open image file: not an image that can be read"),
        (io.StringIO("text"), "open image file: the file is open for text; open it for bytes, with mode 'rb'"),
    ):
        with pytest.raises(XCiTError) as error:
            read_image(source)  # type: ignore[arg-type]
        assert str(error.value).startswith(message)
    with file.open("rb") as opened:
        pass
    with pytest.raises(XCiTError, match=r"a b\.png: cannot be read \(read of closed file\)"):
        read_image(opened)


def test_no_redirect_leaves_encryption(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(self: object, request: urllib.request.Request) -> urllib.response.addinfourl:
        headers = Message()
        headers["Location"] = "http://host/b.png"
        found = urllib.response.addinfourl(io.BytesIO(), headers, request.full_url, 302)
        found.msg = ""  # type: ignore[attr-defined]
        return found

    monkeypatch.setattr("xcit.connections._Connecting.https_open", moved)
    with pytest.raises(XCiTError) as caught:
        read_image("https://host/a.png")
    assert str(caught.value) == (
        "https://host/a.png: cannot be fetched (refused, it redirects from https to http://host/b.png)"
    )


def test_many_are_found_and_read(file: Path, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    give_standard_input(monkeypatch, file.read_bytes())
    found = find_images([f"{site}/a%20b.png", "-", str(file.parent), f"{site}/none?a=[1]"])
    results = list(read_ahead(found, np.asarray, num_ahead=3))
    assert [result[0] for result in results if not isinstance(result, Unreadable)] == [
        f"{site}/a%20b.png",
        "-",
        str(file),
    ]
    assert [result.source for result in results if isinstance(result, Unreadable)] == [f"{site}/none?a=[1]"]
    data, opened = file.read_bytes(), io.BytesIO(b"")
    assert listed(data) == [data]
    assert listed(opened) == [opened]
    assert listed([data, opened]) == [data, opened]


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("https://a.b/c//d.png", "https://a.b/c//d.png"),
        ("https:/a.b/c.png", "https://a.b/c.png"),
        ("S3://bucket/a", "s3://bucket/a"),
        ("file:///a/b", "file:///a/b"),
        ("file:/a/b", "file:///a/b"),
        ("C:/a/b", None),
        ("/a/b:/c", None),
        ("a.png", None),
        ("a:b/c", None),
        ("-", None),
    ],
)
def test_urls_are_told_from_paths(path: str, url: str | None) -> None:
    assert as_url(path) == url
