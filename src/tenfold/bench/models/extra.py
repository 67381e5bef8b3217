"""What is measured beside the curves: waking, and the price of elastic memory where nothing moves.

Does not know what the numbers are compared with.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tenfold.bench.models.modes import Mode
from tenfold.bench.models.point import Before, Machine, device_stats, serving
from tenfold.client.base import ask
from tenfold.client.inprocess import InProcessClient
from tenfold.core.messages import SleepModel
from tenfold.core.types import SamplingParams
from tenfold.fleet.service import Service
from tenfold.fleet.types import Delta, TextPrompt
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
        words = Words(1)
        found = Wakes(facts.weight_bytes, [], [], [])

        async def first() -> float:
            return await first_token(service, name, _prompt(words, WAKE_PROMPT, machine, name))

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
@dataclass(slots=True, frozen=True)
class ConstantLoad:
    """The work of a round: ``concurrent`` clients of every model, each with ``turns`` requests one
    after the other, of so many tokens."""

    concurrent: int = 4
    turns: int = 3
    prompt: int = 48
    output: int = 32

    @property
    def tokens(self) -> int:
        """That a model generates in a round."""
        return self.concurrent * self.turns * self.output


def constant_rates(
    machine: Machine,
    modes: Sequence[Mode],
    memory: int,
    rounds: int,
    before: Before,
    load: ConstantLoad | None = None,
) -> dict[str, list[float]]:
    """Output tokens a second of the whole fleet, by mode and round. All modes are up all the time
    and take turns with the same requests, so that a machine whose speed drifts is as unkind to
    each; who begins changes from round to round."""
    load = load or ConstantLoad()

    async def run() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {mode.name: [] for mode in modes}
        models = list(machine.sources.values())
        async with AsyncExitStack() as stack:
            services = {
                mode.name: await stack.enter_async_context(
                    serving(machine, machine.device(memory, mode), models)
                )
                for mode in modes
            }
            for number in range(rounds + 1):
                order = list(services) if number % 2 else list(services)[::-1]
                before(f"constant load, round {number} of {rounds}")
                for name in order:
                    seconds = await _work(services[name], machine, load, number)
                    if number:  # the first is for getting warm
                        found[name].append(len(machine.fleet) * load.tokens / seconds)
        return found

    return asyncio.run(run())


async def _work(service: Service, machine: Machine, load: ConstantLoad, seed: int) -> float:
    """Seconds until all of it is answered."""
    words, client = Words(seed), InProcessClient(service)
    sampling = SamplingParams(max_tokens=load.output, temperature=0.0, ignore_eos=True)

    async def talk(model: str, prompts: list[list[int]]) -> None:
        for prompt in prompts:
            async for _ in client.stream(ask(model, TextPrompt(prompt), sampling)):
                pass

    clients = [
        talk(one.name, [_prompt(words, load.prompt, machine, one.name) for _ in range(load.turns)])
        for one in machine.fleet
        for _ in range(load.concurrent)
    ]
    began = time.perf_counter()
    await asyncio.gather(*clients)
    return time.perf_counter() - began


def _prompt(words: Words, length: int, machine: Machine, model: str) -> list[int]:
    """Tokens that are in the model's vocabulary."""
    tokens, modulus = words.tokens(length), machine.vocabularies.get(model, 0)
    prompt: list[int] = (3 + tokens % (modulus - 3) if modulus else tokens).tolist()
    return prompt
