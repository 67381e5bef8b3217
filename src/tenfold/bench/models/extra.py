"""What is measured beside the curves: waking, and the price of elastic memory where nothing moves.

Does not know what the numbers are compared with.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tenfold.bench.fair.drive import Driver
from tenfold.bench.models.modes import Mode
from tenfold.bench.models.point import Before, Machine, device_stats, serving
from tenfold.client.base import ask
from tenfold.client.inprocess import InProcessClient
from tenfold.core.messages import SleepModel
from tenfold.core.types import SamplingParams
from tenfold.fleet.service import Service
from tenfold.fleet.types import Delta, TextPrompt
from tenfold.fleet.workloads.base import Call, Workload
from tenfold.fleet.workloads.plain import Plain
from tenfold.fleet.workloads.prompt import Words

WAKE_PROMPT = 32
"""Tokens of the prompts that wake a model."""


@dataclass(slots=True)
class Wakes:
    """Seconds to the first token, round by round: of a model that is awake, and of the same model
    asleep with its weights in the host's memory. ``engine``: what the engine says waking took."""

    weights: int
    awake: list[float]
    asleep: list[float]
    engine: list[float]

    @property
    def beyond(self) -> list[float]:
        """What sleeping adds, round by round."""
        return [slow - quick for quick, slow in zip(self.awake, self.asleep, strict=True)]

    def to_json(self) -> dict[str, Any]:
        beyond = self.beyond
        return asdict(self) | {
            "beyond_p50": float(np.median(beyond)),
            "beyond_worst": max(beyond),
            "awake_p50": float(np.median(self.awake)),
        }


def measure_wakes(
    machine: Machine, mode: Mode, rounds: int, before: Before
) -> Iterator[tuple[str, Wakes]]:
    """Every member of the fleet by itself, put to sleep and asked, by turns with being asked
    awake."""
    for member in machine.fleet:
        yield member.name, asyncio.run(_wakes(machine, mode, member.name, rounds, before))


async def _wakes(machine: Machine, mode: Mode, name: str, rounds: int, before: Before) -> Wakes:
    device = machine.device(machine.ample, mode)
    async with serving(machine, device, [machine.sources[name]]) as service:
        facts = service.status(name).facts
        assert facts is not None
        words, modulus = Words(1), machine.vocabularies.get(name, 0)
        found = Wakes(facts.weight_bytes, [], [], [])

        async def first() -> float:
            tokens = words.tokens(WAKE_PROMPT)
            prompt = (3 + tokens % (modulus - 3) if modulus else tokens).tolist()
            return await first_token(service, name, prompt)

        await first()
        before(f"waking {name}")
        for _ in range(rounds):
            found.awake.append(await first())
            await put_to_sleep(service, name)
            found.asleep.append(await first())
            [stats] = (await device_stats(service)).models
            found.engine.append(stats.wake_seconds)
        return found


async def put_to_sleep(service: Service, name: str, seconds: float = 30.0) -> None:
    """Send it to sleep and wait until it is. Raises TimeoutError."""
    [supervisor] = service.supervisors.values()
    supervisor.send(SleepModel(name, force=True))
    async with asyncio.timeout(seconds):
        while True:
            stats = await device_stats(service)
            [mine] = [one for one in stats.models if one.name == name]
            if mine.residency in ("host", "cold"):
                return
            await asyncio.sleep(0.02)


async def first_token(service: Service, model: str, prompt: list[int]) -> float:
    """Seconds until the first token of an answer of one."""
    sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    request = ask(model, TextPrompt(prompt), sampling)
    began, seen = time.perf_counter(), 0.0
    async for event in InProcessClient(service).stream(request):
        if isinstance(event, Delta) and event.token_ids and not seen:
            seen = time.perf_counter() - began
    return seen


# --- constant load ------------------------------------------------------------------------------
@dataclass(slots=True)
class _Constant:
    """Clients of several models that always have requests under way: a closed loop each."""

    models: Sequence[str]
    concurrent: int = 4
    prompt: int = 48
    output: int = 32

    def calls(self, seed: int, seconds: float) -> Iterator[Call]:
        for model in self.models:
            workload: Workload = Plain(
                name=model, clients=1, concurrent=self.concurrent, prefix=1, prompt=self.prompt,
                output=self.output,
            )  # fmt: skip
            for call in workload.calls(seed, seconds):
                call.model = model
                yield call


def constant_rate(
    machine: Machine, mode: Mode, memory: int, seconds: float, seed: int, before: Before
) -> float:
    """Output tokens a second of the whole fleet at a constant load, the first fifth left out."""

    async def run() -> float:
        models = list(machine.sources.values())
        async with serving(machine, machine.device(memory, mode), models) as service:
            constant = _Constant([one.name for one in machine.fleet])
            before(f"constant load, {mode.name}, seed {seed + 1}")
            driver = Driver(InProcessClient(service), "", machine.vocabularies)
            told = await driver.drive(constant.calls(seed, seconds), seconds)
            warm = 0.2 * told.seconds
            # A call's tokens lie evenly between its first and its last.
            tokens = 0.0
            for one in told.calls:
                if one.first < 0:
                    continue
                length = max(one.last - one.first, 1e-9)
                tokens += one.output_tokens * max(0.0, one.last - max(one.first, warm)) / length
            return tokens / (told.seconds - warm)

    return asyncio.run(run())
