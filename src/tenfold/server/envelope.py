"""The outermost layer of the app: request ids, who is calling, the log line, the last resort.

Plain ASGI, so that streams pass through untouched. Knows nothing of any endpoint.
"""

from __future__ import annotations

import logging
import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenfold.core.errors import TenfoldError
from tenfold.server.errors import CLIENT_CLOSED, error_response, internal_error
from tenfold.server.limits import limit_headers
from tenfold.server.record import RequestRecord, log_line
from tenfold.server.state import ServerState

_log = logging.getLogger("tenfold.server")
_request_log = logging.getLogger("tenfold.requests")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Envelope:
    """Wraps the app. No exception leaves it: a bug is logged here and answered with a plain 500."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = self._record(scope, headers)
        scope.setdefault("state", {})["record"] = record

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["X-Request-Id"] = record.id
                if record.model:
                    answer.update(limit_headers(self._state.backend.standing(record.client)))
            await send(message)

        try:
            await self._guarded(scope, receive, stamped, record, headers)
        finally:
            self._close(scope, record)

    async def _guarded(
        self, scope: Scope, receive: Receive, send: Send, record: RequestRecord, headers: Headers
    ) -> None:
        try:
            peer = scope["client"][0] if scope.get("client") else None
            caller = self._state.auth.caller(scope["path"], headers, peer)
            record.client, record.client_fixed = caller.name, caller.fixed
            scope["state"]["caller"] = caller
            await self._app(scope, receive, send)
        except TenfoldError as error:
            record.failed(error)
            await error_response(error)(scope, receive, send)
        except Exception:
            _log.exception("request %s failed on a bug", record.id)
            record.error = "internal_error"
            if not record.status:
                await internal_error()(scope, receive, send)

    def _record(self, scope: Scope, headers: Headers) -> RequestRecord:
        given = headers.get("x-request-id", "")
        return RequestRecord(
            id=given if _REQUEST_ID.fullmatch(given) else f"req-{uuid4().hex}",
            method=scope["method"],
            path=scope["path"],
            started=self._state.clock.now(),
        )

    def _close(self, scope: Scope, record: RequestRecord) -> None:
        """Count the request, and write its line if it asked for work."""
        if record.gone or not record.status:
            record.status = CLIENT_CLOSED
        if record.status == CLIENT_CLOSED:
            record.finishes.append("abort")
        now = self._state.clock.now()
        route = getattr(scope.get("route"), "path", "other")
        self._state.metrics.response(record, route)
        if record.method != "POST":
            return
        if record.ran or record.model or record.error:
            self._state.metrics.finished(record, now)
        fields = record.fields(now)
        level = logging.ERROR if record.error == "internal_error" else logging.INFO
        _request_log.log(level, log_line(fields, self._state.settings.log_format))
