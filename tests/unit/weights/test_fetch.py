"""Tests downloads and their sources against a real HTTP server on this machine."""

import contextlib
import hashlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import urllib.response
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from xcit.errors import XCiTError
from xcit.weights.download import DownloadError, download
from xcit.weights.fetch import FetchError, Source, cache_dir, obtain

BODY = bytes(range(256)) * 2000  # 512,000 bytes
OTHER = BODY[::-1]
COMMIT = "c" * 40
CLOSED = "http://127.0.0.1:9"  # the discard service, which nobody runs


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@dataclass
class File:
    body: bytes = BODY
    etag: str | None = '"1"'
    ranges: bool = True
    compares: bool = True  # obeys If-Range
    status: int = 200
    cuts: list[int] = field(default_factory=list)  # numbers of bytes after which the next answers break off
    pause: threading.Event | None = None  # the answer waits in its middle until this is set
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    num_bytes: int = 0

    @property
    def range(self) -> str | None:
        return self.headers.get("Range")


class Site(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, File] = {}
        self.requests: list[Request] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, path: str, file: File) -> str:
        self.files[f"/{path}"] = file
        return f"{self.url}/{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # ignored: in these tests, clients close connections early


class Handler(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        request = Request(self.command, self.path, dict(self.headers))
        self.server.requests.append(request)
        file = self.server.files.get(self.path)
        if file is None or file.status >= 300:
            request.status = file.status if file else 404
            self.send_response(request.status)
            for key, value in (file.headers if file else {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(request.range.removeprefix("bytes=").removesuffix("-")) if request.range and file.ranges else 0
        if file.compares and request.headers.get("If-Range") != file.etag:
            start = 0
        total = len(file.body)
        request.status = 416 if start >= total else 206 if start else 200
        body = b"" if request.status == 416 else file.body[start:]
        self.send_response(request.status)
        if request.status == 416:
            self.send_header("Content-Range", f"bytes */{total}")
        elif start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if file.etag:
            self.send_header("ETag", file.etag)
        for key, value in file.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not with_body:
            return
        if file.cuts:
            body = body[: file.cuts.pop(0)]
        request.num_bytes = len(body)  # set before sending, because the client may end first
        half = len(body) // 2
        self.wfile.write(body[:half])
        self.wfile.flush()
        if file.pause is not None:
            assert file.pause.wait(60)
        self.wfile.write(body[half:])


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        for file in server.files.values():
            if file.pause is not None:
                file.pause.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hides this machine's settings, home folder, Hub cache and network from every test."""
    from huggingface_hub import constants

    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("XCIT_", "HF_", "TRANSFORMERS_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the client read the environment at import
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # else the client contacts its own host


def names(folder: Path) -> set[str]:
    """Returns the names in a folder, without lock files."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


# ---- download


def test_download_whole_file(site: Site, tmp_path: Path) -> None:
    url = site.add("a%20file.pth?download=1", File())
    seen: list[tuple[str, int, int | None]] = []
    target = tmp_path / "deep" / "a.pth"
    path = download(url, target, sha256=digest(BODY)[:8].upper(), progress=lambda *step: seen.append(step))
    assert path == target and path.read_bytes() == BODY
    assert names(target.parent) == {"a.pth"}
    assert {(what, total) for what, _, total in seen} == {("a file.pth", len(BODY))}
    counts = [done for _, done, _ in seen]
    assert counts[0] == 0 and counts[-1] == len(BODY) and counts == sorted(counts)


def test_download_keeps_a_finished_file(site: Site, tmp_path: Path) -> None:
    url = site.add("a.pth", File())
    target = tmp_path / "a.pth"
    target.write_bytes(BODY)
    assert download(url, target, sha256=digest(BODY)) == target
    assert download(url, target) == target
    assert site.requests == []


def test_download_replaces_a_finished_file_that_is_wrong(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "a.pth"
    target.write_bytes(OTHER)
    assert download(site.add("a.pth", File()), target, sha256=digest(BODY)).read_bytes() == BODY


def test_download_from_file_url(tmp_path: Path) -> None:
    origin = tmp_path / "origin.pth"
    origin.write_bytes(BODY)
    assert download(origin.as_uri(), tmp_path / "copy.pth", sha256=digest(BODY)).read_bytes() == BODY
    with pytest.raises(XCiTError, match="No such file"):
        download((tmp_path / "gone.pth").as_uri(), tmp_path / "other.pth")


@pytest.mark.parametrize("url", ["ftp://host/a.pth", "a.pth", "data:,a"])
def test_download_knows_three_schemes(url: str, tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match=r"only http, https and file URLs"):
        download(url, tmp_path / "a.pth")


def stop_halfway(what: str, done: int, total: int | None) -> None:
    assert total == len(BODY)
    if done > total // 2:
        raise KeyboardInterrupt


def interrupt(url: str, target: Path) -> int:
    """Interrupts a download as Ctrl-C does; returns the size of the partial file in bytes."""
    with pytest.raises(KeyboardInterrupt):
        download(url, target, progress=stop_halfway)
    assert not target.exists()
    size = target.with_name(f"{target.name}.part").stat().st_size
    assert len(BODY) // 2 < size < len(BODY)
    return size


def test_interrupted_download_resumes(site: Site, tmp_path: Path) -> None:
    # The first answer is cut, so that the server can't send the whole file before the client stops.
    url = site.add("a.pth", File(cuts=[300_000]))
    target = tmp_path / "a.pth"
    size = interrupt(url, target)
    steps: list[int] = []
    download(url, target, sha256=digest(BODY), progress=lambda what, done, total: steps.append(done))
    assert target.read_bytes() == BODY and names(tmp_path) == {"a.pth"}
    assert [request.range for request in site.requests] == [None, f"bytes={size}-"]
    assert site.requests[1].status == 206 and site.requests[1].num_bytes == len(BODY) - size
    assert steps[0] == size and steps[-1] == len(BODY)


SCRIPT = """
import sys
from pathlib import Path
from xcit.weights.download import download
assert "torch" not in sys.modules and "huggingface_hub" not in sys.modules
print("started", flush=True)
print(download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3]).stat().st_size, flush=True)
"""


@contextlib.contextmanager
def process(url: str, target: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, url, str(target), digest(BODY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "started\n"
        yield child
        child.kill()


def wait_for(path: Path, num_bytes: int) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size >= num_bytes):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_killed_download_resumes(site: Site, tmp_path: Path) -> None:
    # The half before the pause is longer than the file buffer, so that a part of it is on the disk.
    file = File(pause=threading.Event())
    url = site.add("a.pth", file)
    target = tmp_path / "a.pth"
    with process(url, target) as child:
        wait_for(tmp_path / "a.pth.part", 200_000)
        child.send_signal(signal.SIGKILL)
    assert not target.exists()
    assert file.pause is not None
    file.pause.set()
    size = (tmp_path / "a.pth.part").stat().st_size
    assert download(url, target, sha256=digest(BODY)).read_bytes() == BODY
    assert site.requests[1].range == f"bytes={size}-"


def test_two_processes_at_once_download_once(site: Site, tmp_path: Path) -> None:
    file = File(pause=threading.Event())
    url = site.add("a.pth", file)
    target = tmp_path / "a.pth"
    with process(url, target) as first, process(url, target) as second:
        wait_for(tmp_path / "a.pth.part", 200_000)
        assert file.pause is not None
        file.pause.set()
        for child in (first, second):
            assert child.communicate(timeout=60) == (f"{len(BODY)}\n", "")
            assert child.returncode == 0
    assert target.read_bytes() == BODY
    assert [request.num_bytes for request in site.requests] == [len(BODY)]


@pytest.mark.parametrize("compares", [True, False], ids=["if-range", "range-only"])
def test_changed_remote_file_restarts(site: Site, tmp_path: Path, compares: bool) -> None:
    url = site.add("a.pth", File(cuts=[300_000]))
    target = tmp_path / "a.pth"
    size = interrupt(url, target)
    site.add("a.pth", File(body=OTHER, etag='"2"', compares=compares))
    assert download(url, target).read_bytes() == OTHER
    asked = [request.range for request in site.requests]
    assert asked == [None, f"bytes={size}-"] + ([] if compares else [None])
    assert names(tmp_path) == {"a.pth"}


@pytest.mark.parametrize("file", [File(ranges=False), File(etag=None)], ids=["no-ranges", "no-version"])
def test_server_that_cannot_resume_restarts(site: Site, tmp_path: Path, file: File) -> None:
    file.cuts = [300_000]
    url = site.add("a.pth", file)
    target = tmp_path / "a.pth"
    interrupt(url, target)
    assert download(url, target, sha256=digest(BODY)).read_bytes() == BODY
    assert site.requests[1].status == 200 and site.requests[1].num_bytes == len(BODY)
    assert (site.requests[1].range is None) == (file.etag is None)


def test_last_modified_serves_where_the_etag_is_weak(site: Site, tmp_path: Path) -> None:
    date = "Tue, 14 Feb 2023 10:00:00 GMT"
    url = site.add("a.pth", File(etag='W/"1"', headers={"Last-Modified": date}, compares=False, cuts=[300_000]))
    size = interrupt(url, tmp_path / "a.pth")
    assert download(url, tmp_path / "a.pth").read_bytes() == BODY
    assert site.requests[1].headers["If-Range"] == date and site.requests[1].range == f"bytes={size}-"
    assert site.requests[1].status == 206


def test_part_of_another_url_is_not_resumed(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "a.pth"
    interrupt(site.add("a.pth", File(cuts=[300_000])), target)
    assert download(site.add("b.pth", File(body=OTHER)), target).read_bytes() == OTHER
    assert site.requests[1].range is None


def test_whole_part_is_only_moved(site: Site, tmp_path: Path) -> None:
    url = site.add("a.pth", File(cuts=[300_000]))
    target = tmp_path / "a.pth"
    interrupt(url, target)
    (tmp_path / "a.pth.part").write_bytes(BODY)
    assert download(url, target, sha256=digest(BODY)).read_bytes() == BODY
    assert site.requests[1].status == 416 and len(site.requests) == 2


def test_part_longer_than_the_file_restarts(site: Site, tmp_path: Path) -> None:
    url = site.add("a.pth", File(cuts=[300_000]))
    target = tmp_path / "a.pth"
    interrupt(url, target)
    (tmp_path / "a.pth.part").write_bytes(BODY + b"more")
    assert download(url, target).read_bytes() == BODY
    assert [request.status for request in site.requests] == [200, 416, 200]


def test_wrong_file_is_never_in_place(site: Site, tmp_path: Path) -> None:
    url = site.add("a.pth", File(body=OTHER))
    with pytest.raises(XCiTError) as caught:
        download(url, tmp_path / "a.pth", sha256="0123abcd")
    message = str(caught.value)
    assert message == f"{url}: wrong file, expected SHA-256 0123abcd, got {digest(OTHER)}"
    assert names(tmp_path) == set()


def test_truncated_transfer_is_resumed_once(site: Site, tmp_path: Path) -> None:
    url = site.add("a.pth", File(cuts=[100_000]))
    assert download(url, tmp_path / "a.pth", sha256=digest(BODY)).read_bytes() == BODY
    assert [request.range for request in site.requests] == [None, "bytes=100000-"]


def test_transfer_truncated_twice_fails_and_can_be_resumed(site: Site, tmp_path: Path) -> None:
    url = site.add("a.pth", File(cuts=[100_000, 50_000]))
    with pytest.raises(XCiTError) as caught:
        download(url, tmp_path / "a.pth")
    assert url in str(caught.value) and "150,000 of 512,000 bytes" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == {"a.pth.part", "a.pth.part.json"}
    assert download(url, tmp_path / "a.pth").read_bytes() == BODY
    assert site.requests[2].range == "bytes=150000-"


def test_stalled_transfer_is_resumed(site: Site, tmp_path: Path) -> None:
    stalled = File(pause=threading.Event())
    url = site.add("a.pth", stalled)

    def unblock_the_next(what: str, done: int, total: int | None) -> None:
        if done >= len(BODY) // 2:
            site.add("a.pth", File())

    assert download(url, tmp_path / "a.pth", timeout=0.5, progress=unblock_the_next).read_bytes() == BODY
    assert site.requests[1].range == f"bytes={len(BODY) // 2}-"
    assert stalled.pause is not None
    stalled.pause.set()


def test_server_that_never_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.pth"
        with pytest.raises(XCiTError, match=rf"^{re.escape(url)}: the server did not answer in time$"):
            download(url, tmp_path / "a.pth", timeout=0.2)


@pytest.mark.parametrize("status", [403, 404, 503])
def test_http_error_names_status_and_url(site: Site, tmp_path: Path, status: int) -> None:
    url = site.add("a.pth", File(status=status))
    with pytest.raises(XCiTError, match=rf"^{re.escape(url)}: HTTP {status} [^\n]+$"):
        download(url, tmp_path / "a.pth")
    assert names(tmp_path) == set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_full_disk(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.pth.part").symlink_to("/dev/full")
    url = site.add("a.pth", File())
    with pytest.raises(XCiTError) as caught:
        download(url, tmp_path / "a.pth")
    assert str(caught.value) == f"the disk is full: {url} needs 512,000 bytes in {tmp_path}"
    assert names(tmp_path) == set()


def test_folder_that_cannot_be_written(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    target = tmp_path / "file" / "a.pth"
    with pytest.raises(XCiTError, match=rf"^cannot write {re.escape(str(target))}: [^\n]+$"):
        download(site.add("a.pth", File()), target)


def test_proxy_of_the_environment_is_used(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://weights.invalid/a.pth"
    site.files[url] = File()
    monkeypatch.setenv("http_proxy", site.url)
    source = Source(kind="url", location=url, filename="a.pth")
    path, _ = obtain("a", [source], tmp_path)
    assert path.read_bytes() == BODY and site.requests[0].path == url

    monkeypatch.setenv("http_proxy", CLOSED)
    with pytest.raises(FetchError, match=r"cannot reach proxy 127\.0\.0\.1: Connection refused"):
        obtain("a", [source], tmp_path / "other")


@pytest.mark.parametrize(
    ("asked", "target", "refused"),
    [
        ("https://host/a.pth", "http://host/b.pth", True),
        ("https://host/a.pth", "ftp://host/b.pth", True),
        ("https://host/a.pth", "https://other/b.pth", False),
        ("http://host/a.pth", "https://host/b.pth", False),
        ("http://host/a.pth", "http://other/b.pth", False),
    ],
)
def test_no_redirect_leaves_encryption(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str, target: str, refused: bool
) -> None:
    """One redirect is enough for this test, because every redirect is checked in the same way."""

    def answer(self: object, request: urllib.request.Request) -> urllib.response.addinfourl:
        moved = request.full_url == asked
        headers = Message()
        if moved:
            headers["Location"] = target
        found = urllib.response.addinfourl(io.BytesIO(BODY), headers, request.full_url, 302 if moved else 200)
        found.msg = ""  # type: ignore[attr-defined]
        found.read1 = found.read  # type: ignore[attr-defined]
        return found

    for scheme in ("http", "https"):
        monkeypatch.setattr(f"xcit.connections._Connecting.{scheme}_open", answer)
    if refused:
        with pytest.raises(DownloadError) as caught:
            download(asked, tmp_path / "a.pth")
        assert str(caught.value) == f"{asked}: refused, it redirects from https to {target}"
        assert names(tmp_path) == set()
    else:
        assert download(asked, tmp_path / "a.pth").read_bytes() == BODY


# ---- sources


def url_source(url: str, sha256: str | None = None) -> Source:
    return Source(kind="url", location=url, filename=url.rpartition("/")[2], sha256=sha256)


def hub_source(sha256: str | None = None) -> Source:
    return Source(kind="huggingface", location="timm/xcit_nano.fb_in1k", filename="model.safetensors", sha256=sha256)


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_dir() == tmp_path / "home" / ".cache" / "xcit"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/xcit")
    monkeypatch.setenv("XCIT_CACHE", "~/own")
    assert cache_dir() == tmp_path / "home" / "own"


@pytest.mark.parametrize("filename", ["", ".", "..", "../a.pth", "/etc/a.pth", "a\\b.pth", "a/../b.pth"])
@pytest.mark.parametrize("kind", ["url", "huggingface"])
def test_source_refuses_names_that_leave_the_folder(kind: str, filename: str) -> None:
    with pytest.raises(XCiTError, match="is not a valid file name"):
        Source(kind=kind, location="http://host/a.pth", filename=filename)  # type: ignore[arg-type]


def test_source_refuses_a_folder_in_a_url_and_a_bad_digest() -> None:
    with pytest.raises(XCiTError, match="last part of the URL"):
        Source(kind="url", location="http://host/a/b.pth", filename="a/b.pth")
    with pytest.raises(XCiTError, match="is not a SHA-256"):
        hub_source("not-hex!")


def test_sources_are_tried_in_order(site: Site, tmp_path: Path) -> None:
    first = url_source(site.add("first.pth", File()))
    second = url_source(site.add("second.pth", File(body=OTHER)))
    path, source = obtain("a", [first, second], tmp_path)
    assert source == first and path.read_bytes() == BODY and path.name.endswith("-first.pth")
    assert [request.path for request in site.requests] == ["/first.pth"]


@pytest.mark.parametrize(
    "broken", [File(status=404), File(body=OTHER), File(cuts=[10, 10])], ids=["missing", "wrong", "truncated"]
)
def test_next_source_takes_over(site: Site, tmp_path: Path, broken: File) -> None:
    first = url_source(site.add("first.pth", broken), digest(BODY)[:8])
    second = url_source(site.add("second.pth", File()), digest(BODY)[:8])
    path, source = obtain("a", [first, second], tmp_path)
    assert source == second and path.read_bytes() == BODY


def test_same_file_name_on_two_sites_is_two_files(site: Site, tmp_path: Path) -> None:
    first, _ = obtain("a", [url_source(site.add("x/checkpoint.pth", File()))], tmp_path)
    second, _ = obtain("b", [url_source(site.add("y/checkpoint.pth", File(body=OTHER)))], tmp_path)
    assert first.read_bytes() == BODY and second.read_bytes() == OTHER


def test_file_of_an_earlier_download_needs_no_network(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = url_source(site.add("a.pth", File()), digest(BODY))
    path, _ = obtain("a", [source], tmp_path)
    monkeypatch.setenv("XCIT_OFFLINE", "1")
    assert obtain("a", [hub_source(), source], tmp_path) == (path, source)
    assert len(site.requests) == 1
    path.write_bytes(OTHER)
    with pytest.raises(FetchError):
        obtain("a", [source], tmp_path)


def test_every_source_failed_says_why_and_what_to_do(site: Site, tmp_path: Path) -> None:
    sources = [hub_source(), url_source(f"{site.url}/a.pth"), url_source(site.add("b.pth", File()), "00000000")]
    with pytest.raises(FetchError) as caught:
        obtain("xcit-nano", sources, tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "cannot get the weights of xcit-nano:"
    assert lines[1] == "  Hugging Face timm/xcit_nano.fb_in1k: cannot reach 127.0.0.1: Connection refused"
    assert lines[2].startswith(f"  {site.url}/a.pth: ") and "HTTP 404" in lines[2]
    assert lines[3].startswith(f"  {site.url}/b.pth: ") and "wrong file, expected SHA-256 00000000" in lines[3]
    assert len(lines) == 5
    for way_out in ("XCIT_MIRROR", "xcit fetch xcit-nano --to DIR", "pretrained=PATH"):
        assert way_out in lines[4]
    assert names(tmp_path) == set()


def test_url_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="not a valid URL"):
        obtain("a", [url_source("http://host:port/a.pth"), url_source("host/a.pth")], tmp_path)


# ---- mirrors


@pytest.mark.parametrize("as_url", [False, True], ids=["path", "file-url"])
def test_mirror_folder_is_used_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_url: bool) -> None:
    folder = tmp_path / "a mirror"
    (folder / "timm" / "xcit_nano.fb_in1k").mkdir(parents=True)
    monkeypatch.setenv("XCIT_MIRROR", folder.as_uri() if as_url else str(folder))
    monkeypatch.setenv("XCIT_OFFLINE", "1")
    hub, official = hub_source(digest(BODY)), url_source("http://host.invalid/official.pth", digest(BODY)[:8])
    expected: list[tuple[Path, Source | None]] = [
        (folder / "xcit-nano.safetensors", None),
        (folder / "xcit_nano.fb_in1k.safetensors", hub),
        (folder / "timm" / "xcit_nano.fb_in1k" / "model.safetensors", hub),
        (folder / "official.pth", official),
    ]
    for path, _ in expected:
        path.write_bytes(BODY)
    for path, source in expected:
        assert obtain("xcit-nano", [hub, official], tmp_path / "cache") == (path, source)
        path.unlink()
    assert not (tmp_path / "cache").exists()


def test_mirror_folder_with_a_wrong_file(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCIT_MIRROR", str(tmp_path))
    (tmp_path / "a.pth").write_bytes(OTHER)
    source = url_source(site.add("a.pth", File()), digest(BODY))
    path, _ = obtain("xcit-nano", [source], tmp_path / "cache")
    assert path.parent == tmp_path / "cache" and path.read_bytes() == BODY
    assert (tmp_path / "a.pth").read_bytes() == OTHER  # the user's file is not deleted

    monkeypatch.setenv("XCIT_OFFLINE", "1")
    with pytest.raises(FetchError, match=r"mirror \S+ \(XCIT_MIRROR\): a\.pth has the wrong SHA-256"):
        obtain("xcit-nano", [source], tmp_path / "empty")


def test_missing_mirror_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCIT_MIRROR", str(tmp_path / "gone"))
    with pytest.raises(
        FetchError, match=rf"mirror {re.escape(str(tmp_path / 'gone'))} \(XCIT_MIRROR\): no such folder"
    ):
        obtain("a", [], tmp_path)


def test_mirror_url(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCIT_MIRROR", f"{site.url}/mirror/")
    hub, official = hub_source(), url_source("http://127.0.0.1:9/official.pth", digest(BODY)[:8])
    site.add("mirror/official.pth", File())
    path, source = obtain("xcit-nano", [hub, official], tmp_path)
    assert source == official and path.read_bytes() == BODY and path.parent == tmp_path
    assert [request.path for request in site.requests] == [
        "/mirror/xcit-nano.safetensors",
        "/mirror/xcit_nano.fb_in1k.safetensors",
        "/mirror/timm/xcit_nano.fb_in1k/model.safetensors",
        "/mirror/official.pth",
    ]
    site.add("mirror/xcit-nano.safetensors", File(body=OTHER))
    path, source = obtain("xcit-nano", [hub], tmp_path)
    assert source is None and path.read_bytes() == OTHER


def test_mirror_url_without_the_file_gives_way_to_the_sources(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XCIT_MIRROR", f"{site.url}/mirror")
    site.add("mirror/a.pth", File(body=OTHER))
    source = url_source(site.add("a.pth", File()), digest(BODY))
    path, _ = obtain("xcit-nano", [source], tmp_path)
    assert path.read_bytes() == BODY

    site.files.clear()
    with pytest.raises(FetchError) as caught:
        obtain("xcit-nano", [source], tmp_path / "other")
    assert f"{site.url}/mirror (XCIT_MIRROR): has none of the files xcit-nano.safetensors, a.pth" in str(caught.value)


def test_mirror_url_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCIT_MIRROR", CLOSED)
    with pytest.raises(FetchError, match=r"\(XCIT_MIRROR\): cannot reach 127\.0\.0\.1: Connection refused"):
        obtain("a", [], tmp_path)


# ---- the Hub


def serve_hub(site: Site, monkeypatch: pytest.MonkeyPatch, body: bytes = BODY, etag: str | None = None) -> None:
    """Adds the Hub's two answers: a redirect with the file's metadata, and the file's bytes on another host."""
    monkeypatch.setenv("HF_ENDPOINT", site.url + "/")
    metadata = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{etag or digest(BODY)}"', "X-Linked-Size": str(len(BODY))}
    metadata["X-HF-Warning"] = "login; please log in"
    metadata["Location"] = f"http://localhost:{site.server_address[1]}/blob"
    for revision in ("main", COMMIT):
        path = f"timm/xcit_nano.fb_in1k/resolve/{revision}/model.safetensors"
        site.add(path, File(status=302, headers=metadata))
    site.add("blob", File(body=body))


@pytest.mark.parametrize("sha256", [None, digest(BODY)[:8]])
def test_hub(
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    sha256: str | None,
) -> None:
    serve_hub(site, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    steps: list[tuple[str, int, int | None]] = []
    source = hub_source(sha256)
    path, got = obtain("xcit-nano", [source], tmp_path, progress=lambda *step: steps.append(step))
    assert got == source and path.read_bytes() == BODY
    assert path == tmp_path / "timm--xcit_nano.fb_in1k--model.safetensors"
    assert steps[-1] == ("Hugging Face timm/xcit_nano.fb_in1k", len(BODY), len(BODY))
    assert [request.method for request in site.requests] == ["HEAD", "GET", "GET"]
    tokens = [{key.lower(): value for key, value in r.headers.items()}.get("authorization") for r in site.requests]
    assert tokens == ["Bearer hf_secret", "Bearer hf_secret", None]
    assert capfd.readouterr() == ("", "")


def test_hub_download_resumes(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_hub(site, monkeypatch)
    site.files["/blob"].cuts = [100_000]
    path, _ = obtain("xcit-nano", [hub_source()], tmp_path)
    assert path.read_bytes() == BODY
    assert [request.range for request in site.requests if request.path == "/blob"] == [None, "bytes=100000-"]


def test_hub_with_wrong_content_gives_way(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_hub(site, monkeypatch, body=OTHER)
    with pytest.raises(FetchError, match=f"wrong file, expected SHA-256 {digest(BODY)}, got {digest(OTHER)}"):
        obtain("xcit-nano", [hub_source()], tmp_path)
    assert names(tmp_path) == set()
    second = url_source(site.add("a.pth", File()))
    assert obtain("xcit-nano", [hub_source(), second], tmp_path)[1] == second


def test_hub_with_another_digest_than_published(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_hub(site, monkeypatch)
    with pytest.raises(FetchError, match=f"expected SHA-256 00000000, but the Hub has {digest(BODY)}"):
        obtain("xcit-nano", [hub_source("00000000")], tmp_path)
    assert [request.method for request in site.requests] == ["HEAD"]


def test_hub_file_with_a_git_hash_is_checked_against_the_source(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_hub(site, monkeypatch, etag="0" * 40)
    assert obtain("xcit-nano", [hub_source(digest(BODY))], tmp_path)[0].read_bytes() == BODY
    with pytest.raises(FetchError, match="wrong file, expected SHA-256 00000000"):
        obtain("xcit-nano", [hub_source("00000000")], tmp_path)


def test_hub_that_does_not_know_the_repository(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    with pytest.raises(FetchError, match=rf"Hugging Face timm/xcit_nano\.fb_in1k: HTTP 404 \({re.escape(site.url)}\)"):
        obtain("xcit-nano", [hub_source()], tmp_path)
    bad = Source(kind="huggingface", location="not a/repository/at all", filename="model.safetensors")
    with pytest.raises(FetchError, match="not a/repository/at all: "):
        obtain("xcit-nano", [bad], tmp_path)


def fill_hub_cache(body: bytes, etag: str) -> Path:
    """Writes a file in the cache layout of the Hub's client, which timm also uses; returns its path."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / "models--timm--xcit_nano.fb_in1k"
    snapshot = folder / "snapshots" / COMMIT / "model.safetensors"
    for parent in (folder / "blobs", folder / "refs", snapshot.parent):
        parent.mkdir(parents=True, exist_ok=True)
    (folder / "blobs" / etag).write_bytes(body)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot.symlink_to(Path("..", "..", "blobs", etag))
    return snapshot


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "XCIT_OFFLINE", "TRANSFORMERS_OFFLINE", None])
def test_hub_cache_of_this_machine_is_used_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str | None
) -> None:
    if switch:
        monkeypatch.setenv(switch, "yes")
    snapshot = fill_hub_cache(BODY, digest(BODY))
    assert obtain("xcit-nano", [hub_source()], tmp_path / "cache") == (snapshot, hub_source())
    with pytest.raises(FetchError):
        obtain("xcit-nano", [hub_source("00000000")], tmp_path / "cache")


def test_damaged_hub_cache_is_not_used(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = fill_hub_cache(OTHER, digest(BODY))
    serve_hub(site, monkeypatch)
    path, _ = obtain("xcit-nano", [hub_source()], tmp_path)
    assert path != snapshot and path.read_bytes() == BODY


# ---- without a network


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "XCIT_OFFLINE"])
def test_offline_switch_asks_nobody(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str, value: str
) -> None:
    serve_hub(site, monkeypatch)
    monkeypatch.setenv(switch, value)
    monkeypatch.setenv("XCIT_MIRROR", site.url)
    source = url_source(site.add("a.pth", File()))
    with pytest.raises(FetchError) as caught:
        obtain("xcit-nano", [hub_source(), source], tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5 and all(line.endswith(f": not requested, because {switch} is set") for line in lines[1:4])
    assert site.requests == []

    monkeypatch.setenv(switch, "0")
    assert obtain("xcit-nano", [hub_source(), source], tmp_path)[1] == source


def test_offline_switch_allows_files_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCIT_OFFLINE", "1")
    (tmp_path / "a.pth").write_bytes(BODY)
    source = url_source((tmp_path / "a.pth").as_uri())
    assert obtain("a", [source], tmp_path / "cache")[0].read_bytes() == BODY


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """Yields "host:port" of a listener that neither accepts nor refuses connections, because its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(8):
            guest = stack.enter_context(socket.socket())
            guest.settimeout(0.05)
            try:
                guest.connect(address)
            except TimeoutError:
                break
        else:
            pytest.skip("this system lets every connection in")
        yield f"127.0.0.1:{address[1]}"


def test_no_network_is_told_before_the_resolver_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()
    returned: list[str] = []
    real = socket.getaddrinfo

    def hang(host: str, *rest: int) -> object:
        if host.endswith(".invalid"):
            forever.wait(60)
            returned.append(host)
        return real(host, *rest)

    # Without a network, name resolution may take half a minute and can't be interrupted; `hang` does the same.
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    with black_hole() as host:
        monkeypatch.setenv("XCIT_MIRROR", f"http://{host}/mirror")
        sources = [hub_source(), *(url_source(f"https://host{i}.invalid/a.pth") for i in range(8))]
        with pytest.raises(FetchError) as caught:
            obtain("xcit-nano", sources, tmp_path)
        assert not returned
    forever.set()
    lines = str(caught.value).splitlines()
    assert lines[1] == f"  mirror http://{host}/mirror (XCIT_MIRROR): no answer from 127.0.0.1"
    assert lines[2] == "  Hugging Face timm/xcit_nano.fb_in1k: no answer from hub.invalid"
    assert lines[3] == "  https://host0.invalid/a.pth: no answer from host0.invalid"
    assert len(lines) == 12 and "XCIT_MIRROR" in lines[11]


def test_a_slow_server_is_waited_for_once_it_is_reached(site: Site, tmp_path: Path) -> None:
    url = site.add("a.pth", File(pause=threading.Event()))
    timer = threading.Timer(0.4, site.files["/a.pth"].pause.set)
    timer.start()
    assert download(url, tmp_path / "a.pth", patience=0.2).read_bytes() == BODY
    timer.join()


def test_one_silent_host_does_not_stop_the_others(site: Site, tmp_path: Path) -> None:
    with black_hole() as host:
        good = url_source(site.add("a.pth", File()))
        assert obtain("a", [url_source(f"http://{host}/a.pth"), good], tmp_path)[1] == good
