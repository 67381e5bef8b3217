"""Tenfold as a peer: the ordinary service and a worker process, without HTTP.

usage: python -m tenfold.bench.peers.tenfold_peer MODEL.gguf THREADS
Every job clears nothing: prompts must differ from job to job, or the prefix cache would answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from tenfold import __version__
from tenfold.client.base import ask
from tenfold.client.inprocess import InProcessClient
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import SamplingParams
from tenfold.fleet.served import ModelSource
from tenfold.fleet.service import Service
from tenfold.fleet.types import Delta, TextPrompt
from tenfold.fleet.workers import LocalWorker
from tenfold.scheduling.admission import AdmissionController, Limits


async def _one(
    client: InProcessClient, prompt: list[int], output: int, began: float
) -> list[float]:
    sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
    times = []
    async for event in client.stream(ask("model", TextPrompt(prompt), sampling)):
        if isinstance(event, Delta) and event.token_ids:
            times += [time.perf_counter() - began] * len(event.token_ids)
    return times


async def _serve(path: str, threads: int) -> None:
    service = Service(
        [DeviceSettings(threads=threads, prefix_cache=False)],
        [ModelSource("model", path)],
        admission=AdmissionController(Limits.unbounded()),
        make_worker=LocalWorker,
    )
    await service.start()
    client = InProcessClient(service)
    print(json.dumps({"ready": True, "version": __version__}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        job: dict[str, Any] = json.loads(line)
        began = time.perf_counter()
        streams = [_one(client, prompt, job["output"], began) for prompt in job["prompts"]]
        print(json.dumps({"times": await asyncio.gather(*streams)}), flush=True)
    await client.close()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
