"""Made models for the store's tests: small wheels, and a hub on 127.0.0.1 that can break off."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import zipfile
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(folder: Path, package: str, version: str, members: Mapping[str, bytes]) -> Path:
    """A wheel that pip accepts, holding ``members`` and the metadata a wheel must have."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{package.replace('-', '_')}-{version}"
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        info = f"{stem}.dist-info"
        # A dependency that exists nowhere: fetching it too would fail.
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
            "Requires-Dist: no-such-package-anywhere\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


class FakeHub:
    """Serves ``files`` of one repository as a hub does, with byte ranges.

    ``cut_at``: cut the connection after so many bytes of a body that is longer, once; with ``dies``
    the server then answers nobody until ``revive``. ``status``: answer everything so. ``asked``:
    every (path, Range header) of a file that was asked for.
    """

    def __init__(self, repository: str, files: Mapping[str, bytes]) -> None:
        self.repository = repository
        self.files = dict(files)
        self.cut_at: int | None = None
        self.dies = self.dead = False
        self.status = 200
        self.ranges = True
        self.listed: set[str] | None = None
        self.asked: list[tuple[str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self)

            def log_message(self, *words: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def revive(self) -> None:
        self.dead, self.cut_at = False, None

    def listing(self) -> bytes:
        siblings = []
        for name, data in self.files.items():
            if self.listed is not None and name not in self.listed:
                continue
            header = b"blob %d\0" % len(data)
            sibling: dict[str, Any] = {
                "rfilename": name,
                "size": len(data),
                "blobId": hashlib.sha1(header + data).hexdigest(),
            }
            if name.endswith((".gguf", ".safetensors")):
                sibling["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 1}
            siblings.append(sibling)
        return json.dumps(
            {"id": self.repository, "sha": "c0ffee", "siblings": siblings, "tags": []}
        ).encode()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        if self.dead:
            handler.close_connection = True
            return None
        if self.status != 200:
            return self._send(handler, self.status, b"{}")
        if path.startswith(f"/api/models/{self.repository}"):
            return self._send(handler, 200, self.listing())
        match = re.fullmatch(rf"/{self.repository}/resolve/[^/]+/(.+)", path)
        name = match.group(1) if match else ""
        if name not in self.files:
            return self._send(handler, 404, b"{}")
        asked = handler.headers.get("Range", "")
        self.asked.append((name, asked))
        return self._file(handler, self.files[name], asked)

    def _file(self, handler: BaseHTTPRequestHandler, data: bytes, asked: str) -> None:
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if start >= len(data) > 0:
            return self._send(handler, 416, b"", {"Content-Range": f"bytes */{len(data)}"})
        body = data[start:]
        headers = {}
        if asked and self.ranges:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        status = 206 if headers else 200
        cut, self.cut_at = self.cut_at, None
        if cut is None or len(body) <= cut:
            self.cut_at = cut
            return self._send(handler, status, body, headers)
        self.dead = self.dies
        return self._send(handler, status, body, headers, cut)

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body if cut is None else body[:cut])
        handler.wfile.flush()
        if cut is not None:
            handler.close_connection = True
