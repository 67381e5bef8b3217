"""The process of one device: ``python -m tenfold.engine.worker ENDPOINT``.

Settings come as one JSON line on standard input; commands and events travel over one ZeroMQ pair
socket. When standard input closes, the parent is gone and so is the worker.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading

from tenfold.core.clock import SystemClock
from tenfold.core.errors import TenfoldError
from tenfold.core.messages import Event, Shutdown, WorkerRefused
from tenfold.core.settings import DeviceSettings
from tenfold.engine.engine import Engine

IDLE_POLL_MS = 1000
ASIDE_POLL_MS = 10


def main(endpoint: str) -> int:
    """Serve one device until told to stop. Returns the exit code."""
    import zmq

    from tenfold.core import wire
    from tenfold.engine.open_device import open_device

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settings = DeviceSettings(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_die_with_parent, daemon=True).start()

    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.connect(endpoint)

    def emit(event: Event) -> None:
        socket.send_multipart(wire.encode(event))

    try:
        engine = Engine(open_device(settings), SystemClock(), emit)
    except TenfoldError as error:
        emit(WorkerRefused(settings.name, error.code, error.message))
        socket.close(linger=500)
        context.term()
        return error.exit_code
    engine.start()
    while True:
        timeout = IDLE_POLL_MS
        if engine.has_work:
            timeout = 0
        elif engine.busy_aside:
            timeout = ASIDE_POLL_MS
        while socket.poll(timeout):
            command = wire.decode(socket.recv_multipart())
            engine.handle(command)
            if isinstance(command, Shutdown):
                socket.close(linger=500)
                context.term()
                return 0
            timeout = 0
        engine.step()


def _die_with_parent() -> None:
    while sys.stdin.readline():
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
