"""``tenfold serve`` as a process of its own, for tests: started, asked over sockets, stopped.

Nothing of Tenfold runs in the test's own process but plain clients.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

import tenfold

T = TypeVar("T")

PATIENCE = 100.0
"""Seconds after which a test gives up waiting. Nothing should ever take a tenth of it."""

SMALL = ("device.memory=96MiB", "device.page_bytes=64KiB", "device.threads=1")
"""A device that fits tiny models and shows a leaked page."""

_SOURCE = str(Path(tenfold.__file__).parents[1])


def until(true: Callable[[], T], what: str) -> T:
    """The first true value, asked for again and again. Fails the test where none comes."""
    end = time.monotonic() + PATIENCE
    while not (value := true()):
        assert time.monotonic() < end, f"waited {PATIENCE:g} s for this: {what}"
        time.sleep(0.01)
    return value


def environment(home: Path, **more: str) -> dict[str, str]:
    """What a program is started with: its own store, no proxy, nothing of the user's settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TENFOLD_")}
    return {
        **kept,
        "PYTHONPATH": _SOURCE,
        "TENFOLD_HOME": str(home),
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        **more,
    }


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "tenfold.cli.main", *words]


def tenfold_run(home: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """One ``tenfold`` command to its end, without a terminal."""
    env = environment(home, **more.pop("env", {}))
    return subprocess.run(
        command(*words),
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **more,
    )


def children(pid: int) -> list[int]:
    """Processes whose parent is ``pid``."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


class Server:
    """A running ``tenfold serve``. ``stdout`` and ``stderr`` go to files in ``folder``."""

    def __init__(
        self,
        folder: Path,
        home: Path,
        models: Mapping[str, Path],
        *sets: str,
        words: tuple[str, ...] = (),
    ) -> None:
        self.told = False
        self.scratch = folder / "tmp"
        self.scratch.mkdir(parents=True)
        self.out, self.err = folder / "stdout", folder / "stderr"
        settings = [word for pair in sets for word in ("--set", pair)]
        named = [f"{name}={path}" for name, path in models.items()]
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                command("serve", *named, "--port", "0", *settings, *words),
                env=environment(home, TMPDIR=str(self.scratch)),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def await_ready(self) -> Server:
        """Wait for the one line."""
        until(lambda: "\n" in self.out.read_text() or self.process.poll() is not None, "ready line")
        line = self.out.read_text().splitlines()[:1]
        assert line and line[0].startswith("Tenfold is ready at http://"), self.err.read_text()
        self.url = line[0].split()[4]
        self.port = int(self.url.rpartition(":")[2])
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False)
        return self

    # --- asking ---------------------------------------------------------------------------------
    def get(self, path: str) -> Any:
        reply = self.http.get(path)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def post(self, path: str, **body: Any) -> Any:
        reply = self.http.post(path, json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def complete(self, model: str, prompt: str | list[int], tokens: int = 8, **body: Any) -> str:
        """Greedy text of exactly ``tokens`` tokens."""
        fields = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, **body}
        text: str = self.post("/v1/completions", model=model, prompt=prompt, **fields)["choices"][
            0
        ]["text"]
        return text

    def ready(self) -> bool:
        return self.http.get("/ready").status_code == 200

    # --- looking inside -------------------------------------------------------------------------
    @property
    def worker(self) -> int:
        """The worker's process id."""
        (pid,) = until(lambda: children(self.process.pid), "a worker process")
        return pid

    def device(self) -> dict[str, Any]:
        (device,) = self.get("/v1/admin/stats")["data"]
        return dict(device)

    def queue(self) -> list[dict[str, Any]]:
        return list(self.get("/v1/admin/queue")["data"])

    def settled(self) -> dict[str, Any]:
        """The device's state once nothing is left to do: no block in use, and nothing wrong."""
        until(lambda: not self.queue(), "an empty queue")
        known = self.device()["id"]  # what is told may be half a second old

        def idle() -> dict[str, Any] | None:
            device = self.device()
            busy = any(
                m["running"] or m["waiting"] or m["kv_blocks_used"] for m in device["models"]
            )
            return None if busy or device["id"] == known else device

        device = until(idle, "an idle device without a block in use")
        assert device["integrity"] == []
        return device

    # --- ending ---------------------------------------------------------------------------------
    def signal(self, number: int) -> None:
        self.told = True
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """End it. It must have lived until told, and leaves neither a process nor a folder."""
        assert self.told or self.process.poll() is None, self.err.read_text()[-5000:]
        if hasattr(self, "http"):
            self.http.close()
        workers = children(self.process.pid)
        try:
            self.stop()
        finally:
            self.process.kill()
            self.process.wait()
        for worker in workers:
            until(lambda pid=worker: not Path(f"/proc/{pid}").exists(), "the worker's end")
        assert list(self.scratch.iterdir()) == []


@contextmanager
def serve(
    folder: Path, home: Path, models: Mapping[str, Path], *sets: str, words: tuple[str, ...] = ()
) -> Iterator[Server]:
    """A server for a ``with`` block, ready at its beginning."""
    server = Server(folder, home, models, *sets, words=words)
    try:
        yield server.await_ready()
    finally:
        server.close()
