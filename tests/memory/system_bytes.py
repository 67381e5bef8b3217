"""What the operating system counts: memory of a process, memory files, and when they are gone."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

GONE_SECONDS = 1.0
"""So soon the system must have the bytes of a killed process back: that is the requirement."""


def resident(pid: int, kinds: str = "Anon|Shmem") -> int:
    """Bytes that the process has of memory that is no file's on a disk; 0 once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(kib) << 10 for kib in re.findall(rf"Rss(?:{kinds}):\s+(\d+) kB", status))


def shared_memory() -> int:
    """Bytes of memory files in the whole system."""
    found = re.search(r"Shmem:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert found
    return int(found[1]) << 10


def gone_in_time(left: Callable[[], int]) -> bool:
    """Whether ``left`` comes to be 0 or less; a look that began in time is the last one."""
    end = time.monotonic() + GONE_SECONDS
    while True:
        late = time.monotonic() > end
        if left() <= 0:
            return True
        if late:
            return False
