"""kill -9 of one of two worker processes in a burst: memory, models and requests of both."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from fleet.services import device, tiny, until, want
from memory.system_bytes import gone_in_time, resident, shared_memory
from tenfold.client.base import collect
from tenfold.core.errors import WorkerLost
from tenfold.core.settings import PlacementSettings
from tenfold.fleet.service import Service
from tenfold.fleet.types import Delta, GenerateRequest
from tenfold.fleet.workers import LocalWorker
from tenfold.scheduling.admission import AdmissionController, Limits

LONG, SHORT = 460, 12
RUNNING, QUEUED = 3, 5
READY = 16 << 20
"""Bytes of pages that a worker keeps ready at the least."""


def asked(model: str) -> list[GenerateRequest]:
    """Two that are told as they come, one that is answered as a whole, and some that wait."""
    told = [want([5, n], LONG, model) for n in (3, 4)]
    short = [want([7, n], SHORT, model) for n in range(QUEUED)]
    return [*told, want([6, 6], LONG, model, whole=True), *short]


class Burst:
    """All that is ``asked`` of one model, under way: the long ones run, the others wait for them.
    ``heard``: what the clients of each of them have."""

    def __init__(self, service: Service, model: str) -> None:
        self.service, self.model = service, model
        self.heard: list[list[int]] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        for request in asked(self.model):
            self.heard.append([])
            self.tasks.append(asyncio.create_task(self._hear(request, self.heard[-1])))
            await until(lambda: len(self._states()) == len(self.tasks))
        await until(lambda: self.heard[0] and self.heard[1])
        await until(lambda: self._states().count("running") == RUNNING)

    async def _hear(self, request: GenerateRequest, into: list[int]) -> None:
        async for event in self.service.generate(request):
            if isinstance(event, Delta):
                into += event.token_ids

    def _states(self) -> list[str]:
        return [call.state for call in self.service.queue() if call.model == self.model]


def kill(victim: int, survivor: int, backend: str) -> None:
    """And see that its bytes are the system's again. Nothing else happens in this process
    meanwhile, so nobody has heard of it yet."""
    assert resident(victim) and resident(survivor)
    files = resident(victim, "Shmem")
    assert (files >= READY) == (backend == "memfd")
    # Others have such files as well, and they come and go.
    most = shared_memory() - files // 2
    os.kill(victim, signal.SIGKILL)
    assert gone_in_time(lambda: resident(victim))
    assert backend != "memfd" or gone_in_time(lambda: shared_memory() - most)
    assert resident(survivor)


async def check(service: Service, backend: str) -> None:
    at: dict[str, list[str]] = {}
    for status in service.models():
        at.setdefault(status.device, []).append(status.name)
    (gone, (busy, sleeper, held)), (stays, (other, dozer)) = sorted(
        at.items(), key=lambda item: -len(item[1])
    )
    pids = {name: service.worker(name).pid for name in at}
    expected = {}
    for model in (busy, other):
        replies = [await collect(service.generate(request)) for request in asked(model)]
        expected[model] = [reply.choices[0].token_ids for reply in replies]
    short = {name: await say(service, name) for name in (sleeper, held, dozer)}
    for name in short:
        await service.sleep(name, hold=name == held)
    waits = asyncio.create_task(say(service, held))
    bursts = [Burst(service, model) for model in (busy, other)]
    ours, theirs = bursts
    await ours.begin()
    os.kill(pids[gone], signal.SIGSTOP)  # it would be done before the other has begun
    await theirs.begin()
    assert all(len(seen) < LONG for seen in ours.heard)
    kill(pids[gone], pids[stays], backend)
    results = await asyncio.gather(*ours.tasks, *theirs.tasks, return_exceptions=True)
    assert [type(result) for result in results[:2]] == [WorkerLost] * 2
    assert results[2:] == [None] * (len(results) - 2)
    for number, full in enumerate(expected[busy]):
        seen = ours.heard[number]
        assert seen == full[: len(seen)] and (len(seen) < len(full)) == (number < 2)
    assert theirs.heard == expected[other]

    assert service.status(dozer).residency == {stays: "host"}
    assert service.status(held).held and not waits.done()
    await service.wake(held)
    assert await waits == short[held]
    assert "resident" not in service.status(sleeper).residency.values()
    for name in (sleeper, dozer):
        assert await say(service, name) == short[name]
        assert set(service.status(name).residency.values()) == {"resident"}
    assert (service.worker(stays).pid, service.worker(stays).restarts) == (pids[stays], 0)
    assert service.worker(gone).pid != pids[gone]
    assert service.queue() == []
    for stats in await service.stats():
        assert stats.integrity == []


async def say(service: Service, model: str) -> list[int]:
    reply = await collect(service.generate(want([8, 8, 8], SHORT, model)))
    return reply.choices[0].token_ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "placed"),
    [("memfd", True), ("anon", False)],
    ids=["models-go-elsewhere", "models-wait-for-it"],
)
def test_bytes_models_and_requests_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, placed: bool
) -> None:
    """Where models are placed, the other worker loads those of the dead one, which stays away here;
    else it is started again with them. Some sleep, and one of these may not be woken by requests
    and has one."""
    monkeypatch.setattr("tenfold.fleet.supervisor.BACKOFF_SECONDS", (60.0 if placed else 0.0,))
    devices = [
        device(
            name,
            memory_bytes=1 << 30,
            page_bytes=2 << 20,
            backend=backend,
            kernels_mode="exact",
            max_running=RUNNING,
        )
        for name in ("cpu:0", "cpu:1")
    ]
    homes = [None] * 5 if placed else ["cpu:0"] * 3 + ["cpu:1"] * 2
    service = Service(
        devices,
        [tiny(tmp_path, name=f"m{n}", device=home) for n, home in enumerate(homes)],
        admission=AdmissionController(Limits.unbounded()),
        placement=PlacementSettings("balanced" if placed else "replicate", period=1e6),
        make_worker=LocalWorker,
    )

    async def run() -> None:
        try:
            await service.start()
            await check(service, backend)
        finally:
            await service.close()

    asyncio.run(run())
