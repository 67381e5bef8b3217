"""A server in a process of its own, for tests of signals: one request hangs until it is let go.

Prints "ready PORT" when ready, "draining" when the backend drains, "code N" at the end.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from fake_backend import FakeBackend

from tenfold.server.app import create_app
from tenfold.server.run import serve
from tenfold.server.settings import ServerSettings


class Announcing(FakeBackend):
    async def drain(self) -> None:
        print("draining", flush=True)
        await super().drain()


async def main(drain_seconds: float) -> None:
    backend = Announcing(hold_after=1)
    asyncio.get_running_loop().add_reader(sys.stdin, backend.gate.set)
    app = create_app(backend, ServerSettings())
    await serve(
        app,
        backend,
        "127.0.0.1",
        0,
        drain_seconds,
        lambda port: print(f"ready {port}", flush=True),
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    asyncio.run(main(float(sys.argv[1])))
    print("left", flush=True)
