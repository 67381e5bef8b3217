"""One policy over one cell on this machine: a service with a worker process of its own.

HTTP is left out, everything else is as served. Every run starts with an empty cache.
"""

from __future__ import annotations

from heapq import merge
from pathlib import Path

from tenfold.bench.fair.cells import Cell, Rival
from tenfold.bench.fair.drive import Driver
from tenfold.client.inprocess import InProcessClient
from tenfold.core.messages import ModelOptions
from tenfold.core.settings import DeviceSettings
from tenfold.fleet.served import ModelSource
from tenfold.fleet.service import Service
from tenfold.fleet.workers import LocalWorker
from tenfold.fleet.workloads.outcome import Run
from tenfold.scheduling.admission import AdmissionController, Limits


async def run_real(path: Path, cell: Cell, rival: Rival, seed: int, threads: int) -> Run:
    """The cell for as long as it says. Raises what the service raises when it cannot start."""
    settings = DeviceSettings(
        threads=threads,
        memory_bytes=2 << 30,
        max_running=cell.max_running,
        schedule=rival.schedule(),
    )
    service = Service(
        [settings],
        [ModelSource("model", str(path), ModelOptions(kv_limit_bytes=cell.kv_bytes))],
        admission=AdmissionController(Limits.unbounded()),
        make_worker=LocalWorker,
    )
    await service.start()
    try:
        streams = [
            workload.calls(1000 * seed + number, cell.seconds)
            for number, workload in enumerate(cell.workloads)
        ]
        calls = merge(*streams, key=lambda call: call.at)
        return await Driver(InProcessClient(service), "model").drive(calls, cell.seconds)
    finally:
        await service.close()
