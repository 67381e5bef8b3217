"""A process and all below it: who they are, how much memory they hold, stopping and going on.

Linux only (``/proc``). Knows nothing of peers.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

SAMPLE_SECONDS = 0.05


def tree(pid: int) -> list[int]:
    """The process and its living descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                words = (entry / "stat").read_text().rpartition(")")[2].split()
                if words[0] != "Z":
                    children.setdefault(int(words[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def end_session(leader: int) -> None:
    """Kill all that belongs to the session a process was started to lead, orphans included."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                words = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(words[3]) == leader and words[0] != "Z":
                    os.kill(int(entry.name), signal.SIGKILL)


def send(pid: int, number: signal.Signals) -> None:
    """A signal to the whole tree; who has just ended is passed over."""
    for one in tree(pid):
        with suppress(ProcessLookupError):
            os.kill(one, number)


def pss_bytes(pid: int) -> int:
    """Proportional set size of the tree: a page shared by n processes counts 1/n for each."""
    total = 0
    for one in tree(pid):
        with suppress(OSError):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total


class PeakPss:
    """The largest ``pss_bytes`` of a tree while the block runs, by sampling."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, pss_bytes(self._pid))

    def __enter__(self) -> PeakPss:
        self.peak = pss_bytes(self._pid)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, pss_bytes(self._pid))
