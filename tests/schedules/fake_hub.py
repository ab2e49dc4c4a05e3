"""A Hugging Face Hub on this machine: the requests that huggingface_hub makes to download a file, and to make and fill a repository;
and what a Hub may do that is out of order."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

TOKEN = "hf_of_the_test"


@dataclass
class Repository:
    """One repository.

    Attributes:
        branches: of each, its files; a branch's commit is the hash of its name and files.
        access: `public`; `private` and `gated` ask for the token.
        cut: bytes that are missing at the end of what is sent.
        failing: an HTTP status to answer every download with; the token is in its message.
        pause: seconds from each byte of a file to the next.
        etag: the name that a file has in the cache; by default its hash.
    """

    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    access: str = "public"
    cut: int = 0
    failing: int = 0
    pause: float = 0.0
    etag: str = ""

    def commit(self, branch: str) -> str:
        files = sorted(self.branches[branch].items())
        return hashlib.sha1(repr(files).encode()).hexdigest()

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files, for a branch or a commit."""
        for branch, files in self.branches.items():
            if revision in (branch, self.commit(branch)):
                return self.commit(branch), files
        return None


@dataclass
class FakeHub:
    """The server's state: its repositories by `owner/name`, its address, what it was asked; how it is silent, and whether it ends."""

    endpoint: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    silent: bool = False
    dripping: bool = False
    over: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _drip(self, body: bytes, pause: float) -> None:
        try:
            for byte in body:
                self.wfile.write(bytes([byte]))
                if self.hub.over.wait(pause):
                    return
        except OSError:  # the client has had enough
            pass

    def _allowed(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def do_HEAD(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.silent:
            self.close_connection = True
            return self._drip(b"HTTP/1.1 200 OK\r\nX-Long: " + bytes(1000), 0.1) if self.hub.dripping else self.hub.over.wait()
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/(.+)/([^/]+)", path)
        repository = self.hub.repositories.get(match[1]) if match else None
        if match is None or repository is None or (repository.access == "private" and not self._allowed()):
            return self._answer(404 if self._allowed() else 401, X_Error_Code="RepoNotFound")
        if repository.access == "gated" and not self._allowed():
            return self._answer(403, X_Error_Code="GatedRepo")
        if repository.failing:
            return self._answer(repository.failing, X_Error_Message=f"as asked, with {self.headers.get('authorization')}")
        found = repository.files(match[2])
        if found is None:
            return self._answer(404, X_Error_Code="RevisionNotFound")
        commit, files = found
        if match[3] not in files:
            return self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = files[match[3]]
        etag = repository.etag or f'"{hashlib.sha1(content).hexdigest()}"'
        sent = content[: len(content) - repository.cut]
        headers = {"Content-Length": str(len(content))} if self.command == "HEAD" else {}
        if repository.pause and self.command == "GET":
            self.close_connection = True
            self._answer(200, ETag=etag, X_Repo_Commit=commit, **{"Content-Length": str(len(content))})
            return self._drip(sent, repository.pause)
        return self._answer(200, sent, ETag=etag, X_Repo_Commit=commit, **headers)

    do_GET = do_HEAD

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"POST {path}")
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/validate-yaml":
            return self._json({})
        if not self._allowed():
            return self._answer(401, X_Error_Message="Invalid username or password.")
        if path == "/api/repos/create":
            asked = json.loads(data)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            if not name.startswith("me/"):
                return self._answer(403, X_Error_Message="You don't have the rights to create a model under this namespace")
            known, access = name in self.hub.repositories, asked.get("visibility", "public")
            self.hub.repositories.setdefault(name, Repository(access=access))
            return self._json({"url": f"{self.hub.endpoint}/{name}"}, 409 if known else 200)
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/(.+)", path)
        assert match is not None, path
        repository, branch = self.hub.repositories[match[1]], match[3]
        if match[2] == "branch":
            known = branch in repository.branches
            repository.branches.setdefault(branch, dict(repository.branches["main"]))
            return self._json({}, 409 if known else 200)
        if match[2] == "preupload":
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(data)["files"]]
            return self._json({"files": files})
        for line in map(json.loads, data.splitlines()):
            if line["key"] == "header":
                self.hub.messages.append(line["value"]["summary"])
            else:
                assert line["key"] == "file", line
                repository.branches[branch][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = repository.commit(branch)
        return self._json({"commitUrl": f"{self.hub.endpoint}/{match[1]}/commit/{commit}", "commitOid": commit})

    def _json(self, body: object, status: int = 200) -> None:
        self._answer(status, json.dumps(body).encode(), Content_Type="application/json")


@contextmanager
def serving() -> Iterator[FakeHub]:
    """Runs one on a free port of this machine, in threads that have ended when it is over."""
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = False
        handler.hub = hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.over.set()
            server.shutdown()
            thread.join()


def point_to(monkeypatch: pytest.MonkeyPatch, endpoint: str, home: Path) -> None:
    """Where huggingface_hub looks for the Hub, its cache and a token; it has read the environment long ago."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name, path in {"HF_HUB_CACHE": "hub", "HF_TOKEN_PATH": "token", "AGENT_HARNESSES_PATH": "harnesses"}.items():
        monkeypatch.setattr(constants, name, str(home / path), raising=False)


@contextmanager
def alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub in this process, with a cache of its own; no connection or thread outlives it."""
    with serving() as server:
        point_to(monkeypatch, server.endpoint, folder / "home")
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()  # its connections, which the server's threads wait for
    assert [t for t in threading.enumerate() if not t.daemon] == [threading.main_thread()]
