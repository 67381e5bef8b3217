"""The loop of one device: commands in, a step of one model at a time, events out.

Several models take turns by the time they have used. The engine owns no thread and no socket: a
worker process, an in-process thread or a simulation calls ``handle`` and ``step``.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from tenfold.core.clock import Clock
from tenfold.core.errors import (
    InvalidRequest,
    ModelNotFound,
    OutOfMemory,
    TenfoldError,
    Unavailable,
)
from tenfold.core.messages import (
    Abort,
    AskDecisions,
    AskPrefixes,
    AskSchedule,
    AskStats,
    Command,
    DecisionReport,
    DeviceStats,
    Embed,
    Event,
    Generate,
    LoadModel,
    ModelDown,
    ModelMoved,
    ModelOptions,
    ModelUp,
    RequestFailed,
    ScheduleReport,
    SetResidency,
    SetShares,
    Shutdown,
    SleepModel,
    UnloadModel,
    WakeModel,
    WorkerUp,
)
from tenfold.core.settings import DeviceSettings, Share
from tenfold.core.types import Constraint, EngineRequest
from tenfold.engine.arbiter import Arbiter
from tenfold.engine.batcher import Neighbours
from tenfold.engine.client_stats import client_stats
from tenfold.engine.instance import EmbedInstance, GenerateInstance, Instance
from tenfold.engine.neighbours import CachedPrefixes, EngineNeighbours, batchers
from tenfold.engine.residency import Budget, Residents
from tenfold.engine.weights import Filler
from tenfold.scheduling.accounts import Accounts
from tenfold.scheduling.turns import Turns

log = logging.getLogger("tenfold.engine")

IDLE_POLL_SECONDS = 1.0
ASIDE_POLL_SECONDS = 0.01
WAKE_POLL_SECONDS = 0.001

T = TypeVar("T")
Reclaim = Callable[[int], bool]
Emit = Callable[[Event], None]


class DeviceLike(Protocol):
    """The memory and kernels of one device, as far as the loop uses them."""

    name: str
    settings: DeviceSettings
    accounts: Accounts

    def capacity_bytes(self) -> int: ...
    def budget(self) -> Budget: ...
    def pages_of(self, name: str) -> int: ...
    def set_limit(self, name: str, pages: int | None) -> None: ...
    def filler(self, call: Callable[[Callable[[], None]], Future[None]], clock: Clock) -> Filler:
        """What fills weights. ``call`` runs something on the engine's thread."""
        ...

    def notes(self) -> list[str]: ...
    def load(
        self, command: LoadModel, clock: Clock, neighbours: Neighbours, make_room: Reclaim
    ) -> Instance:
        """Build an instance. ``neighbours`` is for the engine's thread while it steps,
        ``make_room`` (pages) for the thread that loads."""
        ...

    def limited(self, name: str) -> bool: ...

    def prepare_pages(self) -> bool:
        """Spend a few idle milliseconds on pages that will be wanted. False: no more to do."""
        ...

    def stats(self, id: str) -> DeviceStats: ...
    def check(self) -> list[str]: ...
    def close(self) -> None: ...


class Engine:
    """All models of one device. Every method but ``call`` belongs to one thread."""

    def __init__(self, device: DeviceLike, clock: Clock, emit: Emit) -> None:
        self.device = device
        self.clock = clock
        self.emit = emit
        self.instances: dict[str, Instance] = {}
        self.prefixes = CachedPrefixes(self.instances)
        self.residents = Residents(
            device, self.prefixes, device.filler(self.call, clock), clock, emit
        )
        self.turns = Turns()
        self.arbiter = Arbiter(device.settings, self.instances, self.residents.ready_at)
        self.loading: dict[str, threading.Thread] = {}
        self.faults: list[str] = []
        self._cancelled: set[str] = set()
        self._tickets = itertools.count(1)
        self._idle = True
        self._stuck = False
        """Nothing could run in the last step: every model waits for memory."""
        self._message_seconds = 0.0
        self._prefixes_asked = False
        self.preparing: dict[str, Future[object]] = {}
        self._aside = ThreadPoolExecutor(1, "grammars")
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def start(self) -> None:
        device = self.device
        self.emit(WorkerUp(device.name, os.getpid(), device.capacity_bytes(), device.notes()))

    # --- commands -------------------------------------------------------------------------------
    def handle(self, command: Command) -> None:
        """Take one command. A bad one is answered by an event, never by an exception."""
        match command:
            case Generate(request):
                self._guarded(request.id, lambda: self._generate(command))
            case Embed(id):
                self._guarded(id, lambda: self._embed(command))
            case Abort(request_id):
                if compiling := self.preparing.pop(request_id, None):
                    compiling.cancel()
                for instance in self.instances.values():
                    if instance.abort(request_id):
                        break
            case LoadModel():
                self._load(command)
            case UnloadModel(name):
                self._unload(name)
            case AskStats(id):
                self.emit(self._stats(id))
            case SetShares(shares):
                self._set_shares(shares)
            case SleepModel(name):
                self._moved(name, lambda: self.residents.sleep(command))
            case WakeModel(name):
                self._moved(name, lambda: self.residents.wake(name))
            case SetResidency(name):
                self._moved(name, lambda: self.residents.change(command))
            case AskDecisions(id, most):
                latest = self.residents.log.latest(most)
                self.emit(DecisionReport(id, self.device.name, latest, self.clock.now()))
            case AskSchedule(id, most):
                models = [batcher.schedule(most) for batcher in batchers(self.instances)]
                self.emit(ScheduleReport(id, self.device.name, models))
            case AskPrefixes():
                self._prefixes_asked = True
                for instance in self.instances.values():
                    self._tell_prefixes(instance)
            case Shutdown():
                self.close()

    def _moved(self, name: str, action: Callable[[], None]) -> None:
        """Do something about a model's residency, if it is here."""
        if name in self.instances:
            action()
        else:
            message = f"{name} is not loaded on {self.device.name}"
            self.emit(ModelMoved(name, "cold", code=ModelNotFound.code, error=message))

    def _set_shares(self, shares: list[Share]) -> None:
        try:
            self.device.accounts.set_shares(shares)
        except ValueError as error:  # whoever sends shares has checked them
            log.error("shares were not changed: %s", error)

    def _guarded(self, request_id: str, action: Callable[[], None]) -> None:
        try:
            action()
        except TenfoldError as error:
            self.emit(RequestFailed(request_id, error.code, error.message, error.param))
        except Exception as error:
            log.exception("request %s failed before it was queued", request_id)
            self.emit(
                RequestFailed(request_id, TenfoldError.code, f"{type(error).__name__}: {error}")
            )

    def _instance(self, name: str) -> Instance:
        if name not in self.instances:
            raise ModelNotFound(f"{name} is not loaded on {self.device.name}", param="model")
        return self.instances[name]

    def _generate(self, command: Generate) -> None:
        instance = self._instance(command.request.model)
        if not isinstance(instance, GenerateInstance):
            raise InvalidRequest(
                f"{command.request.model} is an embedding model; use /v1/embeddings", param="model"
            )
        self.residents.arrives(command.request.model, command.request)
        constraint = command.request.sampling.constraint
        if constraint is None or instance.grammars is None:
            instance.batcher.submit(command.request)
        else:
            self._prepare(instance, command.request, constraint)

    def _prepare(
        self, instance: GenerateInstance, request: EngineRequest, constraint: Constraint
    ) -> None:
        """Compile the grammar on another thread, then queue the request."""
        assert instance.grammars is not None
        compiling = self._aside.submit(instance.grammars.compile, constraint)
        self.preparing[request.id] = compiling

        def ready() -> None:
            if compiling.cancelled() or self.preparing.pop(request.id, None) is not compiling:
                return  # aborted meanwhile
            if self.instances.get(request.model) is not instance:
                self._guarded(request.id, lambda: self._unloaded(request.model))
            else:
                self._guarded(request.id, lambda: self._compiled(instance, request, compiling))

        compiling.add_done_callback(lambda _: self.call(ready))

    def _compiled(
        self, instance: GenerateInstance, request: EngineRequest, compiling: Future[object]
    ) -> None:
        matcher = compiling.result()
        instance.batcher.submit(request)
        assert instance.grammars is not None
        instance.grammars.keep(request, matcher)

    def _unloaded(self, name: str) -> None:
        raise Unavailable(f"{name} was unloaded while the request was in it")

    def _embed(self, command: Embed) -> None:
        instance = self._instance(command.model)
        if not isinstance(instance, EmbedInstance):
            raise InvalidRequest(
                f"{command.model} generates text and has no embeddings to serve", param="model"
            )
        self.residents.arrives(command.model, keep_alive=command.keep_alive)
        instance.submit(command)

    # --- models come and go ---------------------------------------------------------------------
    def _load(self, command: LoadModel) -> None:
        """Load on a thread. Loading twice is once: the second is told when the first is."""
        name = command.name
        self._cancelled.discard(name)
        if name in self.instances:
            self.emit(ModelUp(self.instances[name].facts, 0.0))
        elif name not in self.loading:
            self.loading[name] = threading.Thread(
                target=self._load_aside, args=(command,), name=f"load-{name}", daemon=True
            )
            self.loading[name].start()

    def _load_aside(self, command: LoadModel) -> None:
        """Runs on a thread of its own, so that the other models keep stepping."""
        name = command.name
        began = self.clock.now()
        try:
            instance = self.device.load(
                command,
                self.clock,
                self.neighbours(name),
                lambda pages: self.call(lambda: self._make_room(pages, name)).result(),
            )
        except Exception as error:
            if not isinstance(error, TenfoldError):
                log.exception("loading %s failed", name)
            code = error.code if isinstance(error, TenfoldError) else TenfoldError.code
            down = ModelDown(name, code, str(error))
            self.call(lambda: self._loaded(command, None, down))
            return
        up = ModelUp(instance.facts, self.clock.now() - began)
        self.call(lambda: self._loaded(command, instance, up))

    def _loaded(self, command: LoadModel, instance: Instance | None, event: Event) -> None:
        name = command.name
        self.loading.pop(name, None)
        if name in self._cancelled:
            self._cancelled.discard(name)
            if instance is not None:
                instance.close()
            event = ModelDown(name, Unavailable.code, f"{name} was unloaded while it was loading")
        elif instance is not None:
            event = self._prepared(command, instance, event)
        self.emit(event)

    def _prepared(self, command: LoadModel, instance: Instance, up: Event) -> Event:
        """Attach what was loaded; gives ``up``, or why the instance cannot run after all."""
        name = command.name
        try:
            instance.prepare()
        except Exception as error:
            log.exception("preparing %s failed", name)
            instance.close()
            code = error.code if isinstance(error, TenfoldError) else TenfoldError.code
            return ModelDown(name, code, str(error))
        try:
            self.attach(name, instance, command.options)
        except OutOfMemory as error:
            instance.close()
            return ModelDown(name, error.code, error.message)
        return up

    def attach(self, name: str, instance: Instance, options: ModelOptions | None = None) -> None:
        """Take a model in, awake. Raises OutOfMemory where the mode of sharing memory has no room
        for it; nothing is changed then."""
        if why := self.residents.join(name, instance, options or ModelOptions()):
            raise OutOfMemory(why)
        self.instances[name] = instance
        if self._prefixes_asked:
            self._tell_prefixes(instance)

    def _tell_prefixes(self, instance: Instance) -> None:
        if isinstance(instance, GenerateInstance):
            self.emit(instance.news.everything(self.clock.now()))

    def _unload(self, name: str) -> None:
        if name in self.loading:
            self._cancelled.add(name)  # told when the loading thread is done
            return
        instance = self.instances.pop(name, None)
        self.turns.forget(name)
        self.arbiter.forget(name)
        if instance is None:
            self.emit(ModelDown(name))
            return
        for event in instance.fail_all(Unavailable(f"{name} was unloaded with the request in it")):
            self.emit(event)

        def close() -> None:
            instance.close()
            self.emit(ModelDown(name))

        self.residents.leave(name, close)

    def neighbours(self, name: str) -> Neighbours:
        """The device's other models, for the batcher of ``name``."""
        return EngineNeighbours(self, name)

    def ticket(self) -> int:
        """The next arrival number of the device."""
        return next(self._tickets)

    def _make_room(self, pages: int, name: str) -> bool:
        """Pages for a model that is being loaded, as far as that goes."""
        return self.residents.make_room(pages, name) > 0

    def call(self, action: Callable[[], T]) -> Future[T]:
        """Run something on the engine's thread, from any other."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(action())
            except Exception as error:
                future.set_exception(error)

        self._calls.put(run)
        return future

    # --- stepping -------------------------------------------------------------------------------
    def patience(self) -> float:
        """Seconds that the caller may wait for a command before the next ``step``. With nothing
        else to do, it prepares a page and asks to be called again soon."""
        if self._stuck and self.residents.moving:
            self._stuck = False
            return WAKE_POLL_SECONDS
        if self.has_work or self.residents.changed:
            return 0.0
        if self.residents.waking:
            return WAKE_POLL_SECONDS
        if self.loading or self.preparing:  # a thread that will soon want the loop
            return ASIDE_POLL_SECONDS
        if self.device.prepare_pages():
            return 0.0
        return min(IDLE_POLL_SECONDS, max(0.0, self.residents.due() - self.clock.now()))

    @property
    def has_work(self) -> bool:
        """Whether a step now would do something for requests."""
        if not self._calls.empty():
            return True
        waits, awake = False, self.residents.awake
        for name, instance in self.instances.items():
            if instance.has_work:
                if awake(name):
                    return True
                waits = True
        return waits and self.residents.changed

    def _busy(self) -> list[str]:
        """The models that have requests and are awake."""
        awake = self.residents.awake
        return [name for name, one in self.instances.items() if one.has_work and awake(name)]

    def step(self) -> bool:
        """Run one step of the model whose turn it is. False when there was nothing to do."""
        while not self._calls.empty():
            self._calls.get()()
        now = self.clock.now()
        for instance in self.instances.values():
            if instance.has_work:
                for event in instance.expire(now):
                    self.emit(event)
        self.residents.tend()
        busy = self._busy()
        if not busy:
            self._rest()
            return False
        self._idle = False
        given_way = self._preemptions()
        for name in self._order(busy):
            began = self.clock.now()
            events = self.instances[name].step(len(busy))
            if events is None:
                continue
            ended = self.clock.now()
            for event in events:
                self.emit(event)  # first of all: whoever hears it works while this goes on
            self._message_seconds += self.clock.now() - ended
            self.turns.spent(name, ended - began)
            self._stuck = False
            self.arbiter.stepped(name, began, ended)
            return True
        self._stuck = True
        if self._preemptions() == given_way and not self.residents.moving:
            self._relieve(busy)
        return True

    def _order(self, busy: list[str]) -> list[str]:
        """Whose step is next: the arbiter's choice where requests have TTFT targets. Else a model
        that could admit a request with a deadline, of a client that has credit, before the others;
        the earliest deadline first. Then by turns."""
        order = self.turns.order(busy)
        if (chosen := self.arbiter.order(order, self.clock.now())) is not None:
            return chosen
        if len(order) > 1:
            order.sort(key=lambda name: self.instances[name].urgency())
        return order

    def _preemptions(self) -> int:
        return sum(batcher.preemptions for batcher in batchers(self.instances))

    def _relieve(self, busy: list[str]) -> None:
        """Every model waits for pages that another holds: the youngest sequence gives way, or one
        without requests sleeps or, when none is left, one request that can never run ends."""
        running = [(b.youngest, b) for b in batchers(self.instances) if b.youngest is not None]
        if running:
            victim, batcher = max(running, key=lambda pair: pair[0].age)
            batcher.preempt(victim)
            return
        if self.residents.give_weights():
            return
        for name in busy:
            events = self.instances[name].relieve()
            for event in events:
                self.emit(event)
            if events:
                return

    def _rest(self) -> None:
        """Nobody who is awake has work. Where nobody has any, look whether everything is back in
        its place."""
        self.arbiter.rest()
        if not self._idle and not any(one.has_work for one in self.instances.values()):
            self._idle = True
            self.faults = self.check()
            for fault in self.faults:
                log.error("integrity: %s", fault)
        for instance in self.instances.values():
            if isinstance(instance, GenerateInstance) and (
                news := instance.news.changes(self.clock.now(), at_once=True)
            ):
                self.emit(news)

    # --- looking inside -------------------------------------------------------------------------
    def _stats(self, id: str) -> DeviceStats:
        stats = self.device.stats(id)
        tell = self.residents.tell
        stats.models = [tell(name, one.stats()) for name, one in self.instances.items()]
        stats.clients = client_stats(
            self.device.accounts, batchers(self.instances), self.clock.now()
        )
        stats.rounds = self.device.accounts.rounds
        stats.decided = dict(self.residents.log.decided)
        stats.integrity = self.faults
        stats.message_seconds = self._message_seconds
        return stats

    def check(self) -> list[str]:
        """Everything that is wrong with pages, blocks and locks; run when idle, and by tests."""
        faults = [fault for i in self.instances.values() for fault in i.check()]
        return faults + self.device.check()

    def close(self) -> None:
        """Free everything. Waits for models that are being loaded: their thread writes to pages."""
        self._cancelled.update(self.loading)
        while self.loading:
            self._calls.get()()
        for name in list(self.instances):
            self._unload(name)
        while self.residents.left_behind():
            self._calls.get()()
        self._aside.shutdown(wait=False, cancel_futures=True)
        self.device.close()
