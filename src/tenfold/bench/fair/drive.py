"""Sends a workload's calls to a real server and writes down what became of them.

The counterpart of ``fleet.simulator.cluster``: the same workloads go in and the same ``Run`` comes
out, so one set of numbers describes both. Calls leave at their own times, those that wait for an
answer as soon as it is there. Does not know which policy answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import count

from tenfold.client.base import Client
from tenfold.core.errors import TenfoldError
from tenfold.core.types import SamplingParams
from tenfold.fleet.types import Delta, Finished, GenerateRequest, TextPrompt
from tenfold.fleet.workloads.base import Call, answered, asked, failed
from tenfold.fleet.workloads.outcome import Outcome, ProgramOutcome, Run

FIRST_TEXT = 3
"""Tokens below are a small vocabulary's special ones."""


class Driver:
    """One run against ``model``, or where calls name models, those. ``vocabularies``: of models
    that know fewer tokens than workloads make up; their prompts are folded into it. ``drive`` once
    only."""

    def __init__(
        self, client: Client, model: str, vocabularies: Mapping[str, int] | None = None
    ) -> None:
        self._client = client
        self._model = model
        self._vocabularies = vocabularies or {}
        self._ids = count(1)
        self._run = Run(0.0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._began = 0.0

    async def drive(self, calls: Iterator[Call], seconds: float) -> Run:
        """Everything that is asked until ``seconds``; then what is under way is broken off."""
        self._began = time.perf_counter()
        try:
            async with asyncio.timeout(seconds):
                for call in calls:
                    await asyncio.sleep(max(0.0, call.at - self._now()))
                    self._ask(call)
                while self._tasks:
                    await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass
        self._run.seconds = self._now()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in self._run.calls:
            if one.started < 0 <= one.first:
                one.started = one.first  # it was to be told with the end
        return self._run

    def _now(self) -> float:
        return time.perf_counter() - self._began

    def _ask(self, call: Call) -> None:
        task = asyncio.ensure_future(self._answer(call))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()  # a fault of ours must not go unseen

    async def _answer(self, call: Call) -> None:
        if (pause := call.at - self._now()) > 0:
            await asyncio.sleep(pause)
        asked(call)
        model = call.model or self._model
        tokens = call.prompt[:]
        if known := self._vocabularies.get(model):
            tokens = FIRST_TEXT + tokens % (known - FIRST_TEXT)
        prompt = tokens.tolist()
        outcome = Outcome(
            str(next(self._ids)), call.client, call.program.name, self._now(), len(prompt)
        )
        outcome.model = model
        self._run.calls.append(outcome)
        request = GenerateRequest(
            id=outcome.id,
            model=model,
            client=call.client,
            prompt=TextPrompt(prompt),
            sampling=SamplingParams(max_tokens=call.output, temperature=0.0, ignore_eos=True),
        )
        said: list[int] = []
        try:
            async for event in self._client.stream(request):
                if isinstance(event, Delta) and event.token_ids:
                    outcome.last = self._now()
                    outcome.first = outcome.last if outcome.first < 0 else outcome.first
                    outcome.output_tokens += len(event.token_ids)
                    said += event.token_ids
                elif isinstance(event, Finished):
                    outcome.cached_tokens = event.usage.cached_tokens
                    outcome.started = outcome.at + (event.queue_seconds or 0.0)
                    outcome.finished = True
        except TenfoldError as error:
            outcome.error = error.code
            self._follow(failed(call, self._now()))
            return
        self._follow(answered(call, said, self._now()))
        program = call.program
        if program.done:
            ended = ProgramOutcome(program.name, program.client, program.began, self._now())
            self._run.programs.append(ended)

    def _follow(self, calls: Iterable[Call]) -> None:
        for call in calls:
            self._ask(call)
