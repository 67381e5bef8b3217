"""Reading request bodies: size and time limits while the bytes arrive, then strict JSON.

Knows nothing of the fields inside.
"""

from __future__ import annotations

import asyncio
import email.message
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tenfold.core.errors import InvalidRequest, TooLarge, UnsupportedMedia
from tenfold.server.errors import ClientGone
from tenfold.server.settings import ServerSettings
from tenfold.server.state import state_of
from tenfold.server.strict_json import strict_json

# An oversized body is read on (and dropped) up to this much further: a client that still writes
# when the connection closes would never see the 413.
_POLITE_BYTES = 64 << 20
_POLITE_SECONDS = 5.0


class StrictRequest(Request):
    """A request whose body was read and checked before the framework looks at it."""

    raw: bytes = b""
    parsed: Any = None

    async def body(self) -> bytes:
        return self.raw

    async def json(self) -> Any:
        return self.parsed


class StrictRoute(APIRoute):
    """A route that reads its body with ``read_body`` and ``strict_json``.

    JSON needs its content type: a browser page may then not post to a local server without asking.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        field = self.body_field
        required = field is not None and field.field_info.is_required()

        async def strict(request: Request) -> Response:
            checked = StrictRequest(request.scope, request.receive)
            if field is not None:
                checked.raw = await read_body(request, state_of(request).settings)
                if checked.raw:
                    _check_content_type(request.headers.get("content-type"))
                    checked.parsed = strict_json(checked.raw)
                    if not isinstance(checked.parsed, dict):
                        raise InvalidRequest("the body should be a JSON object")
                elif required:
                    raise InvalidRequest("the body is missing; send a JSON object")
            return await handler(checked)

        return strict


async def read_body(request: Request, settings: ServerSettings) -> bytes:
    """The body. Raises TooLarge as soon as it is past the limit, 408 when it comes too slowly,
    ClientGone when the peer leaves.
    """
    limit = settings.body_limit
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for chunk in _chunks(request):
                size += len(chunk)
                if size > limit:
                    break
                chunks.append(chunk)
    except TimeoutError:
        message = f"the body did not arrive within {settings.body_seconds:g} seconds"
        raise HTTPException(408, message, headers={"Connection": "close"}) from None
    if size > limit:
        chunks.clear()
        await _drop_rest(request)
        raise TooLarge(f"the body is larger than this server's limit of {limit} bytes")
    return b"".join(chunks)


async def _chunks(request: Request) -> Any:
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        more = message.get("more_body", False)
        yield message.get("body", b"")


async def _drop_rest(request: Request) -> None:
    dropped = 0
    try:
        async with asyncio.timeout(_POLITE_SECONDS):
            async for chunk in _chunks(request):
                dropped += len(chunk)
                if dropped > _POLITE_BYTES:
                    return
    except TimeoutError:
        return


def _check_content_type(value: str | None) -> None:
    message = email.message.Message()
    message["content-type"] = value or "nothing"
    charset = (message.get_param("charset") or "utf-8").lower()  # type: ignore[union-attr]
    kind = message.get_content_type() if value else "no content type"
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        raise UnsupportedMedia(
            f"send the body as 'Content-Type: application/json', not {kind[:80]!a}",
            param="Content-Type",
        )
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMedia("JSON is UTF-8; send no other charset", param="Content-Type")
