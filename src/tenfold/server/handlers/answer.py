"""Sending what a backend makes: as a stream, or whole."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Request
from starlette.responses import Response

from tenfold.fleet.types import GenerateRequest
from tenfold.server.errors import Json
from tenfold.server.outputs.base import Writer, collect, stream_frames
from tenfold.server.protocol.sampling import SamplingBody
from tenfold.server.record import record_of
from tenfold.server.requests import reply_headers, run
from tenfold.server.state import state_of
from tenfold.server.stream import EventStream, while_connected


async def answer(
    request: Request, body: SamplingBody, writer: Writer, requests: list[GenerateRequest]
) -> Response:
    """Run ``requests`` and write their events with ``writer``; a closed connection cancels them."""
    state, record = state_of(request), record_of(request.scope)
    headers = reply_headers(body)
    record.stream = bool(body.stream)
    if record.stream:

        def frames() -> AsyncIterator[bytes]:
            return stream_frames(writer, run(state, record, requests))

        return EventStream(state, frames, headers)
    choices = sum(each.sampling.n for each in requests)
    work = collect(writer, run(state, record, requests), choices)
    return Json(await while_connected(state, request.receive, work), headers=headers)
