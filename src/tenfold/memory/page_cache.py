"""A file's bytes in the page cache: how many there are, and bringing, keeping or dropping them.

This is what lies between "on disk" and "in the host's memory" for a model that sleeps. Does not
know what the file holds.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tenfold.memory.linux import MADV_POPULATE_READ, MAP_SHARED, PROT_READ, Kernel

HOLD_AFTER = 1.0
"""Seconds after which a file that is to be held is: so long any system keeps what was just read."""

HOLD_STEP = 16 << 20
"""Bytes that are locked at a time: the process's other calls about memory wait meanwhile."""


def image_in_page_cache(path: Path) -> float:
    """The share of the file, by pages, that the system holds in memory: 0 to 1, and 1 for an empty
    file. Reads nothing of it.

    Raises OSError. The kernel tells only who may write the file, or owns it; to others all of it
    seems to be there (mincore(2))."""
    with path.open("rb") as stream:
        length = os.fstat(stream.fileno()).st_size
        if length == 0:
            return 1.0
        kernel = Kernel()
        address = kernel.mmap(0, length, PROT_READ, MAP_SHARED, stream.fileno())
        try:
            pages = -(-length // mmap.PAGESIZE)
            held = kernel.mincore(address, length, pages)
        finally:
            kernel.munmap(address, length)
    return sum(flag & 1 for flag in held) / pages


def read_ahead(path: Path) -> None:
    """Ask the system to bring the whole file into memory; it does so while the caller goes on.

    Raises OSError."""
    _advise(path, os.POSIX_FADV_WILLNEED)


def drop_from_page_cache(path: Path) -> None:
    """Let the system forget the file's bytes, so that the next reading comes from the disk. Bytes
    that are not on the disk yet are written first. Raises OSError."""
    with path.open("rb") as stream:
        os.fdatasync(stream.fileno())
    _advise(path, os.POSIX_FADV_DONTNEED)


def _advise(path: Path, advice: int) -> None:
    with path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, advice)


class HeldFile:
    """A file that can be kept in memory by this process while it is not read.

    Systems short of memory forget a file's bytes, and some do so within a minute of the last
    reading though most of their memory is free (guests that give it back to their host). Held
    pages are locked; where that is not allowed (``ulimit -l``) they are mapped and touched, which
    makes them the last to go. ``allowed``: asked, with a number of bytes, whether to hold so many.
    """

    def __init__(
        self, path: Path, allowed: Callable[[int], bool], kernel: Kernel | None = None
    ) -> None:
        self.path = path
        self._allowed = allowed
        self._kernel = kernel or Kernel()
        self._let_go: weakref.finalize[..., HeldFile] | None = None
        self._thread: threading.Thread | None = None

    def hold(self, after: float = HOLD_AFTER) -> None:
        """From ``after`` seconds on, in the background, until ``release`` or until nobody has this
        object any more. Where it cannot be, nothing happens."""
        if self._let_go is not None and self._let_go.alive:
            return
        over = threading.Event()
        self._thread = threading.Thread(
            target=_hold, args=(self.path, self._allowed, self._kernel, after, over),
            name="hold-host", daemon=True,
        )  # fmt: skip
        self._let_go = weakref.finalize(self, over.set)
        self._let_go.atexit = False
        self._thread.start()

    def release(self) -> threading.Thread | None:
        """Leave the file to the system; the thread that still unmaps it, if any."""
        if self._let_go is None or not self._let_go.alive:
            return None
        self._let_go()
        return self._thread

    def drop(self) -> None:
        """Release it, and have the system forget it, in the background: what is not on the disk
        yet is written there first."""
        self.release()
        threading.Thread(
            target=_drop, args=(self.path, self._thread), name="leave-host", daemon=True
        ).start()


def _hold(
    path: Path,
    allowed: Callable[[int], bool],
    kernel: Kernel,
    after: float,
    over: threading.Event,
) -> None:
    if over.wait(after):
        return
    with suppress(OSError):  # it is gone
        size = path.stat().st_size
        if not size or not allowed(size):
            return
        with path.open("rb") as stream:
            address = kernel.mmap(0, size, PROT_READ, MAP_SHARED, stream.fileno())
        try:
            for start in range(0, size, HOLD_STEP):
                if over.is_set():
                    return
                _keep(kernel, address + start, min(HOLD_STEP, size - start))
            over.wait()
        finally:
            kernel.munmap(address, size)


def _keep(kernel: Kernel, address: int, length: int) -> None:
    try:
        kernel.mlock(address, length)
    except OSError:
        kernel.madvise(address, length, MADV_POPULATE_READ)


def _drop(path: Path, before: threading.Thread | None) -> None:
    if before is not None:
        before.join()
    with suppress(OSError):  # it is gone, or on a file system that cannot
        drop_from_page_cache(path)
