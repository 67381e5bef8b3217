"""Running an app over a real socket: bind first, say when ready, drain on a signal.

Knows nothing of endpoints. Exit codes are the caller's: a second signal raises SystemExit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Generator
from typing import Literal

import uvicorn
from fastapi import FastAPI

from tenfold.core.errors import ConfigError, Unavailable
from tenfold.server.backend import Backend
from tenfold.server.state import ServerState

_log = logging.getLogger("tenfold.server")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FAREWELL = 2  # seconds for last bytes to leave, after the requests themselves are done
_POLL = 0.05


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises ConfigError with what to change."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"cannot listen on host {host!r}: {exc}", param="host") from exc
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except (OSError, OverflowError) as exc:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {exc}; choose another port with --port", param="port"
        ) from exc
    return listener


async def serve(
    app: FastAPI,
    backend: Backend,
    host: str,
    port: int,
    drain_seconds: float = 30.0,
    on_ready: Callable[[int], None] | None = None,
    listener: socket.socket | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return.

    ``on_ready`` gets the port once a request would succeed. The first signal turns ``/ready`` off,
    refuses new requests and lets running ones finish for ``drain_seconds``; what is left then ends
    with an error. A second signal raises SystemExit at once. Raises ConfigError where the port
    cannot be had; who loads models first takes the port with ``bind`` before, and hands it over as
    ``listener``.
    """
    listener = listener or bind(host, port)
    port = listener.getsockname()[1]
    server = _Server(_config(app))
    leaving = _Leaving(server, app.state.server, drain_seconds)
    with leaving.listening(), _standing_back():
        announcing = asyncio.create_task(_announce(server, backend, port, on_ready))
        try:
            await server.serve(sockets=[listener])
        finally:
            announcing.cancel()
            listener.close()
    if leaving.hurried is not None:
        raise SystemExit(128 + leaving.hurried)


@contextlib.contextmanager
def _standing_back() -> Generator[None, None, None]:
    """Inside, this thread never interrupts a worker. A token that is sent wakes this process, and
    where no core is idle the system would have it run at once, in the worker's place and before
    the next step; a batch thread waits for a core, or its turn. Its share stays the same."""
    changed = False
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            changed = True
    try:
        yield
    finally:
        if changed:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
        # A header must not be able to make a far peer look like this machine.
        proxy_headers=False,
        timeout_graceful_shutdown=_FAREWELL,
    )


class _Server(uvicorn.Server):
    """uvicorn, with its signal handling left to ``_Leaving``."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def _announce(
    server: uvicorn.Server, backend: Backend, port: int, on_ready: Callable[[int], None] | None
) -> None:
    while not (server.started and backend.ready()):
        await asyncio.sleep(_POLL)
    if on_ready is not None:
        on_ready(port)


class _Leaving:
    """What signals do: the first drains, the second leaves."""

    def __init__(self, server: uvicorn.Server, state: ServerState, seconds: float) -> None:
        self._server = server
        self._state = state
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None
        self.hurried: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Generator[None, None, None]:
        """Signals are ours inside the block. In a thread that gets none, nothing happens."""
        loop = asyncio.get_running_loop()
        try:
            for number in _SIGNALS:
                loop.add_signal_handler(number, self.signal, number)
        except (ValueError, RuntimeError):  # not the main thread
            yield
            return
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def signal(self, number: int) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._leave(signal.Signals(number).name))
            return
        self.hurried = number
        self._task.cancel()
        self._server.force_exit = True
        self._server.should_exit = True
        self._state.stop_all(Unavailable("the server was stopped"))

    async def _leave(self, why: str) -> None:
        running = len(self._state.stoppers)
        _log.info("%s: draining %d requests (at most %gs)", why, running, self._seconds)
        done: Literal["drained", "out of time"] = "drained"
        try:
            async with asyncio.timeout(self._seconds):
                await asyncio.shield(self._state.drain())
        except TimeoutError:
            done = "out of time"
        except Exception:
            _log.exception("draining failed")
        _log.info("%s; %d requests left, leaving", done, len(self._state.stoppers))
        self._state.stop_all(Unavailable("the server is shutting down; send the request again"))
        self._server.should_exit = True
