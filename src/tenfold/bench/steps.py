"""Where the time between two tokens of one stream goes, by a server's own counters.

One stream decodes; the counters of ``/metrics`` before and after say how much of each token's
time the worker spent in operations, between them, deciding, choosing and sending. What the server
process used of its processor meanwhile runs beside the worker, so it stands apart. Knows nothing of
engines.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field

import httpx

from tenfold.client.base import Client, ask
from tenfold.core.errors import TenfoldError
from tenfold.core.types import SamplingParams
from tenfold.fleet.types import Delta, TextPrompt

PARTS = ("kernels", "launch", "schedule", "sampling")
SERVER_REMEMBERS = 0.6
"""Seconds after which a server asks its workers for new numbers, and a little more."""
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


@dataclass(slots=True)
class StepParts:
    """Seconds a token, of the worker's thread but for ``server``, which runs beside it.

    ``rest``: what is left of the time between tokens: reading commands, waiting for a core."""

    tokens: int
    between_tokens: float
    parts: dict[str, float] = field(default_factory=dict)
    server: float = 0.0

    @property
    def kernel_share(self) -> float:
        return self.parts["kernels"] / self.between_tokens


def read_metrics(page: str) -> dict[tuple[str, str], float]:
    """Samples of a Prometheus page by name and label text."""
    found = {}
    for line in page.splitlines():
        if match := _SAMPLE.match(line):
            found[match[1], match[2] or ""] = float(match[3])
    return found


async def step_parts(
    client: Client, url: str, key: str | None, model: str, *, prompt: int = 128, output: int = 128
) -> StepParts:
    """Decode one stream and read the counters around its tokens but the first few."""
    await asyncio.sleep(SERVER_REMEMBERS)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers) as http:

        async def counters() -> tuple[float, dict[str, float]]:
            page = (await http.get("/metrics")).raise_for_status().text
            return time.perf_counter(), _counters(read_metrics(page), model)

        salt = time.time_ns() % 20_000
        words = TextPrompt([1000 + (salt + 7 * i) % 30_000 for i in range(prompt)])
        sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        before: tuple[float, dict[str, float]] | None = None
        count = 0
        async for event in client.stream(ask(model, words, sampling)):
            count += isinstance(event, Delta)
            if count == 8 and before is None:
                before = await counters()
        after = await counters()
    if before is None:
        raise TenfoldError(f"{model} sent {count} pieces of text, too few to measure; raise output")
    return _parts(before, after)


def _counters(samples: dict[tuple[str, str], float], model: str) -> dict[str, float]:
    mine = f'model="{model}"'
    found = {"steps": 0.0, "messages": 0.0, "server": 0.0}
    for (name, labels), value in samples.items():
        if name == "tenfold_step_part_seconds_total" and mine in labels:
            part = next(p for p in PARTS if f'part="{p}"' in labels)
            found[part] = found.get(part, 0.0) + value
        elif name == "tenfold_steps_total" and mine in labels:
            found["steps"] += value
        elif name == "tenfold_message_seconds_total":
            found["messages"] += value
        elif name == "tenfold_server_cpu_seconds_total":
            found["server"] += value
    return found


def _parts(
    before: tuple[float, dict[str, float]], after: tuple[float, dict[str, float]]
) -> StepParts:
    seconds = after[0] - before[0]
    spent = {name: after[1][name] - before[1].get(name, 0.0) for name in after[1]}
    steps = max(1, round(spent.pop("steps")))
    server = spent.pop("server") / steps
    parts = {name: spent[name] / steps for name in (*PARTS, "messages")}
    parts["rest"] = max(0.0, seconds / steps - sum(parts.values()))
    return StepParts(steps, seconds / steps, parts, server)
