"""One policy over one workload on this machine: a service with a worker process of its own.

HTTP is left out, everything else is as served. Every run starts with an empty cache.
"""

from __future__ import annotations

from pathlib import Path

from tenfold.bench.fair.cells import RealCell, Rival
from tenfold.bench.fair.drive import Driver
from tenfold.client.inprocess import InProcessClient
from tenfold.core.messages import ModelOptions
from tenfold.core.settings import DeviceSettings
from tenfold.fleet.served import ModelSource
from tenfold.fleet.service import Service
from tenfold.fleet.workers import LocalWorker
from tenfold.fleet.workloads.outcome import Run
from tenfold.scheduling.admission import AdmissionController, Limits


async def run_real(
    path: Path, cell: RealCell, rival: Rival, seed: int, seconds: float, threads: int
) -> Run:
    """The workload for so long. Raises what the service raises when it cannot start."""
    settings = DeviceSettings(
        threads=threads,
        memory_bytes=2 << 30,
        max_running=cell.max_running,
        schedule=rival.schedule(),
    )
    source = ModelSource("model", str(path), ModelOptions(kv_limit_bytes=cell.kv_bytes))
    service = Service(
        [settings],
        [source],
        admission=AdmissionController(Limits.unbounded()),
        make_worker=LocalWorker,
    )
    await service.start()
    try:
        calls = cell.workload.calls(seed, seconds)
        return await Driver(InProcessClient(service), "model").drive(calls, seconds)
    finally:
        await service.close()
