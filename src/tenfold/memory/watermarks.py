"""The thread that prepares pages, so that a model that grows finds them ready.

A page that the system has not given before costs milliseconds, most of them in a virtual machine,
whose host has to find it too. When a range that grows finds few pages ready (the low mark), the
thread populates some (up to the high mark), one by one and without the pool's lock (Prism, section
5.2; Linux keeps free pages for its page faults in the same way). It also gives the system the spare
pages over the high mark, a moment after they became spare: what one model has let go of, another
mostly wants. Does not know which range grows, nor how far it may: the pool does.
"""

from __future__ import annotations

import logging
import threading
import weakref

from tenfold.memory.pool import PagePool

log = logging.getLogger(__name__)

LINGER_SECONDS = 0.1
"""So long spare pages over the high mark stay, in case that somebody wants them."""


class Watermarks:
    """Keeps between ``low`` and ``high`` pages of a pool ready, from a thread of its own.

    The thread ends with ``close``, or once the pool is nobody's any more."""

    def __init__(self, pool: PagePool, low: int, high: int) -> None:
        pool.reserve(high, low)
        self._wake = wake = threading.Event()
        self._closed = threading.Event()
        self._pool = gone = weakref.ref(pool, lambda _: wake.set())
        self._thread = threading.Thread(
            target=_keep_ready, args=(gone, wake, self._closed), name="watermarks", daemon=True
        )
        self._thread.start()
        pool.on_want = wake.set

    def top_up(self) -> None:
        """There is time now: prepare up to the high mark, not only from the low one on."""
        self._wake.set()

    def close(self) -> None:
        """Stop, after the page that is being populated. Not with the pool's lock held. Twice is
        fine; the pool goes on without."""
        self._closed.set()
        self._wake.set()
        self._thread.join()
        pool = self._pool()
        if pool is not None and pool.on_want == self._wake.set:
            pool.on_want = None
            pool.settle()


def _keep_ready(
    alive: weakref.ref[PagePool], wake: threading.Event, closed: threading.Event
) -> None:
    while True:
        wake.wait()
        wake.clear()
        pool = alive()
        if pool is None or closed.is_set():
            return
        try:
            while not closed.is_set() and pool.prepare():
                pass
            if pool.excess() and not closed.wait(LINGER_SECONDS):
                pool.settle()
        except Exception:
            log.exception("a page could not be prepared; from now on none will be")
            return
        del pool  # not to keep it alive while waiting
