"""A peer's process as the comparison holds it: asked in JSON lines, stopped while others run."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tenfold.bench.sidebyside.tree import PeakPss, end_session, send
from tenfold.core.errors import TenfoldError

QUIT_SECONDS = 20.0
LAST_WORDS = 400
LOOK_SECONDS = 0.5


class PeerFailed(TenfoldError):
    """A peer answered with an error, ended, or did not answer in time."""

    code = "peer_failed"


class PeerProcess:
    """One started engine. ``log``: where what it prints goes. Close it, whatever happens."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name = name
        self.log = log
        self.paused = False
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as stderr:
            # A session of its own: an interrupt at the terminal is for us, and we close the peers.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
                start_new_session=True,
            )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def ask(self, do: str, timeout: float, **job: Any) -> dict[str, Any]:
        """Send a job and wait for its answer. Raises PeerFailed; the peer may be dead then."""
        self.resume()
        assert self._process.stdin is not None
        with suppress(OSError):  # whoever has ended is found out below
            self._process.stdin.write(json.dumps({"do": do, **job}) + "\n")
            self._process.stdin.flush()
        line = self._next_line(do, timeout)
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            raise PeerFailed(f"{self.name} failed at {do}: {answer['error']}")
        return answer

    def _next_line(self, do: str, timeout: float) -> str:
        """Also looks whether the peer lives: a child of a dead one may hold the pipe open."""
        until = time.monotonic() + timeout
        while True:
            ended = self._process.poll()
            with suppress(queue.Empty):
                wait = min(LOOK_SECONDS, until - time.monotonic()) if ended is None else 0.0
                if line := self._lines.get(timeout=max(0.0, wait)):
                    return line
                ended = self._process.wait()
            if ended is not None:
                raise PeerFailed(f"{self.name} ended with code {ended}: {self.last_words()}")
            if time.monotonic() >= until:
                raise PeerFailed(f"{self.name} did not answer {do} in {timeout:.0f} s")

    def last_words(self) -> str:
        """The end of what it printed."""
        return " ".join(self.log.read_text(errors="replace")[-LAST_WORDS:].split())

    def pause(self) -> None:
        """Stop the whole tree, so that it cannot take a core from whoever is measured."""
        if not self.paused:
            send(self.pid, signal.SIGSTOP)
            self.paused = True

    def resume(self) -> None:
        if self.paused:
            send(self.pid, signal.SIGCONT)
            self.paused = False

    def peak(self) -> PeakPss:
        return PeakPss(self.pid)

    def close(self) -> None:
        """Ask it to quit; after a while end the tree, of which nothing stays behind."""
        with suppress(PeerFailed):
            self.ask("quit", QUIT_SECONDS)
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=QUIT_SECONDS / 2)
        end_session(self.pid)
        self._process.wait()
