"""Worker processes: they serve, they die, they come back, and only their own requests notice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from socket import socketpair

import pytest

from fleet.services import device, serving, tiny, want
from tenfold.client.base import collect
from tenfold.core import wire
from tenfold.core.errors import ConfigError, Unavailable, WorkerLost
from tenfold.core.messages import Abort, Command
from tenfold.core.settings import DeviceSettings
from tenfold.fleet.service import Service
from tenfold.fleet.workers import InlineWorker, LocalWorker, Worker

TWO = [device("cpu:0"), device("cpu:1")]


def _kill(service: Service, name: str) -> None:
    up = service.supervisors[name].up
    assert up is not None
    os.kill(up.pid, signal.SIGKILL)


def test_a_dead_worker_costs_only_those_it_was_answering(tmp_path: Path) -> None:
    async def run() -> None:
        models = [
            tiny(tmp_path, name="a", device="cpu:0"),
            tiny(tmp_path, name="b", device="cpu:1"),
        ]
        one_at_a_time = [device("cpu:0", max_running=1), device("cpu:1")]
        async with serving(models, one_at_a_time, make_worker=LocalWorker) as service:
            expected = (await collect(service.generate(want("wait", 12, "a")))).choices[0].token_ids
            talking = service.generate(want("talk", 480, "a"))
            await anext(talking)
            queued = asyncio.create_task(collect(service.generate(want("wait", 12, "a"))))
            elsewhere = asyncio.create_task(collect(service.generate(want("b", 400, "b"))))
            while len(service.queue()) < 3:
                await asyncio.sleep(0.001)
            _kill(service, "cpu:0")
            with pytest.raises(WorkerLost):
                while True:
                    await anext(talking)
            assert (await queued).choices[0].token_ids == expected
            assert len((await elsewhere).choices[0].token_ids) == 400
            assert service.supervisors["cpu:0"].restarts == 1
            assert service.supervisors["cpu:1"].restarts == 0
            for stats in await service.stats():
                assert stats.integrity == []

    asyncio.run(run())


def test_a_worker_that_stays_away_is_a_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenfold.fleet.dispatch.RETURN_SECONDS", 0.2)
    monkeypatch.setattr("tenfold.fleet.supervisor.BACKOFF_SECONDS", (60.0,))

    async def run() -> None:
        async with serving([tiny(tmp_path)], make_worker=LocalWorker) as service:
            _kill(service, "cpu:0")
            while service.supervisors["cpu:0"].up is not None:
                await asyncio.sleep(0.01)
            assert not service.ready() and service.status("tiny").state == "loading"
            with pytest.raises(Unavailable, match="did not come back"):
                await collect(service.generate(want("x")))
            assert service.queue() == []

    asyncio.run(run())


@pytest.mark.parametrize("make_worker", [LocalWorker, InlineWorker])
def test_settings_that_no_device_can_have_are_told_once(
    tmp_path: Path, make_worker: Callable[[DeviceSettings], Worker]
) -> None:
    async def run() -> None:
        odd = [device(page_bytes=1000)]
        with pytest.raises(ConfigError, match="page_bytes is 1000"):
            async with serving([tiny(tmp_path)], odd, make_worker=make_worker):
                pass

    asyncio.run(run())


def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from fleet.services import device, serving\n"
        "from tenfold.fleet.workers import LocalWorker\n"
        "async def run():\n"
        "    async with serving([], make_worker=LocalWorker) as service:\n"
        "        while service.supervisors['cpu:0'].up is None: await asyncio.sleep(0.01)\n"
        "        print(service.supervisors['cpu:0'].up.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(run())\n"
    )
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    watch = os.pidfd_open(worker)
    parent.kill()
    parent.wait()
    import select

    assert select.select([watch], [], [], 10)[0], "the worker outlived its parent"
    os.close(watch)


def test_stopping_leaves_no_process_and_no_descriptor(tmp_path: Path) -> None:
    async def run() -> None:
        model = tiny(tmp_path)
        before = len(os.listdir("/proc/self/fd"))
        async with serving([model], make_worker=LocalWorker) as service:
            worker = service.supervisors["cpu:0"].worker
            assert isinstance(worker, LocalWorker) and worker.pid is not None
            pid = worker.pid
            assert len(os.listdir("/proc/self/fd")) > before
        assert len(os.listdir("/proc/self/fd")) == before
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(run())


def test_a_worker_does_not_stand_back_as_its_server_does(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)], make_worker=LocalWorker) as service:
            up = service.supervisors["cpu:0"].up
            assert up is not None and os.sched_getscheduler(up.pid) == os.SCHED_OTHER

    before = os.sched_getscheduler(0)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        asyncio.run(run())
    finally:
        os.sched_setscheduler(0, before, os.sched_param(0))


def test_the_control_plane_never_imports_torch(tmp_path: Path) -> None:
    """A process that runs a service with a worker process beside it stays without torch."""
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from fleet.services import serving, tiny, want\n"
        "from tenfold.client.base import collect\n"
        "from tenfold.fleet.workers import LocalWorker\n"
        "async def run():\n"
        f"    async with serving([tiny(Path({str(tmp_path)!r}))], make_worker=LocalWorker) as s:\n"
        "        await collect(s.generate(want('x')))\n"
        "        print('torch' in sys.modules)\n"
        "asyncio.run(run())\n"
    )
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == ["False"]


class Narrow:
    """A socket that takes ``room`` bytes, and then none; the other end may be ``gone``."""

    def __init__(self, room: int) -> None:
        self.room, self.gone = room, False
        self.taken = b""

    def send(self, data: bytes) -> int:
        if self.gone:
            raise BrokenPipeError
        if data and not self.room:
            raise BlockingIOError
        part = data[: self.room]
        self.taken += part
        self.room -= len(part)
        return len(part)


class Watched:
    """An event loop's list of who wants to write."""

    def __init__(self) -> None:
        self.writer: Callable[[], None] | None = None

    def add_writer(self, socket: object, writer: Callable[[], None]) -> None:
        self.writer = writer

    def remove_writer(self, socket: object) -> None:
        self.writer = None


@pytest.mark.parametrize("room", [0, 30])
def test_commands_to_a_worker_that_takes_none_are_never_waited_for(room: int) -> None:
    """With a full pipe they are kept, in order, until there is room; gone, they are dropped."""
    worker, socket, loop = LocalWorker(device()), Narrow(room), Watched()
    worker._socket, worker._loop = socket, loop  # type: ignore[assignment]
    commands: list[Command] = [Abort(str(number)) for number in range(5)]
    everything = b"".join(wire.encode(command) for command in commands)
    for command in commands:
        worker.send(command)
    assert socket.taken == everything[:room] and worker._unsent == everything[room:]
    assert loop.writer is not None
    socket.room = 7
    loop.writer()
    assert socket.taken == everything[: room + 7] and loop.writer is not None
    socket.room = 1000
    loop.writer()
    assert socket.taken == everything and not worker._unsent and loop.writer is None
    socket.room = 0
    worker.send(commands[0])
    socket.gone = True
    assert loop.writer is not None
    loop.writer()
    assert not worker._unsent and loop.writer is None
    worker._socket = None
    worker.send(commands[0])
    assert not worker._unsent


def test_a_full_pipe_does_not_stop_the_sender() -> None:
    """The same over real sockets that nobody reads."""

    async def run() -> None:
        worker = LocalWorker(device())
        worker._socket, theirs = socketpair()
        worker._socket.setblocking(False)
        worker._loop = asyncio.get_running_loop()
        for _ in range(50):
            worker.send(Abort("x" * 100_000))
        assert len(worker._unsent) > 1_000_000
        theirs.close()
        worker._flush()
        assert not worker._unsent
        worker._loop.remove_writer(worker._socket)
        worker._socket.close()

    asyncio.run(run())
