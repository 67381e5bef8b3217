"""The process of one device: ``python -m tenfold.engine.worker DESCRIPTOR``.

Settings come as one JSON line on standard input; commands and events travel over the stream socket
that was inherited under that descriptor. When standard input closes, the parent is gone and so is
the worker.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import sys
import threading

from tenfold.core.clock import SystemClock
from tenfold.core.errors import TenfoldError
from tenfold.core.messages import Event, Shutdown, WorkerRefused
from tenfold.core.settings import DeviceSettings
from tenfold.engine.engine import Engine

MOST_BYTES = 1 << 18
"""Read at once."""


def main(descriptor: str) -> int:
    """Serve one device until told to stop. Returns the exit code."""
    from tenfold.core import wire
    from tenfold.engine.open_device import open_device

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _step_forward()
    settings = DeviceSettings.from_dict(json.loads(sys.stdin.readline()))
    if settings.cores:
        os.sched_setaffinity(0, settings.cores)
    threading.Thread(target=_die_with_parent, daemon=True).start()

    stream = socket.socket(fileno=int(descriptor))
    coming = select.poll()
    coming.register(stream, select.POLLIN)
    inbox = wire.Inbox()

    def emit(event: Event) -> None:
        with contextlib.suppress(ConnectionError):  # reading will tell that the parent is gone
            stream.sendall(wire.encode(event))

    try:
        engine = Engine(open_device(settings), SystemClock(), emit)
    except TenfoldError as error:
        emit(WorkerRefused(settings.name, error.code, error.message))
        return error.exit_code
    engine.start()
    while True:
        timeout = engine.patience()
        while coming.poll(timeout * 1000):
            data = b""
            with contextlib.suppress(ConnectionError):
                data = stream.recv(MOST_BYTES)
            if not data:
                return 0  # the parent is gone
            for command in inbox.take(data):
                engine.handle(command)
                if isinstance(command, Shutdown):
                    return 0
            timeout = 0.0
        engine.step()


def _step_forward() -> None:
    """A server runs as a batch thread, so as not to interrupt its workers, which inherit that."""
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_BATCH:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _die_with_parent() -> None:
    while sys.stdin.readline():
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
