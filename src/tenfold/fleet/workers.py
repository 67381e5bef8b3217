"""Workers as the control plane sees them: something that takes commands and reports events.

A local worker is a process of its own, found dead or alive; an inline one is a thread of this
process, for Python programs that want no server. Neither knows what a request means.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol

from tenfold.core.errors import TenfoldError
from tenfold.core.messages import Command, Event, Shutdown, WorkerRefused
from tenfold.core.settings import DeviceSettings

OnEvent = Callable[[Event], None]
OnExit = Callable[[int], None]

LAST_WORDS_SECONDS = 0.2
MOST_BYTES = 1 << 18
"""Read at once: no worker keeps the event loop from its other work."""


class Worker(Protocol):
    """One device's worker. Callbacks run on the event loop that called ``start``."""

    async def start(self, on_event: OnEvent, on_exit: OnExit) -> None:
        """Begin. The first event is WorkerUp, or WorkerRefused before it ends by itself;
        ``on_exit`` is called once, with the exit code."""
        ...

    def send(self, command: Command) -> None:
        """Queue a command; order is kept. Commands to a dead worker are dropped."""
        ...

    async def stop(self) -> None:
        """End the worker and wait until it is gone. ``on_exit`` is not called for it."""
        ...


def _nobody(event: Event) -> None:
    """Events before ``start`` have no listener."""


class LocalWorker:
    """A worker process on this machine, joined by a pair of stream sockets."""

    def __init__(self, settings: DeviceSettings) -> None:
        self.settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_event: OnEvent = _nobody
        self._unsent = b""
        self._inbox: Any = None
        self._socket: socket.socket | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self, on_event: OnEvent, on_exit: OnExit) -> None:
        from tenfold.core import wire

        self._inbox = wire.Inbox()
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tenfold.engine.worker",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.PIPE,
                env=self._environment(),
            )
        except BaseException:
            await self._close()
            raise
        finally:
            theirs.close()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(self.settings)).encode() + b"\n")
        self._on_event = on_event
        self._loop.add_reader(self._socket, self._receive)
        self._watching = asyncio.create_task(self._watch(on_exit))

    def _environment(self) -> dict[str, str]:
        """The kernels bring their own threads; a second pool would fight them for the cores."""
        threads = "1" if self.settings.native else str(self.settings.threads or os.cpu_count() or 1)
        return {"OMP_NUM_THREADS": threads, **os.environ}

    def _receive(self) -> None:
        """Take what has come: a reader on the socket itself costs less than a task or a transport
        for each message would."""
        assert self._socket is not None and self._loop is not None
        try:
            data = self._socket.recv(MOST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._socket)  # it is gone, as ``_watch`` will hear
        for event in self._inbox.take(data):
            self._on_event(event)

    async def _watch(self, on_exit: OnExit) -> None:
        assert self._process is not None
        code = await self._process.wait()
        if not self._stopping:
            if code > 0:  # it ended by itself, and may have said why
                await asyncio.sleep(LAST_WORDS_SECONDS)
            await self._close()
            on_exit(code)

    def send(self, command: Command) -> None:
        from tenfold.core import wire

        if self._socket is not None:
            self._unsent += wire.encode(command)
            self._flush()

    def _flush(self) -> None:
        """Hand over what waits, as far as there is room; what is left goes when there is more. A
        dead worker's commands are dropped."""
        assert self._socket is not None and self._loop is not None
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent = b""
        if self._unsent:
            self._loop.add_writer(self._socket, self._flush)
        else:
            self._loop.remove_writer(self._socket)

    async def stop(self) -> None:
        self._stopping = True
        if self._process is None:
            return
        self.send(Shutdown())
        try:
            await asyncio.wait_for(self._process.wait(), timeout=5)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._close()

    async def _close(self) -> None:
        if self._watching is not None and self._watching is not asyncio.current_task():
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._socket = None


class InlineWorker:
    """The same engine on a thread of this process. Imports torch when started, not before."""

    def __init__(self, settings: DeviceSettings) -> None:
        self.settings = settings
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def start(self, on_event: OnEvent, on_exit: OnExit) -> None:
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(
            target=self._run, args=(loop, on_event, on_exit), name="tenfold-engine", daemon=True
        )
        self._thread.start()

    def _run(self, loop: asyncio.AbstractEventLoop, on_event: OnEvent, on_exit: OnExit) -> None:
        def post(action: Callable[[Any], None], value: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(action, value)

        try:
            if code := self._serve(lambda event: post(on_event, event)):
                post(on_exit, code)
        except Exception as error:
            import logging

            logging.getLogger("tenfold.engine").exception("the engine stopped: %s", error)
            post(on_exit, 1)

    def _serve(self, emit: Callable[[Event], None]) -> int:
        """Until told to stop. Returns an exit code, as a process would."""
        from tenfold.core.clock import SystemClock
        from tenfold.engine.engine import Engine
        from tenfold.engine.open_device import open_device

        try:
            engine = Engine(open_device(self.settings), SystemClock(), emit)
        except TenfoldError as error:
            emit(WorkerRefused(self.settings.name, error.code, error.message))
            return error.exit_code
        engine.start()
        while True:
            timeout = engine.patience()
            while True:
                try:
                    command = self._inbox.get(block=timeout > 0, timeout=timeout or None)
                except queue.Empty:
                    break
                engine.handle(command)
                if isinstance(command, Shutdown):
                    return 0
                timeout = 0.0
            engine.step()

    def send(self, command: Command) -> None:
        self._inbox.put(command)

    async def stop(self) -> None:
        if self._thread is not None:
            self.send(Shutdown())
            await asyncio.to_thread(self._thread.join, 5)
