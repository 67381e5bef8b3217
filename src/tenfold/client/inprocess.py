"""A client whose server is this process: the same service and engine, without HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from tenfold.client.base import Client
from tenfold.fleet.service import Service
from tenfold.fleet.types import GenerateEvent, GenerateRequest


class InProcessClient(Client):
    """Talks to a started ``Service`` of the same event loop. Closing it closes the service."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def stream(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        if request.sampling.constraint is not None:
            await self.service.check_constraint(request.sampling.constraint)
        async with aclosing(self.service.generate(request)) as events:
            async for event in events:
                yield event

    async def embed(self, model: str, texts: list[str]) -> list[list[float]]:
        return (await self.service.embed(model, texts, "local")).vectors

    async def models(self) -> list[str]:
        return [status.name for status in self.service.models()]

    async def close(self) -> None:
        await self.service.close()
