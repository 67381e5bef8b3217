"""Who may come in, and whether somebody is still there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from tenfold.core.errors import Unavailable


class Door:
    """Open until it is shut, for ever. All methods belong to one event loop."""

    def __init__(self) -> None:
        self.open = True
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def check(self) -> None:
        """Raises Unavailable once it is shut."""
        if not self.open:
            raise Unavailable("the server is draining and takes no new requests", retry_after=30)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """A call counts from its first step to its last, so that draining waits for all of it."""
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def drain(self) -> None:
        """Shut it; return when nobody is inside."""
        self.open = False
        await self._empty.wait()
