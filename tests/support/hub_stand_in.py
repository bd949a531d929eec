"""A server on this machine that stands in for the Hugging Face Hub, with repositories in memory."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class Hub(ThreadingHTTPServer):
    """The server. `commits[repository]` lists the commits, oldest first; a commit maps file names to bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.large: dict[str, bytes] = {}  # uploaded files, by digest
        self.wrong: set[str] = set()  # files that are sent with damaged bytes
        self.asked: list[str] = []

    def publish(self, repository: str, folder: Path) -> None:
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.commits.setdefault(repository, []).append(files)

    def files(self, repository: str) -> dict[str, bytes]:
        return self.commits[repository][-1]


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.resolve(with_body=False)

    def do_GET(self) -> None:
        self.resolve(with_body=True)

    def resolve(self, with_body: bool) -> None:
        path = unquote(self.path)
        self.server.asked.append(f"{self.command} {path}")
        repository, _, rest = path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        states = self.server.commits.get(repository, [])
        number = len(states) - 1 if revision == "main" else int(revision, 16) if revision.startswith("0") else -1
        if not 0 <= number < len(states) or name not in states[number]:
            code = "EntryNotFound" if states else "RepoNotFound"
            self.answer(404, b"", {"X-Error-Code": code})
            return
        body = states[number][name]
        etag = sha256(body) if name.endswith(".safetensors") else hashlib.sha1(body).hexdigest()
        headers = {"X-Repo-Commit": f"{number:040x}", "ETag": f'"{etag}"'}
        if name in self.server.wrong:
            body = body[::-1]
        self.answer(200, body, headers, with_body=with_body)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(f"POST {self.path}")
        parts = self.path.strip("/").split("/")
        if self.path == "/api/repos/create":
            wanted = json.loads(content)
            repository = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            if repository in self.server.commits:
                self.reply({"error": "it is there", "url": f"{self.server.url}/{repository}"}, 409)
                return
            self.server.commits[repository] = []
            self.reply({"url": f"{self.server.url}/{repository}"})
        elif "preupload" in parts:
            files = json.loads(content)["files"]
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                for file in files
            ]
            self.reply({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(content)["objects"]
            uploads = [
                {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}", "header": {}}}}
                for one in objects
            ]
            self.reply({"transfer": "basic", "objects": uploads})
        elif "commit" in parts:
            repository = "/".join(parts[2:4])
            files = dict(self.server.commits[repository][-1]) if self.server.commits[repository] else {}
            for line in content.decode().splitlines():
                entry = json.loads(line)
                value: Any = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = self.server.large[value["oid"]]
            self.server.commits[repository].append(files)
            number = len(self.server.commits[repository]) - 1
            url = f"{self.server.url}/{repository}/commit/{number:040x}"
            self.reply({"commitUrl": url, "commitOid": f"{number:040x}", "success": True})
        else:  # the client checks a model card
            self.reply({"errors": [], "warnings": []})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path.rpartition("/")[2] == sha256(body)
        self.server.large[sha256(body)] = body
        self.reply({})

    def reply(self, content: object, status: int = 200) -> None:
        self.answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: dict[str, str], with_body: bool = True) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@contextmanager
def hub_stand_in(folder: Path) -> Iterator[Hub]:
    """Makes the stand-in the only Hub for this process, with an empty cache in `folder`."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch, Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("XCIT_CACHE", str(folder / "cache"))
        for name in ("HF_HUB_OFFLINE", "XCIT_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)  # the client read the environment at import
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        yield server
        server.shutdown()
        thread.join()
