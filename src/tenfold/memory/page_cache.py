"""A file's bytes in the system's page cache: how many are there, and bringing or dropping them.

This is what lies between "on disk" and "in the host's memory" for a model that sleeps. Does not
know what the file holds.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from tenfold.memory.linux import MAP_SHARED, PROT_READ, Kernel


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
