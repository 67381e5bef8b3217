"""Two processes with pools, one of them killed: the system has its bytes back at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from memory.system_bytes import gone_in_time, resident, shared_memory

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
    files = shared_memory() - HELD // 2  # others have such files as well, and they come and go
    os.kill(killed.pid, signal.SIGKILL)
    assert gone_in_time(lambda: resident(killed.pid))
    assert name != "memfd" or gone_in_time(lambda: shared_memory() - files)
    assert resident(other.pid) >= HELD
    assert other.stdin and other.stdout
    other.stdin.write("look\n")
    other.stdin.flush()
    assert other.stdout.readline() == "[9] []\n"
