"""Services over tiny real models, in process or with worker processes, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from models.tiny import make_tiny
from tenfold.client.base import Reply, ask, collect
from tenfold.core.messages import ModelOptions
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import SamplingParams
from tenfold.fleet.served import ModelSource
from tenfold.fleet.service import Service
from tenfold.fleet.types import GenerateRequest, TextPrompt
from tenfold.fleet.workers import InlineWorker, Worker
from tenfold.scheduling.admission import AdmissionController, Limits


def tiny(folder: Path, family: str = "llama", name: str = "tiny", **fields: object) -> ModelSource:
    path = folder / name
    if not path.exists():
        make_tiny(family, path)
    return ModelSource(name, str(path), ModelOptions(), **fields)  # type: ignore[arg-type]


def device(name: str = "cpu:0", **fields: object) -> DeviceSettings:
    values = {"memory_bytes": 32 << 20, "threads": 1, "page_bytes": 64 << 10, **fields}
    return DeviceSettings(name, **values)  # type: ignore[arg-type]


@asynccontextmanager
async def serving(
    models: list[ModelSource],
    devices: list[DeviceSettings] | None = None,
    *,
    limits: Limits | None = None,
    make_worker: Callable[[DeviceSettings], Worker] = InlineWorker,
) -> AsyncIterator[Service]:
    service = Service(
        devices or [device()],
        models,
        admission=AdmissionController(limits or Limits.unbounded()),
        make_worker=make_worker,
    )
    try:
        await service.start()
        yield service
    finally:
        await service.close()


def want(
    prompt: str | list[int], tokens: int = 8, model: str = "tiny", **fields: object
) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return ask(model, TextPrompt(prompt), sampling, **fields)


def begin(service: Service, request: GenerateRequest) -> asyncio.Task[Reply]:
    return asyncio.create_task(collect(service.generate(request)))


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop turn until it holds; where that takes long, without taking a whole core
    from the workers that it is about."""
    turns = count()
    async with asyncio.timeout(100):
        while not condition():
            await asyncio.sleep(0 if next(turns) < 500 else 0.001)
