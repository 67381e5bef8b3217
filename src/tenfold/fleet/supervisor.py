"""Keeps one device's worker alive: starts it, notices its death, brings it back with its models.

Knows which models the device should hold and nothing of requests; whoever owns those is told when
the worker is lost and when a model is up again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from tenfold.core.clock import Clock
from tenfold.core.errors import TenfoldError, Unavailable, from_code
from tenfold.core.messages import (
    AskStats,
    Command,
    DeviceStats,
    Event,
    LoadModel,
    ModelDown,
    ModelUp,
    UnloadModel,
    WorkerRefused,
    WorkerUp,
)
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import ModelFacts
from tenfold.fleet.workers import Worker

log = logging.getLogger("tenfold.fleet")

BACKOFF_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
STEADY_SECONDS = 30.0
STATS_SECONDS = 2.0
GIVE_UP_LOADING = 3


class Supervisor:
    """One device: its worker, the models that belong on it, and which of them are up."""

    def __init__(
        self,
        settings: DeviceSettings,
        make_worker: Callable[[DeviceSettings], Worker],
        on_event: Callable[[Event], None],
        on_lost: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self.settings = settings
        self.name = settings.name
        self.up: WorkerUp | None = None
        self.wanted: dict[str, LoadModel] = {}
        self.loaded: dict[str, ModelFacts] = {}
        self.restarts = 0
        self.last_stats: DeviceStats | None = None
        self._make_worker = make_worker
        self._on_event = on_event
        self._on_lost = on_lost
        self._clock = clock
        self._worker: Worker | None = None
        self._started_at = 0.0
        self._failures = 0
        self._changed = asyncio.Condition()
        self._answers: dict[str, asyncio.Future[DeviceStats]] = {}
        self._outcomes: dict[str, asyncio.Future[ModelFacts]] = {}
        self._restart: asyncio.Task[None] | None = None
        self._asked = 0
        self._was_up = False
        self._refused: TenfoldError | None = None
        self._announcing: asyncio.Future[None] | None = None

    @property
    def worker(self) -> Worker | None:
        return self._worker

    # --- life of the worker ---------------------------------------------------------------------
    async def start(self) -> None:
        """Start the worker. What becomes of it is told by events, and by whoever loads a model."""
        self._started_at = self._clock.now()
        self._worker = self._make_worker(self.settings)
        await self._worker.start(self._take, self._lost)

    async def stop(self) -> None:
        if self._restart is not None:
            self._restart.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restart
        if self._worker is not None:
            await self._worker.stop()

    def _lost(self, code: int) -> None:
        if self._refused is not None:
            return  # it was never up, and would say the same again
        log.error("worker %s ended with code %s; starting it again", self.name, code)
        steady = self._clock.now() - self._started_at > STEADY_SECONDS
        self._failures = 0 if steady else self._failures + 1
        self.up = None
        self.loaded.clear()
        self.restarts += 1
        for answer in self._answers.values():
            answer.cancel()
        if self._failures >= GIVE_UP_LOADING:
            for name in list(self._outcomes):
                message = (
                    f"the worker of {self.name} ended {self._failures} times while loading {name}"
                )
                self._settle(name, None, Unavailable(message))
        self._on_lost(self.name)
        self._restart = asyncio.create_task(self._come_back())

    async def _come_back(self) -> None:
        step = min(max(self._failures - 1, 0), len(BACKOFF_SECONDS) - 1)
        await asyncio.sleep(BACKOFF_SECONDS[step])
        await self.start()
        for command in self.wanted.values():
            self.send(command)

    # --- models ---------------------------------------------------------------------------------
    async def load(self, command: LoadModel) -> ModelFacts:
        """Load a model and wait for it. Raises what the worker said went wrong."""
        if self._refused is not None:
            raise self._refused
        outcome: asyncio.Future[ModelFacts] = asyncio.get_running_loop().create_future()
        self.wanted[command.name] = command
        self._outcomes[command.name] = outcome
        self.send(command)
        try:
            return await outcome
        except TenfoldError:
            self.wanted.pop(command.name, None)
            raise
        finally:
            self._outcomes.pop(command.name, None)

    def unload(self, name: str) -> None:
        self.wanted.pop(name, None)
        self.loaded.pop(name, None)
        self.send(UnloadModel(name))

    async def wait_for(self, name: str, seconds: float) -> None:
        """Until the model is up. Raises Unavailable after ``seconds``."""
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: name in self.loaded)
        except TimeoutError:
            raise Unavailable(
                f"the worker of {name} did not come back within {seconds:g} s; try again later",
                retry_after=seconds,
            ) from None

    # --- traffic --------------------------------------------------------------------------------
    def send(self, command: Command) -> None:
        if self._worker is not None:
            self._worker.send(command)

    def _take(self, event: Event) -> None:
        match event:
            case WorkerUp():
                self.up, self._was_up = event, True
                log.info("worker %s is up (pid %s); %s", self.name, event.pid, *event.notes)
            case WorkerRefused(_, code, message):
                self._refuse(from_code(code, message))
            case ModelUp(facts):
                self.loaded[facts.name] = facts
                self._settle(facts.name, facts, None)
                self._announcing = asyncio.ensure_future(self._announce())
            case ModelDown(name, code, message):
                self.loaded.pop(name, None)
                if code:
                    self._settle(name, None, from_code(code, message))
            case DeviceStats(id):
                self.last_stats = event
                answer = self._answers.pop(id, None)
                if answer is not None and not answer.done():
                    answer.set_result(event)
        self._on_event(event)

    def _refuse(self, error: TenfoldError) -> None:
        """A device that was up once is tried again; one that never was will not come up."""
        if self._was_up:
            log.error("worker %s cannot start: %s", self.name, error.message)
            return
        self._refused = error
        for name in list(self._outcomes):
            self._settle(name, None, error)

    def _settle(self, name: str, facts: ModelFacts | None, error: TenfoldError | None) -> None:
        outcome = self._outcomes.get(name)
        if outcome is None or outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        elif facts is not None:
            outcome.set_result(facts)

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def stats(self) -> DeviceStats | None:
        """The device's state now, or the last one known if a long step delays the answer."""
        self._asked += 1
        id = str(self._asked)
        self._answers[id] = asyncio.get_running_loop().create_future()
        self.send(AskStats(id))
        try:
            return await asyncio.wait_for(asyncio.shield(self._answers[id]), STATS_SECONDS)
        except (TimeoutError, asyncio.CancelledError):
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            return self.last_stats
        finally:
            self._answers.pop(id, None)
