"""Keeps one device's worker alive: starts it, notices its death, brings it back with its models.

Knows which models the device should hold and nothing of requests; whoever owns those is told when
the worker is lost and when a model is up again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from tenfold.core.clock import Clock
from tenfold.core.errors import TenfoldError, Unavailable, WorkerLost, from_code
from tenfold.core.messages import (
    AskDecisions,
    AskSchedule,
    AskStats,
    Command,
    DecisionReport,
    DeviceStats,
    Event,
    LoadModel,
    ModelDown,
    ModelMoved,
    ModelOptions,
    ModelUp,
    ScheduleReport,
    SetResidency,
    SetShares,
    UnloadModel,
    WorkerRefused,
    WorkerUp,
)
from tenfold.core.settings import DeviceSettings, Share
from tenfold.core.types import ModelFacts
from tenfold.fleet.moves import Moves
from tenfold.fleet.workers import Worker

log = logging.getLogger("tenfold.fleet")

BACKOFF_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
STEADY_SECONDS = 30.0
STATS_SECONDS = 2.0
GIVE_UP_LOADING = 3

Answer = TypeVar("Answer", DeviceStats, ScheduleReport, DecisionReport)


class Supervisor:
    """One device: its worker, the models that belong on it, and which of them are up.

    ``failed``: why a model that was up could not be loaded again; it is tried again. ``draining``:
    it gets no new requests. ``moves``: where its models' weights are.
    """

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
        self.failed: dict[str, str] = {}
        self.restarts = 0
        self.draining = False
        self.moves = Moves(self.send)
        self.last_stats: DeviceStats | None = None
        self._make_worker = make_worker
        self._on_event = on_event
        self._on_lost = on_lost
        self._clock = clock
        self._worker: Worker | None = None
        self._started_at = 0.0
        self._failures = 0
        self._alive = False
        self._changed = asyncio.Event()
        self._answers: dict[str, asyncio.Future[DeviceStats | ScheduleReport | DecisionReport]] = {}
        self._outcomes: dict[str, asyncio.Future[ModelFacts]] = {}
        self._deaths: dict[str, int] = {}
        self._sent: set[str] = set()
        self._leaving: set[str] = set()
        self._late: set[str] = set()
        self._tries: dict[str, int] = {}
        self._retries: dict[str, asyncio.TimerHandle] = {}
        self._restart: asyncio.Task[None] | None = None
        self._asked = 0
        self._was_up = False
        self._refused: TenfoldError | None = None
        self._stopped: TenfoldError | None = None
        self._shares: list[Share] = []

    @property
    def worker(self) -> Worker | None:
        return self._worker

    # --- life of the worker ---------------------------------------------------------------------
    async def start(self) -> None:
        """Start the worker; raises what kept it from starting. That it is up, refused or lost is
        told by events, and by whoever loads a model."""
        self._started_at = self._clock.now()
        self._worker = self._make_worker(self.settings)
        self._alive = True
        try:
            await self._worker.start(self._take, self._lost)
        except BaseException:
            self._alive = False
            self._sent.clear()
            raise

    async def stop(self) -> None:
        """End the worker. Whoever waits for a model is told so."""
        self._stopped = Unavailable("the server is stopping")
        if self._restart is not None:
            self._restart.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._restart
        self._cancel_retries()
        for name in list(self._outcomes):
            self._settle(name, None, self._stopped)
        self.moves.lost(self._stopped)
        if self._worker is not None:
            await self._worker.stop()
        self.loaded.clear()
        self._leaving.clear()
        self._tell()

    def _lost(self, code: int) -> None:
        if self._refused is not None or self._stopped is not None:
            return  # it was never up, and would say the same again; or it was to end
        log.error("worker %s ended with code %s; starting it again", self.name, code)
        long = self._clock.now() - self._started_at > STEADY_SECONDS
        steady = long and self.loaded.keys() >= self.wanted.keys()
        self._failures = 0 if steady else self._failures + 1
        self.up, self._alive = None, False
        self.loaded.clear()
        self.failed.clear()
        self._sent.clear()
        self._leaving.clear()
        self._late.clear()
        self._cancel_retries()
        self.moves.lost(WorkerLost(f"the worker of {self.name} died; it is started again"))
        self.restarts += 1
        for answer in self._answers.values():
            answer.cancel()
        self._count_deaths()
        self._tell()
        self._on_lost(self.name)
        self._restart = asyncio.create_task(self._come_back())

    def _count_deaths(self) -> None:
        """A model that kills its worker while it loads is given up: the others need the worker."""
        for name in list(self._outcomes):
            self._deaths[name] = self._deaths.get(name, 0) + 1
            if self._deaths[name] >= GIVE_UP_LOADING:
                message = f"the worker of {self.name} ended {GIVE_UP_LOADING} times loading {name}"
                self._settle(name, None, Unavailable(message))

    async def _come_back(self) -> None:
        while True:
            await asyncio.sleep(_backoff(self._failures))
            try:
                await self.start()
                break
            except Exception as error:
                log.error("worker %s could not be started: %s", self.name, error)
                self._failures += 1
                self._count_deaths()
        for name in self.wanted:
            self._send_load(name)

    # --- models ---------------------------------------------------------------------------------
    async def load(self, command: LoadModel) -> ModelFacts:
        """Load a model and wait for it. Raises what the worker said went wrong; a load that is
        cancelled is taken back. One load of a name at a time."""
        name = command.name
        self.wanted[name] = command
        try:
            while name in self._leaving:  # the worker's answers about the one before come first
                await self._changed.wait()
            if name not in self.wanted:
                raise _unloaded(name)
            if error := self._stopped or self._refused:
                raise error
            outcome: asyncio.Future[ModelFacts] = asyncio.get_running_loop().create_future()
            self._outcomes[name] = outcome
            self._send_load(name)
            return await outcome
        except asyncio.CancelledError:
            self.unload(name)
            raise
        except TenfoldError:
            self.wanted.pop(name, None)
            raise
        finally:
            self._outcomes.pop(name, None)
            self._deaths.pop(name, None)

    def _send_load(self, name: str) -> None:
        """To a worker that lives and was not asked yet; one that is away is asked when it is back.
        What waits for the worker's last word on its predecessor is sent by ``load``."""
        if self._alive and name not in self._sent and name not in self._leaving:
            self._sent.add(name)
            self.send(self.moves.loading(self.wanted[name]))

    def unload(self, name: str) -> None:
        """Take a model off the device, or take back its loading. Nothing happens if it is away."""
        self.wanted.pop(name, None)
        self.loaded.pop(name, None)
        self.failed.pop(name, None)
        if (retry := self._retries.pop(name, None)) is not None:
            retry.cancel()
        if name in self._sent:
            self._sent.discard(name)
            self._leaving.add(name)
            self.send(UnloadModel(name))
        self._late.discard(name)
        self._settle(name, None, _unloaded(name))
        self.moves.forget(name, _unloaded(name))
        self._tell()

    def set_residency(self, name: str, options: ModelOptions) -> None:
        """Tell the worker, at once or when it has loaded the model. Whichever comes back loads it
        with ``options``."""
        if name in self.wanted:
            self.wanted[name] = replace(self.wanted[name], options=options)
        if name in self.loaded:
            self.send(_residency(name, options))
        elif name in self._sent:
            self._late.add(name)

    async def wait_up(self, seconds: float) -> None:
        """Until the worker is up. Raises what keeps it from ever being, or TimeoutError."""
        async with asyncio.timeout(seconds):
            while self.up is None:
                if error := self._stopped or self._refused:
                    raise error
                await self._changed.wait()

    async def wait_for(self, name: str, seconds: float) -> None:
        """Until the model is up. Raises Unavailable after ``seconds``, or at once where it is known
        that the model will not be up soon."""
        try:
            async with asyncio.timeout(seconds):
                while name not in self.loaded:
                    self._check_hope(name)
                    await self._changed.wait()
        except TimeoutError:
            raise Unavailable(
                f"the worker of {name} did not come back within {seconds:g} s; try again later",
                retry_after=seconds,
            ) from None

    def _check_hope(self, name: str) -> None:
        if error := self._stopped or self._refused:
            raise error
        if name not in self.wanted:
            raise _unloaded(name)
        if name in self.failed:
            raise Unavailable(
                f"{name} could not be loaded again: {self.failed[name]}; it is tried again",
                retry_after=BACKOFF_SECONDS[-1],
            )

    # --- clients --------------------------------------------------------------------------------
    def set_shares(self, shares: list[Share]) -> None:
        """Tell the worker now, if it is up, and whichever comes up later."""
        self._shares = shares
        if self.up is not None:
            self.send(SetShares(shares))

    # --- traffic --------------------------------------------------------------------------------
    def send(self, command: Command) -> None:
        if self._worker is not None:
            self._worker.send(command)

    def _take(self, event: Event) -> None:
        match event:
            case WorkerUp():
                self.up, self._was_up = event, True
                log.info("worker %s is up (pid %s); %s", self.name, event.pid, *event.notes)
                if self._shares:  # a fresh worker has none
                    self.send(SetShares(self._shares))
                self._tell()
            case WorkerRefused(_, code, message):
                self._refuse(from_code(code, message))
            case ModelUp(facts):
                self._model_up(facts)
            case ModelDown(name, code, message):
                self._model_down(name, code, message)
            case ModelMoved(name):
                if name in self.wanted and name not in self._leaving:
                    self.moves.moved(event)
            case DeviceStats(id) | ScheduleReport(id) | DecisionReport(id):
                self._answered(id, event)
        self._on_event(event)

    def _model_up(self, facts: ModelFacts) -> None:
        name = facts.name
        if name not in self.wanted or name in self._leaving:
            return  # unloaded while the news was on its way
        self.loaded[name] = facts
        options = self.wanted[name].options
        self.moves.up(name, asleep=options.asleep)
        if name in self._late:
            self._late.discard(name)
            self.send(_residency(name, options))
        self.failed.pop(name, None)
        self._tries.pop(name, None)
        self._settle(name, facts, None)
        self._tell()

    def _model_down(self, name: str, code: str, message: str) -> None:
        self.loaded.pop(name, None)
        self.moves.states.pop(name, None)
        if name in self._leaving:
            self._leaving.discard(name)
        elif code and name in self._outcomes:
            self._sent.discard(name)
            self._settle(name, None, from_code(code, message))
        elif code and name in self.wanted and self._stopped is None:
            self._sent.discard(name)
            self._retry_later(name, message)
        self._tell()

    def _retry_later(self, name: str, message: str) -> None:
        """A model that was up cannot be loaded by the worker that came back."""
        self.failed[name] = message
        self._tries[name] = self._tries.get(name, 0) + 1
        seconds = _backoff(self._tries[name] + 1)
        log.error("%s could not be loaded again: %s; next try in %g s", name, message, seconds)
        loop = asyncio.get_running_loop()
        self._retries[name] = loop.call_later(seconds, self._send_load, name)

    def _cancel_retries(self) -> None:
        for retry in self._retries.values():
            retry.cancel()
        self._retries.clear()

    def _refuse(self, error: TenfoldError) -> None:
        """A device that was up once is tried again; one that never was will not come up."""
        if self._was_up:
            log.error("worker %s cannot start: %s", self.name, error.message)
            return
        self._refused = error
        for name in list(self._outcomes):
            self._settle(name, None, error)
        self._tell()

    def _settle(self, name: str, facts: ModelFacts | None, error: TenfoldError | None) -> None:
        outcome = self._outcomes.get(name)
        if outcome is None or outcome.done():
            return
        if error is not None:
            self.wanted.pop(name, None)
            outcome.set_exception(error)
        elif facts is not None:
            outcome.set_result(facts)

    def _tell(self) -> None:
        """Wake who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    # --- questions ------------------------------------------------------------------------------
    async def stats(self) -> DeviceStats | None:
        """The device's state now, or the last one known if a long step delays the answer or the
        worker is away."""
        if self.up is None:
            return self.last_stats
        return await self._ask(AskStats, DeviceStats) or self.last_stats

    async def schedule(self, most: int) -> ScheduleReport | None:
        """Why the latest requests were chosen and the first ``most`` of each queue; None if a long
        step delays the answer, or the worker is away."""
        return await self._ask(lambda id: AskSchedule(id, most), ScheduleReport)

    async def decisions(self, most: int) -> DecisionReport | None:
        """The latest decisions about memory; None as of ``schedule``."""
        if self.up is None:
            return None
        return await self._ask(lambda id: AskDecisions(id, most), DecisionReport)

    async def _ask(self, question: Callable[[str], Command], kind: type[Answer]) -> Answer | None:
        """The worker's answer; None if there is none within ``STATS_SECONDS``, or the worker is
        lost meanwhile."""
        self._asked += 1
        id = str(self._asked)
        waiting = self._answers[id] = asyncio.get_running_loop().create_future()
        self.send(question(id))
        try:
            answer = await asyncio.wait_for(asyncio.shield(waiting), STATS_SECONDS)
        except (TimeoutError, asyncio.CancelledError):
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            return None
        finally:
            self._answers.pop(id, None)
        return answer if isinstance(answer, kind) else None

    def _answered(self, id: str, event: DeviceStats | ScheduleReport | DecisionReport) -> None:
        if isinstance(event, DeviceStats):
            self.last_stats = event
            self.moves.learn(event)
        waiting = self._answers.pop(id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(event)


def _backoff(failures: int) -> float:
    """Seconds to wait before the next try; the first comes at once."""
    return BACKOFF_SECONDS[min(max(failures - 1, 0), len(BACKOFF_SECONDS) - 1)]


def _residency(name: str, options: ModelOptions) -> SetResidency:
    """All that may change of what a model may hold."""
    limit = -1 if options.kv_limit_bytes is None else options.kv_limit_bytes
    ttl = -1.0 if options.ttl is None else options.ttl
    return SetResidency(name, options.pinned, ttl, options.floor_bytes, limit, options.evict_cost)


def _unloaded(name: str) -> Unavailable:
    return Unavailable(f"{name} was unloaded")
