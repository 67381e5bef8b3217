"""Which models of a device are awake, and what is done to change that.

A policy of ``scheduling.residency`` decides; here its decisions are carried out, one by one:
weights are given back or brought, limits set, models shrunk, and every decision kept with its
reason. Runs on the engine's thread. Does not know why requests come, nor how pages are mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

from tenfold.core.clock import Clock
from tenfold.core.errors import DeadlineExceeded, TenfoldError, Unavailable
from tenfold.core.messages import (
    Event,
    ModelMoved,
    ModelOptions,
    ModelStats,
    ResidencyState,
    SetResidency,
    SleepModel,
)
from tenfold.core.settings import DeviceSettings, Rung
from tenfold.core.types import EngineRequest
from tenfold.engine.decisions import DecisionLog
from tenfold.engine.instance import GenerateInstance, Instance
from tenfold.engine.resident import Resident
from tenfold.engine.weights import Filler
from tenfold.scheduling.residency.base import (
    Action,
    DeviceView,
    Drain,
    SetLimit,
    Sleep,
    Wake,
)
from tenfold.scheduling.residency.ladder import climb
from tenfold.scheduling.residency.registry import residency_policies

PRESSURE_SECONDS = 0.05
"""Between two looks at models that run and lack memory."""


@dataclass(slots=True)
class Budget:
    """A device's pages for weights, keys and values: all there are, and those nobody has."""

    capacity: int
    free: int


class DeviceMemory(Protocol):
    """A device's pages, as far as moving them between models goes."""

    settings: DeviceSettings

    def budget(self) -> Budget: ...

    def pages_of(self, name: str) -> int:
        """Mapped for a model's weights, keys and values."""
        ...

    def set_limit(self, name: str, pages: int | None) -> None: ...


class Reclaim(Protocol):
    """Whom pages can be taken from, short of their weights; each gives the pages that came."""

    def idle_prefixes(self, pages: int, but: str) -> int: ...
    def prefixes(self, pages: int, but: str) -> int: ...


class Residents:
    """The models of one device by name, awake and asleep."""

    def __init__(
        self,
        memory: DeviceMemory,
        reclaim: Reclaim,
        filler: Filler,
        clock: Clock,
        emit: Callable[[Event], None],
    ) -> None:
        settings = memory.settings
        self.settings = settings.residency
        self.policy = residency_policies.get(settings.residency.mode)(settings.residency)
        self.log = DecisionLog(clock)
        self._page_bytes = settings.page_bytes
        self._memory = memory
        self._reclaim = reclaim
        self._filler = filler
        self._clock = clock
        self._emit = emit
        self._models: dict[str, Resident] = {}
        self._busy: Sequence[str] = ()
        self._changed = False
        self._look = inf
        self._pressed = 0.0

    # --- models come and go ---------------------------------------------------------------------
    def join(self, name: str, instance: Instance, options: ModelOptions) -> str:
        """A model that was loaded, and is awake. Returns why it cannot stay, or nothing."""
        now = self._clock.now()
        one = Resident(name, instance, "resident", now, now, replace(options))
        if options.kv_limit_bytes is not None:
            one.limit_pages = options.kv_limit_bytes // self._page_bytes
        self._models[name] = one
        view = self._view()
        mine = view.models.pop(name)
        if why := self.policy.fits(view, mine):
            del self._models[name]
            return f"{name} does not fit with residency.mode {self.settings.mode!r}: {why}"
        if options.asleep:
            self._sleep(name, "host", "it was to start asleep")
        self._changed = True
        return ""

    def leave(self, name: str, close: Callable[[], None]) -> None:
        """A model is unloaded: ``close`` is called when nothing writes to its pages any more."""
        one = self._models.get(name)
        if one is not None and one.state == "waking":
            one.gone = close
            return
        self._models.pop(name, None)
        self._changed = True
        close()

    def left_behind(self) -> bool:
        """Whether weights are on their way to a model that was unloaded."""
        return any(one.gone is not None for one in self._models.values())

    def awake(self, name: str) -> bool:
        """Whether the model's weights are there."""
        return self._models[name].state == "resident"

    def ready_at(self, name: str) -> float:
        """When the model's weights will be there: minus infinity if they are, infinity while
        nothing brings them."""
        one = self._models[name]
        if one.state == "waking":
            return one.since + one.waking_takes()
        return -inf if one.state == "resident" else inf

    @property
    def changed(self) -> bool:
        """Whether ``tend`` would have something to do now."""
        return self._changed or self.due() <= self._clock.now()

    @property
    def waking(self) -> bool:
        return any(one.state == "waking" for one in self._models.values())

    @property
    def moving(self) -> bool:
        """Whether memory is on its way from one model to another."""
        return any(
            one.state == "waking" or one.draining is not None or one.shrink_to is not None
            for one in self._models.values()
        )

    def quiet_until(self) -> float:
        """Until when ``tend`` has nothing to do, if nothing happens; minus infinity if it has
        something to do now."""
        due = self.due()
        return -inf if self._changed or due <= self._clock.now() else due

    def due(self) -> float:
        """When ``tend`` will have something to do although nothing happens."""
        due = min(self._look, self._filler.due())
        for one in self._models.values():
            if one.shrink_due < due:
                due = one.shrink_due
        return due

    # --- requests -------------------------------------------------------------------------------
    def arrives(
        self, name: str, request: EngineRequest | None = None, keep_alive: float | None = None
    ) -> None:
        """A request for the model is about to be queued; ``keep_alive`` as of one. Raises
        DeadlineExceeded for one whose time would be over before the model is awake."""
        one = self._models[name]
        now = self._clock.now()
        one.last_used = now
        keep_alive = keep_alive if request is None else request.keep_alive
        if keep_alive is not None:
            one.keep = keep_alive
        if one.state == "resident":
            return
        self._changed = True
        ready = now + one.instance.weights.seconds()
        if request is not None and request.deadline is not None and request.deadline < ready:
            raise DeadlineExceeded(
                f"{name} sleeps and takes {ready - now:.1f} s to wake, more than the request's "
                f"time of {request.deadline - request.arrival:.1f} s; raise `timeout` or pin it",
                param="timeout",
            )

    # --- commands -------------------------------------------------------------------------------
    def sleep(self, command: SleepModel) -> None:
        """See ``SleepModel``."""
        one = self._models[command.name]
        one.asked, one.held = False, command.hold
        one.sleep_asked = command
        self._changed = True

    def wake(self, name: str) -> None:
        """See ``WakeModel``."""
        one = self._models[name]
        one.held, one.asked, one.sleep_asked = False, True, None
        if one.state == "resident":
            one.asked = False
            self._emit(ModelMoved(name, "resident", why="it is awake"))
        self._changed = True

    def change(self, command: SetResidency) -> None:
        """See ``SetResidency``."""
        one = self._models[command.name]
        options = one.options
        if command.pinned is not None:
            options.pinned = command.pinned
        if command.ttl is not None:
            options.ttl = None if command.ttl < 0 else command.ttl
        if command.floor_bytes is not None:
            options.floor_bytes = command.floor_bytes
        if command.evict_cost is not None:
            options.evict_cost = command.evict_cost
        if command.limit_bytes is not None:
            below = command.limit_bytes < 0
            one.limit_pages = None if below else command.limit_bytes // self._page_bytes
            one.instance.allow_kv(one.limit_pages)
        self._changed = True

    # --- every step -----------------------------------------------------------------------------
    def tend(self) -> None:
        """Before a step: do what is to be done."""
        now = self._clock.now()
        busy = [name for name, one in self._models.items() if one.instance.has_work]
        if self._filler.due() <= now:
            self._filler.poll(now)
        if busy != self._busy:
            for name in {*self._busy, *busy}:
                if name in self._models:
                    self._models[name].last_used = now
            self._busy, self._changed = list(busy), True
        if now >= self._pressed + PRESSURE_SECONDS:
            self._pressed = now
            self._changed = self._changed or any(self._lacks(name) for name in busy)
        if self._changed or now >= self._look or any(map(_drained, self._models.values())):
            self._decide()
        for name in [n for n, one in self._models.items() if one.shrink_to is not None]:
            self._shrink(name, now)

    def _lacks(self, name: str) -> bool:
        instance = self._models[name].instance
        return isinstance(instance, GenerateInstance) and instance.batcher.lacking > 0

    def _decide(self) -> None:
        self._changed = False
        for name in [n for n, one in self._models.items() if one.sleep_asked is not None]:
            self._sleep_when_asked(name)
        view = self._view()
        if actions := self.policy.decide(view):
            for action in actions:
                self._do(action)
            view = self._view()
        self._look = self.policy.look_again(view)

    def _sleep_when_asked(self, name: str) -> None:
        one = self._models[name]
        command = one.sleep_asked
        assert command is not None
        instance = one.instance
        if one.state == "waking" or (instance.running and not command.force):
            return
        if instance.waiting and not (command.hold or command.force):
            return
        one.sleep_asked = None
        if one.state == "resident":
            self._sleep(name, command.to, "it was told to")
            return
        if command.to == "cold" and one.state == "host":
            one.instance.weights.leave_host()
            one.state, one.since = "cold", self._clock.now()
        self._emit(ModelMoved(name, one.state, why="it was told to"))

    def _view(self) -> DeviceView:
        pages = self._memory.budget()
        queue = any(o.state != "resident" and o.instance.has_work for o in self._models.values())
        queue = queue or any(self._lacks(name) for name in self._models)
        ladder = self.settings.ladder
        models = {
            name: one.view(self._page_bytes, self._kv_pages(name), ladder, queue=queue)
            for name, one in self._models.items()
            if one.gone is None
        }
        return DeviceView(self._clock.now(), pages.capacity, pages.free, models)

    def _kv_pages(self, name: str) -> int:
        one = self._models[name]
        weights = one.instance.weights.pages if one.state in ("resident", "waking") else 0
        return max(0, self._memory.pages_of(name) - weights)

    def _do(self, action: Action) -> None:
        one = self._models[action.model]
        match action:
            case Wake(name, why):
                self._wake(name, why)
            case Sleep(name, why, to, keep):
                self._sleep(name, to, why, keep=keep)
            case Drain(name, on, why):
                one.draining = self._clock.now() if on else None
                self._admit(one, not on)
                self.log.add("drain" if on else "admit", name, why)
            case SetLimit(name, pages, why):
                one.cap = pages
                self._memory.set_limit(name, pages)
                self.log.add("limit", name, why, pages or 0)
                if pages is not None and self._memory.pages_of(name) > pages:
                    one.shrink_to = pages
                    one.shrink_due = self._clock.now() + self.settings.shrink_seconds

    # --- sleeping and waking --------------------------------------------------------------------
    def _sleep(self, name: str, to: ResidencyState, why: str, *, keep: bool = False) -> None:
        """``keep``: what runs keeps its keys and values, and waits."""
        one, began = self._models[name], self._clock.now()
        pages = self._memory.pages_of(name)
        one.instance.sleep(keep=keep)
        if to == "cold":
            one.instance.weights.leave_host()
        else:
            one.instance.weights.hold_host()
        one.state, one.since = to, self._clock.now()
        one.sleeps += 1
        one.keep, one.shrink_to, one.shrink_due = None, None, inf
        one.draining = one.cap = None
        self._memory.set_limit(name, None)
        self._admit(one, True)
        self._changed = True
        seconds = one.since - began
        pages -= self._memory.pages_of(name)
        self.log.add("pause" if keep else "sleep", name, why, pages, seconds)
        self._emit(ModelMoved(name, one.state, seconds, why))
        self._trim_host()

    def _wake(self, name: str, why: str) -> None:
        one = self._models[name]
        weights = one.instance.weights
        if not weights.map() and not (self._room_for(name) and weights.map()):
            if not one.refused:
                one.refused = True
                self.log.add("wake", name, f"{why}, but {weights.missing()} pages are missing")
            return
        one.refused = False
        one.state, one.since = "waking", self._clock.now()
        self.log.add("wake", name, why, weights.pages)
        self._filler.fill(weights, lambda error: self._filled(name, why, error))

    def _room_for(self, name: str) -> bool:
        """Climb the ladder's lower rungs for the model's weights; those above are the policy's."""
        weights = self._models[name].instance.weights
        return self.climb(weights.missing, f"{name} wakes", name)

    def climb(self, missing: Callable[[], int], why: str, but: str = "") -> bool:
        """Take cached prefixes, and whatever else the ladder has below weights, until nothing is
        missing; not of the model ``but``."""
        takes: dict[Rung, Callable[[int], int]] = {
            "idle-prefixes": lambda pages: self._reclaim.idle_prefixes(pages, but),
            "prefixes": lambda pages: self._reclaim.prefixes(pages, but),
        }
        return climb(
            self.settings.ladder, takes, missing, lambda rung, n: self.log.add(rung, but, why, n)
        )

    def _filled(self, name: str, why: str, error: Exception | None) -> None:
        one = self._models[name]
        self._changed = True
        if one.gone is not None:
            del self._models[name]
            one.gone()
            return
        now = self._clock.now()
        seconds = now - one.since
        if error is not None:
            self._failed(name, one, error)
            return
        one.state, one.since, one.asked = "resident", now, False
        one.last_used = now
        one.wakes += 1
        one.wake_seconds = seconds
        self.log.add("awake", name, why, one.instance.weights.pages, seconds)
        self._emit(ModelMoved(name, "resident", seconds, why))

    def _failed(self, name: str, one: Resident, error: Exception) -> None:
        """Weights could not be read: the requests that wait for them fail."""
        one.instance.weights.unmap()
        one.state, one.since, one.asked = "cold", self._clock.now(), False
        code = error.code if isinstance(error, TenfoldError) else TenfoldError.code
        self.log.add("wake", name, f"failed: {error}")
        self._emit(ModelMoved(name, "cold", code=code, error=str(error)))
        for event in one.instance.fail_all(Unavailable(f"{name} could not be woken: {error}")):
            self._emit(event)

    def make_room(self, pages: int, but: str = "") -> int:
        """For a model that is being loaded: cached prefixes and, where the mode lets models sleep,
        the weights of those without requests. Returns the pages that came."""
        before = self._memory.budget().free
        wanted = before + pages
        self.climb(lambda: wanted - self._memory.budget().free, "a model is being loaded", but)
        if self.settings.mode in ("static", "quota"):
            return self._memory.budget().free - before
        idle = [(one.last_used, name) for name, one in self._models.items() if self._idle(one)]
        for _, name in sorted(idle):
            if self._memory.budget().free >= wanted:
                break
            self._sleep(name, "host", "a model is being loaded and needs its memory")
        return self._memory.budget().free - before

    def give_weights(self, but: str = "") -> bool:
        """The ladder's last rung for models that cannot run for want of pages: one without
        requests sleeps. False: there is none, or models do not sleep."""
        if self.settings.mode != "elastic" or "weights" not in self.settings.ladder:
            return False
        idle = [
            (one.options.evict_cost, one.last_used, name)
            for name, one in self._models.items()
            if self._idle(one) and name != but
        ]
        if not idle:
            return False
        self._sleep(min(idle)[2], "host", "models that run lack pages")
        return True

    def _idle(self, one: Resident) -> bool:
        instance = one.instance
        free = not (instance.running or instance.waiting or one.options.pinned or one.asked)
        return free and one.state == "resident"

    def _trim_host(self) -> None:
        """Of the models asleep, those used longest ago leave the host's memory, where it is
        bounded."""
        most = self.settings.host_bytes
        asleep = [one for one in self._models.values() if one.state == "host"]
        held = sum(one.instance.weights.pages for one in asleep) * self._page_bytes
        for one in sorted(asleep, key=lambda one: one.last_used) if most else ():
            if held <= most:
                return
            held -= one.instance.weights.pages * self._page_bytes
            one.instance.weights.leave_host()
            one.state, one.since = "cold", self._clock.now()
            self.log.add("cold", one.name, f"residency.host_bytes is {most}")
            self._emit(ModelMoved(one.name, "cold", why="the host's memory for weights is full"))

    # --- shrinking ------------------------------------------------------------------------------
    def _shrink(self, name: str, now: float) -> None:
        """Bring a model down to its limit: its cached prefixes, no new requests, and when its time
        is over, what runs, the youngest first."""
        one = self._models[name]
        limit, instance = one.shrink_to, one.instance
        assert limit is not None
        if one.state != "resident" or not isinstance(instance, GenerateInstance):
            one.shrink_to, one.shrink_due = None, inf
            return
        batcher, why = instance.batcher, f"its limit fell to {limit} pages"

        def over() -> int:
            return self._memory.pages_of(name) - limit

        takes: dict[Rung, Callable[[int], int]] = {"prefixes": batcher.cache.evict_pages}
        if now >= one.shrink_due:
            takes["preempt"] = lambda _: self._preempt(instance, over)
        if climb(
            self.settings.ladder, takes, over, lambda rung, n: self.log.add(rung, name, why, n)
        ) or (now >= one.shrink_due and not instance.running):
            one.shrink_to, one.shrink_due = None, inf
            self._admit(one, one.draining is None)
        elif batcher.admitting and "admission" in self.settings.ladder:
            self._admit(one, False)
            self.log.add("admission", name, why)

    def _preempt(self, instance: GenerateInstance, over: Callable[[], int]) -> int:
        before, batcher = over(), instance.batcher
        while over() > 0 and (victim := batcher.youngest) is not None:
            batcher.preempt(victim)
            batcher.cache.evict_pages(over())
        return before - over()

    def _admit(self, one: Resident, on: bool) -> None:
        if isinstance(one.instance, GenerateInstance):
            one.instance.batcher.admitting = on

    # --- looking inside -------------------------------------------------------------------------
    def tell(self, name: str, stats: ModelStats) -> ModelStats:
        """Fill in what is known here."""
        self._models[name].tell(stats, self._clock.now(), self._page_bytes, self.settings)
        return stats

    def names(self) -> Iterable[str]:
        return self._models


def _drained(one: Resident) -> bool:
    """Whether it was to admit nothing new, and what ran is done."""
    return one.draining is not None and not one.instance.running
