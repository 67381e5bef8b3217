"""Errors as OpenAI's clients expect them: one JSON shape, the right status, the field at fault.

Knows nothing of where an error came from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tenfold.core.errors import InvalidRequest, RateLimited, TenfoldError
from tenfold.scheduling.limits import WINDOW
from tenfold.server.record import record_of

CLIENT_CLOSED = 499
"""The status in logs of a request whose client went away (nginx's number; nobody receives it)."""


class ClientGone(Exception):
    """The peer closed the connection: the work is cancelled and no answer can be delivered."""


class Json(JSONResponse):
    """JSON that cannot fail on odd text: a lone surrogate leaves as an escape."""

    def render(self, content: Any) -> bytes:
        return dump(content)


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def dump(content: Any) -> bytes:
    """Compact UTF-8 JSON."""
    return _JSON.encode(content).encode("utf-8", "backslashreplace")


def error_body(error: TenfoldError) -> dict[str, Any]:
    """The ``{"error": …}`` object of an error."""
    return _body(error.status, error.code, error.message, error.param)


def error_response(error: TenfoldError) -> Response:
    headers: dict[str, str] = {}
    if isinstance(error, RateLimited) and error.retry_after is None:
        headers |= {"Retry-After": str(round(WINDOW)), "X-Should-Retry": "false"}
    elif error.status in (429, 503) or error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after or 1)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Json(error_body(error), error.status, headers)


def internal_error() -> Response:
    """For a bug: the log has the trace, the client has none of it."""
    return Json(_body(500, "internal_error", "the server failed on this request", None), 500)


def install_handlers(app: FastAPI) -> None:
    """Every error that leaves a handler becomes OpenAI's shape."""

    @app.exception_handler(TenfoldError)
    async def on_tenfold(request: Request, error: TenfoldError) -> Response:
        record_of(request.scope).failed(error)
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def on_validation(request: Request, error: RequestValidationError) -> Response:
        record_of(request.scope).error = InvalidRequest.code
        return error_response(validation_error(error.errors(), error.body))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed", 408: "request_timeout"}
        record = record_of(request.scope)
        record.error = code.get(error.status_code, "invalid_request_error")
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is nothing at {request.url.path!a}"
        elif error.status_code == 405:
            message = f"{request.method} is not allowed at {request.url.path!a}"
        body = _body(error.status_code, record.error, message, None)
        return Json(body, error.status_code, dict(error.headers or {}))

    @app.exception_handler(ClientGone)
    async def on_gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=CLIENT_CLOSED)


_WORDS = {
    "a valid dictionary or object to extract fields from": "an object",
    "a valid dictionary": "an object",
    "a valid list": "a list",
    "a valid string": "a string",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    " after validation": "",
}
"""pydantic's words, and those of somebody who writes JSON."""


def validation_error(errors: Sequence[Mapping[str, Any]], body: Any) -> InvalidRequest:
    """pydantic's findings as one error that names the field.

    Of the branches of a union, the one that got furthest into the body speaks.
    """
    found: dict[str, list[str]] = {}
    for error in errors:
        param = _param(error, body)
        message = _message(error)
        if message not in found.setdefault(param, []):
            found[param].append(message)
    roots = {param.partition(".")[0].partition("[")[0]: "" for param in found}
    for param in found:
        root = param.partition(".")[0].partition("[")[0]
        if len(param) > len(roots[root]):
            roots[root] = param
    named = list(roots.values())
    text = "; ".join(f"{param or 'the body'}: {' or '.join(found[param])}" for param in named[:3])
    if len(named) > 3:
        text += f"; and {len(named) - 3} more fields"
    return InvalidRequest(text, param=named[0] or None)


def _param(error: Mapping[str, Any], body: Any) -> str:
    """The path of the field, without the names of union branches that pydantic puts into it."""
    path, cursor = "", body
    location = list(error["loc"])[1:]
    if error["loc"][0] == "query":
        return _clean(str(location[0]))
    if error["type"].startswith("union_tag"):
        location.append(str(error["ctx"]["discriminator"]).strip("'"))
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(cursor, list) and isinstance(part, int) and part < len(cursor):
            path, cursor = f"{path}[{part}]", cursor[part]
        elif isinstance(cursor, dict) and isinstance(part, str):
            missing = last and (error["type"] == "missing" or error["type"].startswith("union_tag"))
            if part in cursor or missing:
                path = f"{path}.{_clean(part)}" if path else _clean(part)
                cursor = cursor.get(part)
    return path


def _message(error: Mapping[str, Any]) -> str:
    kind, message = error["type"], str(error["msg"])
    if kind == "missing" or kind == "union_tag_not_found":
        return "is missing"
    if kind == "union_tag_invalid":
        context = error["ctx"]
        return f"should be one of {context['expected_tags']}, not {_shown(context['tag'])}"
    for prefix in ("Value error, ", "Input ", "String ", "List ", "Dictionary "):
        message = message.removeprefix(prefix)
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    value = error.get("input")
    if kind not in ("value_error", "not_supported", "prompt") and _is_plain(value):
        message += f", not {_shown(value)}"
    return message


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _shown(value: Any) -> str:
    """A value for a message: as JSON would spell it, pure ASCII, and short."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a huge number"
    if isinstance(value, str):
        value = value[:64]
    text = json.dumps(value)
    return text if len(text) <= 48 else text[:45] + "…"


def _clean(name: str) -> str:
    return name if name.isidentifier() else ascii(name)[1:-1][:64]


def _body(status: int, code: str, message: str, param: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": _type(status), "param": param, "code": code}}


def _type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }.get(status, "invalid_request_error")
