"""The system calls of paged memory on Linux, as plain methods that raise OSError.

Knows nothing of pages, pools or models: addresses and lengths in bytes go in, the kernel's answers
come out. Tests hand back ends a subclass to make one call fail.
"""

from __future__ import annotations

import ctypes
import os
import sys
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

from tenfold.core.errors import ConfigError

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2

MAP_SHARED, MAP_PRIVATE, MAP_FIXED = 0x01, 0x02, 0x10
MAP_ANONYMOUS, MAP_NORESERVE = 0x20, 0x4000

MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4

MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE = 4, 14, 15
MADV_POPULATE_READ, MADV_POPULATE_WRITE = 22, 23

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 0x01, 0x02

_HUGE_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")


def require_linux(what: str) -> None:
    """Raises ConfigError anywhere but on 64-bit Linux; ``what`` is what was asked for."""
    if not sys.platform.startswith("linux") or sys.maxsize < 2**32:
        raise ConfigError(
            f"{what} needs 64-bit Linux (mmap, madvise, /proc); this is {sys.platform!r}. "
            "Tenfold runs on Linux on x86-64 and aarch64."
        )


class Kernel:
    """This process's door to the kernel. Every failed call raises OSError with its errno."""

    def __init__(self) -> None:
        require_linux("paged memory")
        # A handle of our own: setting argument types on a shared one would change it for others.
        libc = ctypes.CDLL(None, use_errno=True)
        size, pointer, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
        libc.mmap.argtypes = [pointer, size, number, number, number, ctypes.c_int64]
        libc.mmap.restype = pointer
        libc.munmap.argtypes = [pointer, size]
        libc.mremap.argtypes = [pointer, size, size, number, pointer]
        libc.mremap.restype = pointer
        libc.mprotect.argtypes = [pointer, size, number]
        libc.madvise.argtypes = [pointer, size, number]
        libc.mlock.argtypes = [pointer, size]
        libc.mincore.argtypes = [pointer, size, pointer]
        libc.fallocate.argtypes = [number, number, ctypes.c_int64, ctypes.c_int64]
        self._libc = libc
        self.system_page = os.sysconf("SC_PAGE_SIZE")

    def mmap(
        self, address: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0
    ) -> int:
        got = self._libc.mmap(address, length, prot, flags, fd, offset)
        if got is None or got == ctypes.c_void_p(-1).value:
            self._fail(f"mmap of {length} bytes")
        return int(got)

    def munmap(self, address: int, length: int) -> None:
        if self._libc.munmap(address, length):
            self._fail("munmap")

    def mremap(self, address: int, length: int, flags: int, target: int) -> None:
        """Move the memory behind a range to another."""
        got = self._libc.mremap(address, length, length, flags, target)
        if got is None or got == ctypes.c_void_p(-1).value:
            self._fail(f"mremap of {length} bytes")

    def mprotect(self, address: int, length: int, prot: int) -> None:
        if self._libc.mprotect(address, length, prot):
            self._fail("mprotect")

    def madvise(self, address: int, length: int, advice: int) -> None:
        if self._libc.madvise(address, length, advice):
            self._fail(f"madvise({advice}) of {length} bytes")

    def mlock(self, address: int, length: int) -> None:
        """Bring the range into memory and keep it there until it is unmapped."""
        if self._libc.mlock(address, length):
            self._fail(f"mlock of {length} bytes")

    def mincore(self, address: int, length: int, pages: int) -> bytes:
        """A byte for each of the system's pages there; its lowest bit: the page is in memory."""
        held = ctypes.create_string_buffer(pages)
        if self._libc.mincore(address, length, held):
            self._fail(f"mincore of {length} bytes")
        return held.raw

    def punch(self, fd: int, offset: int, length: int) -> None:
        """Give a file's bytes back to the system and leave a hole; its size stays."""
        mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        if self._libc.fallocate(fd, mode, offset, length):
            self._fail(f"punching a hole of {length} bytes")

    def zero(self, address: int, length: int) -> None:
        ctypes.memset(address, 0, length)

    def huge_page_bytes(self) -> int:
        """Size of a transparent huge page; 0 where the kernel has none."""
        try:
            return int(_HUGE_SIZE.read_text())
        except (OSError, ValueError):
            return 0

    def max_map_count(self) -> int:
        """How many mappings the kernel allows this process (``vm.max_map_count``)."""
        return int(_MAX_MAP_COUNT.read_text())

    def mapping_count(self, but: Iterable[tuple[int, int]] = ()) -> int:
        """How many mappings this process has now, without those inside the spans ``but``."""
        with open("/proc/self/maps", "rb") as maps:
            lines = maps.read().splitlines()
        if not (spans := sorted(but)):
            return len(lines)
        starts = [start for start, _ in spans]
        found = 0
        for line in lines:
            address = int(line[: line.index(b"-")], 16)
            at = bisect_right(starts, address) - 1
            found += at < 0 or address >= spans[at][1]
        return found

    def smaps(self) -> bytes:
        """The kernel's account of every mapping of this process."""
        with open("/proc/self/smaps", "rb") as smaps:
            return smaps.read()

    def _fail(self, what: str) -> None:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
