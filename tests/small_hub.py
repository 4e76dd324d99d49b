"""A model hub on loopback, with the few replies that a client asks for, and faults on demand.

with SmallHub() as hub:
    hub.add("owner/name", folder)
    hub.faults.append(reset_after(100))        # what the next request for a file meets
    weights.open_source("owner/name", hub=weights.Hub(endpoint=hub.url, cache=tmp_path, token=False))
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["Fault", "Request", "SmallHub", "body", "reset_after", "status", "truncated_at"]

PAGE = b"<!DOCTYPE html><html><title>Welcome to the airport</title></html>"


class Request(BaseHTTPRequestHandler):
    """One request; `hub` is the hub it came to."""

    protocol_version = "HTTP/1.1"
    hub: SmallHub

    def log_message(self, *args: Any) -> None:
        """Keep the tests' output clean."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, dict(self.headers)))
        is_file = "/resolve/" in path
        faults = self.hub.faults if is_file else self.hub.listing_faults
        if faults and faults.pop(0)(self):
            return
        if is_file:
            repository, rest = path.lstrip("/").split("/resolve/", 1)
            commit, name = rest.split("/", 1)
            self._file(repository, commit, name)
        elif path.startswith("/api/models/"):
            self._listing(path.removeprefix("/api/models/"))
        else:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _listing(self, path: str) -> None:
        repository, _, revision = path.partition("/revision/")
        if repository not in self.hub.repositories:
            self.send(404, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            return
        refs = self.hub.refs[repository]
        commit = refs.get(revision or "main", revision)
        if commit not in self.hub.repositories[repository]:
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = []
        for name, data in self.hub.repositories[repository][commit].items():
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git}
            if name.endswith((".safetensors", ".bin")):
                sha = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        reply = {
            "id": repository,
            "modelId": repository,
            "sha": commit,
            "siblings": siblings,
            "private": False,
        }
        reply = self.hub.twist(reply)
        self.send(200, json.dumps(reply).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: str, commit: str, name: str) -> None:
        data = self.hub.repositories.get(repository, {}).get(commit, {}).get(name)
        if data is None:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": commit, "ETag": self.hub.etag, "X-Linked-Etag": self.hub.etag}
        wanted = self.headers.get("Range")
        if wanted and self.hub.ranges:
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            self.send(206, data[begin:], headers)
        else:
            self.send(200, data, headers)

    def send(
        self, code: int, data: bytes, headers: dict[str, str] | None = None, claim: int | None = None
    ) -> None:
        """A whole reply; `claim` is a Content-Length that need not be true."""
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if claim is None else claim))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def file_data(self) -> bytes:
        """The file that this request is for."""
        repository, rest = unquote(urlsplit(self.path).path).lstrip("/").split("/resolve/", 1)
        commit, name = rest.split("/", 1)
        return self.hub.repositories[repository][commit][name]

    def reset(self) -> None:
        """Break the connection the hard way."""
        self.wfile.flush()
        time.sleep(0.02)  # a reset throws away what the other side has not read yet
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


Fault = Callable[[Request], bool]
"""Answers a request in place of the hub (True), or lets it through (False)."""


def reset_after(count: int) -> Fault:
    """Send `count` more bytes of the file, then reset the connection."""

    def fault(request: Request) -> bool:
        data = request.file_data() if "/resolve/" in request.path else b" " * (count + 1000)
        wanted = request.headers.get("Range")
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        request.send(206 if begin else 200, data[begin : begin + count], claim=len(data) - begin)
        request.reset()
        return True

    return fault


def truncated_at(count: int) -> Fault:
    """A shorter file than listed, sent as if that were all."""

    def fault(request: Request) -> bool:
        request.send(200, request.file_data()[:count])
        return True

    return fault


def status(code: int, **headers: str) -> Fault:
    """A reply with this status and nothing in it."""

    def fault(request: Request) -> bool:
        request.send(code, b"{}", {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return fault


def body(data: bytes, content_type: str = "text/html") -> Fault:
    """A reply of status 200 with other content than was asked for."""

    def fault(request: Request) -> bool:
        request.send(200, data, {"Content-Type": content_type})
        return True

    return fault


class SmallHub:
    """The server: repositories by name and commit, branches, a log of requests, faults to come."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.faults: list[Fault] = []
        self.listing_faults: list[Fault] = []
        self.etag = '"an-etag-that-nobody-should-use"'
        self.ranges = True
        self.twist: Callable[[dict[str, Any]], dict[str, Any]] = lambda reply: reply
        handler = type("BoundRequest", (Request,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *args: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def add(self, repository: str, files: Path | dict[str, bytes], branch: str = "main") -> str:
        """Put a folder's files in a repository as a new commit, and let `branch` point there."""
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        text = repr(sorted((n, hashlib.sha256(d).hexdigest()) for n, d in files.items()))
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.repositories.setdefault(repository, {})[commit] = files
        self.refs.setdefault(repository, {})[branch] = commit
        return commit

    def files_asked(self) -> list[str]:
        """Names of the files asked for so far."""
        return [
            path.split("/resolve/")[1].split("/", 1)[1] for _, path, _ in self.requests if "/resolve/" in path
        ]

    def __enter__(self) -> SmallHub:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
