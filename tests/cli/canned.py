"""A server on 127.0.0.1 with canned answers, and a way to run verbs as a shell would."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class CannedServer:
    """``answers``: "METHOD /path" to (status, JSON body), or a list of SSE payloads.

    ``asked`` keeps every call as (method, path, headers, body).
    """

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        canned = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                canned._answer(self, "GET")

            def do_POST(self) -> None:
                canned._answer(self, "POST")

            def do_PATCH(self) -> None:
                canned._answer(self, "PATCH")

            def do_DELETE(self) -> None:
                canned._answer(self, "DELETE")

            def log_message(self, *words: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length)) if length else None
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.asked.append((method, handler.path, headers, body))
        found = self.answers.get(f"{method} {handler.path}", (404, {"error": {"message": "none"}}))
        if isinstance(found, list):
            events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in found)
            status, kind, data = 200, "text/event-stream", events + "data: [DONE]\n\n"
        else:
            status, kind, data = found[0], "application/json", json.dumps(found[1])
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data.encode())))
        handler.end_headers()
        handler.wfile.write(data.encode())
