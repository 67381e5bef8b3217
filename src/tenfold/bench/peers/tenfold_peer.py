"""Tenfold as a peer: the service and a worker process as they are served, without HTTP.

Options: ``mode`` "exact" or "fast", ``arch`` an instruction set, or "" for the best. The KV cache
is bounded to the capacity that every peer is given, and its prefix cache is on. Runs in the
environment that Tenfold is measured in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from tenfold import __version__
from tenfold.client.base import ask
from tenfold.client.inprocess import InProcessClient
from tenfold.core.messages import ModelOptions
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import SamplingParams
from tenfold.fleet.served import ModelSource
from tenfold.fleet.service import Service
from tenfold.fleet.types import Delta, TextPrompt
from tenfold.fleet.workers import LocalWorker
from tenfold.scheduling.admission import AdmissionController, Limits


class Engine:
    """One service with one model and one device."""

    async def start(self, job: dict[str, Any]) -> dict[str, Any]:
        device = DeviceSettings(
            threads=job["threads"],
            kernels_mode=job["options"]["mode"],
            kernels_arch=job["options"]["arch"],
            max_running=max(64, job["streams"]),
            cache_dir=job["cache"],
        )
        limit = await self._kv_bytes_per_token(job, device) * job["capacity"]
        self.service = _service(job["model"], device, ModelOptions(kv_limit_bytes=limit))
        await self.service.start()
        self.client = InProcessClient(self.service)
        settings = {
            "weights": job["model"].rpartition("/")[2],
            "threads": job["threads"],
            "kernels_mode": device.kernels_mode,
            "kernels_arch": device.kernels_arch or "best",
            "kv_limit_bytes": limit,
            "prefix_caching": device.prefix_cache,
            "max_step_tokens": device.max_step_tokens,
            "itl_target": device.itl_target,
            "api": "service and worker process, without HTTP",
        }
        return {"version": __version__, "settings": settings, "weights": job["model"]}

    async def _kv_bytes_per_token(self, job: dict[str, Any], device: DeviceSettings) -> int:
        """What the worker says, asked of a service that is closed again; it warms the store too."""
        probe = _service(job["model"], device, ModelOptions())
        await probe.start()
        try:
            facts = probe.status("model").facts
            assert facts is not None
            return facts.kv_bytes_per_token
        finally:
            await probe.close()

    async def stream(self, prompt: list[int], output: int) -> AsyncIterator[list[int]]:
        sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        async for event in self.client.stream(ask("model", TextPrompt(prompt), sampling)):
            if isinstance(event, Delta) and event.token_ids:
                yield event.token_ids

    async def stop(self) -> None:
        await self.client.close()


def _service(path: str, device: DeviceSettings, options: ModelOptions) -> Service:
    return Service(
        [device],
        [ModelSource("model", path, options)],
        admission=AdmissionController(Limits.unbounded()),
        make_worker=LocalWorker,
    )
