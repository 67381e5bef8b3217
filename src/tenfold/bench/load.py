"""The load generator: sends a workload to a client and writes down when every token came.

Open loop: requests leave at their own times, whether or not earlier ones have answered, so a slow
server cannot slow the load down. Closed loop: a fixed number is in flight.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tenfold.bench.workload import Ask
from tenfold.client.base import Client, ask
from tenfold.core.errors import TenfoldError
from tenfold.core.types import SamplingParams
from tenfold.fleet.types import ChatPrompt, Delta, Finished, TextPrompt

Progress = Callable[[int], None]


@dataclass(slots=True)
class Record:
    """One request as its client saw it. Times are seconds since the run began."""

    client: str
    due: float
    sent: float = 0.0
    token_times: list[float] = field(default_factory=list)
    done: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    error: str = ""

    @property
    def ttft(self) -> float:
        """Seconds from when the request was due to its first token: queueing is not hidden."""
        return self.token_times[0] - self.due

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.token_times, self.token_times[1:], strict=False)]


class LoadGenerator:
    """Runs workloads against one model of one server. ``chat`` wraps prompts as user messages."""

    def __init__(self, client: Client, model: str, *, chat: bool = False, seed: int = 0) -> None:
        self.client = client
        self.model = model
        self.chat = chat
        self.seed = seed

    async def run(
        self, asks: list[Ask], *, concurrency: int | None = None, progress: Progress | None = None
    ) -> list[Record]:
        """Send everything; ``concurrency`` set makes it a closed loop. Records are in order."""
        began = time.perf_counter()
        gate = asyncio.Semaphore(concurrency) if concurrency else None
        done = 0

        async def one(item: Ask) -> Record:
            nonlocal done
            if gate is None:
                await asyncio.sleep(began + item.at - time.perf_counter())
                record = await self._send(item, began, item.at)
            else:
                async with gate:
                    record = await self._send(item, began, time.perf_counter() - began)
            done += 1
            if progress is not None:
                progress(done)
            return record

        return list(await asyncio.gather(*(one(item) for item in asks)))

    async def _send(self, item: Ask, began: float, due: float) -> Record:
        record = Record(item.client, due)
        prompt = (
            ChatPrompt([{"role": "user", "content": item.prompt}])
            if self.chat
            else TextPrompt(item.prompt)
        )
        sampling = SamplingParams(
            max_tokens=item.max_tokens, temperature=0.0, ignore_eos=True, seed=self.seed
        )
        record.sent = time.perf_counter() - began
        try:
            async for event in self.client.stream(ask(self.model, prompt, sampling)):
                now = time.perf_counter() - began
                if isinstance(event, Delta) and (event.text or event.token_ids):
                    record.token_times.append(now)
                elif isinstance(event, Finished):
                    record.prompt_tokens = event.usage.prompt_tokens
                    record.output_tokens = event.usage.completion_tokens
                    record.cached_tokens = event.usage.cached_tokens
        except TenfoldError as error:
            record.error = f"{error.code}: {error.message}"
        record.done = time.perf_counter() - began
        if not record.error and not record.token_times:
            record.error = "no_output: the stream ended without a token"
        return record
