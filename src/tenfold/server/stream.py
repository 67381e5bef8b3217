"""Work on behalf of a connection: cancelled when the peer leaves, sent as it is made.

Knows nothing of what is sent: frames are bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tenfold.core.errors import TenfoldError
from tenfold.server.errors import ClientGone, dump, error_body
from tenfold.server.record import record_of
from tenfold.server.state import ServerState

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


def frame(payload: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + dump(payload) + b"\n\n"


def error_frame(error: TenfoldError) -> bytes:
    """An error in the middle of a stream: the last event before its end."""
    return b"event: error\n" + frame(error_body(error))


@asynccontextmanager
async def closing(iterator: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Closes an async generator, however the ``async with`` block ends."""
    try:
        yield iterator
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


async def while_connected(state: ServerState, receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled at once when the peer closes its connection.

    Raises ClientGone then; or the error the server was stopped with. Cancelling this cancels the
    work. In every case the work has ended when this returns.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    stopped: asyncio.Future[TenfoldError] = asyncio.get_running_loop().create_future()

    def stop(error: TenfoldError) -> None:
        if not stopped.done():
            stopped.set_result(error)

    state.stoppers.add(stop)
    try:
        either: set[asyncio.Future[Any]] = {task, gone, stopped}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise stopped.result() if stopped.done() else ClientGone
    finally:
        state.stoppers.discard(stop)
        stopped.cancel()
        await _end(task)
        await _end(gone)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancel and wait. The task's own outcome was read before, or does not matter any more."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # read, so that asyncio does not complain


class EventStream(Response):
    """Server-sent events from an iterator of frames, with keep-alive comments while it is silent.

    The response starts with the first frame, or with the first ping: an error before that is an
    ordinary error response with its own status; after that, an error event ends the stream.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        state: ServerState,
        frames: Callable[[], AsyncIterator[bytes]],
        headers: dict[str, str],
    ) -> None:
        self._state = state
        self._frames = frames
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        self._started = False
        self._last = 0.0
        self._writing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(self._state, receive, self._pump(send))
        except ClientGone:
            record_of(scope).gone = True
            return
        except TenfoldError as error:
            if not self._started:
                raise
            record_of(scope).failed(error)
            await self._write(send, error_frame(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, send: Send) -> None:
        pinger = asyncio.create_task(self._ping(send))
        try:
            async with closing(self._frames()) as frames:
                async for data in frames:
                    await self._write(send, data)
        finally:
            await _end(pinger)

    async def _write(self, send: Send, data: bytes) -> None:
        self._last = self._state.clock.now()
        async with self._writing:  # a ping and a frame must not both start the response
            if not self._started:
                self._started = True
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send(start)
            await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _ping(self, send: Send) -> None:
        period = self._state.settings.ping_seconds
        if period <= 0:
            return
        self._last = self._state.clock.now()
        while True:
            silent = self._state.clock.now() - self._last
            if silent >= period:
                await self._write(send, PING)
                silent = 0.0
            await asyncio.sleep(period - silent)
