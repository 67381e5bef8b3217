"""Two processes with pools, one of them killed: the system has its bytes back at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = """
import sys, torch
from tenfold.memory.backends import open_backend
from tenfold.memory.pool import PagePool
from tenfold.memory.watermarks import Watermarks

pool = PagePool(open_backend(sys.argv[1]), 40)
marks = Watermarks(pool, 1, 2)
one = pool.create("a", "kv-global", 64 << 20)
assert one.map_all()
view = one.view((64 << 20,), torch.uint8)
view.fill_(int(sys.argv[2]))
print("full", flush=True)
for line in sys.stdin:
    print(view.unique().tolist(), pool.check(), flush=True)
"""
HELD = 64 << 20


def resident(pid: int) -> int:
    """Bytes that the process has of memory that is no file's on a disk; 0 once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(kib) << 10 for kib in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", status))


def shared_memory() -> int:
    """Bytes of memory files in the whole system."""
    found = re.search(r"Shmem:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert found
    return int(found[1]) << 10


@pytest.fixture
def workers(name: str) -> Iterator[list[subprocess.Popen[str]]]:
    pipe = subprocess.PIPE
    made = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, name, str(mark)], stdin=pipe, stdout=pipe, text=True
        )
        for mark in (7, 9)
    ]
    for one in made:
        assert one.stdout and one.stdout.readline() == "full\n"
    yield made
    for one in made:
        one.kill()
        one.communicate()


def test_the_system_has_the_bytes_of_a_killed_process_back_within_a_second(name, workers):
    killed, other = workers
    assert resident(killed.pid) >= HELD and resident(other.pid) >= HELD
    before = shared_memory()
    os.kill(killed.pid, signal.SIGKILL)
    deadline = time.monotonic() + 1.0
    while resident(killed.pid) or (name == "memfd" and before - shared_memory() < HELD // 2):
        assert time.monotonic() < deadline, (resident(killed.pid), before - shared_memory())
    assert resident(other.pid) >= HELD
    assert other.stdin and other.stdout
    other.stdin.write("look\n")
    other.stdin.flush()
    assert other.stdout.readline() == "[9] []\n"
