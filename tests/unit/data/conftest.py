"""Fixtures for the tests of streams: small shards, and a local server that serves them."""

import functools
import http.server
import io
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from PIL import Image

Write = Callable[[Path, Mapping[str, bytes]], Path]


@pytest.fixture(scope="session")
def png() -> Callable[[int], bytes]:
    """Returns a function that encodes a picture of one grey level as PNG."""

    def encode(grey: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (5, 4), (grey, grey, grey)).save(file, "PNG")
        return file.getvalue()

    return encode


@pytest.fixture(scope="session")
def write_tar() -> Write:
    """Writes a tar file with files by name."""

    def write(path: Path, files: Mapping[str, bytes]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = "w:gz" if path.suffix in (".gz", ".tgz") else "w"
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return path

    return write


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Yields a function that serves a folder over HTTP, by default with a plain handler, and returns the URL."""
    servers = []

    def start(folder: Path, handler: type[http.server.SimpleHTTPRequestHandler] = _Handler) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
