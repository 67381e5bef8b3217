"""One worker for each model, and moving models between workers while they serve.

What should be where is decided by ``scheduling.placement``; here it is carried out. A move loads
the model at its target first, while the source serves on. Then new requests go to the target,
those that wait at the source are sent there, and those that run may end where they are, for a time.
What still runs then is computed again at the target from its prompt and its answer so far: keys and
values do not travel between processes. Knows no tokens and no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from tenfold.core.clock import Clock
from tenfold.core.errors import TenfoldError
from tenfold.core.messages import Decision, DeviceStats, Event, LoadModel, ModelMoved, ModelUp
from tenfold.core.settings import PlacementSettings
from tenfold.core.types import ModelFacts
from tenfold.fleet.book import ModelBook
from tenfold.fleet.dispatch import Dispatch
from tenfold.fleet.embeddings import Embeddings
from tenfold.fleet.places import named
from tenfold.fleet.pressure import Pressure, placed, step_bytes
from tenfold.fleet.residency import Residency
from tenfold.fleet.served import ModelSource, ServedModel
from tenfold.fleet.supervisor import Supervisor
from tenfold.models.sizes import Sizes, sizes_on
from tenfold.scheduling.placement.base import PlaceDevice, PlacedModel, highest
from tenfold.scheduling.placement.placer import Placer

log = logging.getLogger("tenfold.fleet")

FINISH_SECONDS = 10.0
"""So long may what runs at the source of a move go on there."""

UP_SECONDS = 120.0
"""So long is waited at the start for workers whose memory nobody has said."""

MOST_DECISIONS = 1000

SLEEPLESS = ("static", "quota")
"""Memory modes in which no model sleeps: what has no room is not served."""


class House(Protocol):
    """The service, as far as moving models needs it."""

    supervisors: dict[str, Supervisor]
    residency: Residency

    book: ModelBook
    dispatch: Dispatch
    embeddings: Embeddings

    async def stats(self) -> list[DeviceStats]: ...


class Placements:
    """The controller of one service (see ``Places``). All methods belong to its event loop."""

    moves = True

    def __init__(
        self,
        settings: PlacementSettings,
        house: House,
        pressure: Pressure,
        clock: Clock,
        finish_seconds: float = FINISH_SECONDS,
    ) -> None:
        """Raises ConfigError for an unknown policy."""
        self.settings = settings
        self.placer = Placer(settings, clock)
        self.decisions: deque[Decision] = deque(maxlen=MOST_DECISIONS)
        self.migrations = 0
        self.activations = 0
        """Of sleeping models, elsewhere than where they slept."""
        self._house = house
        self._pressure = pressure
        self._clock = clock
        self._finish_seconds = finish_seconds
        self._homes: dict[str, str] = {}
        self._sizes: dict[str, Sizes] = {}
        self._steps: dict[str, dict[str, int]] = {}
        """Of each device: what the steps of each model would take of it."""
        self._asleep: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    # --- life -----------------------------------------------------------------------------------
    def start(self) -> None:
        """Look from now on every ``period`` seconds."""
        self._looking = asyncio.create_task(self._look_on())

    async def stop(self) -> None:
        tasks = [*self._tasks, *([self._looking] if self._looking else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(self.settings.period)
            try:
                await self.look()
            except Exception:
                log.exception("looking at the placement failed; it is tried again")

    def _spawn(self, what: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- homes ----------------------------------------------------------------------------------
    async def settle(self, sources: list[ModelSource]) -> None:
        """Choose where models go before they are loaded, from their files' headers."""
        await self._await_memory()
        for source in sources:
            with contextlib.suppress(TenfoldError):  # its load will say what is wrong with it
                self._sizes[source.name] = await asyncio.to_thread(self._read, source)
        known = [source for source in sources if source.name in self._sizes]
        for source in known:
            self._count_steps(source)
        here = [self._view(entry.source) for entry in self._awake()]
        current = self._current() | {s.name: (s.device,) for s in known if s.device is not None}
        views = [*here, *(self._view(source) for source in known)]
        homes = self.placer.homes(views, self._devices(), current)
        for source in known:
            if source.name in homes.placement:
                home = self._homes[source.name] = homes.placement[source.name][0]
                if source.name in homes.asleep and not _sleepless(self._house.supervisors[home]):
                    source.options = replace(source.options, asleep=True)
                    said = "there is no room beside the others; it sleeps until it is asked for"
                    self._say(source.name, f"placed on {home}: {said}")

    async def _await_memory(self) -> None:
        unknown = [s for s in self._house.supervisors.values() if not _memory(s)]
        waiting = [asyncio.ensure_future(s.wait_up(UP_SECONDS)) for s in unknown]
        await asyncio.gather(*waiting, return_exceptions=True)

    def _read(self, source: ModelSource) -> Sizes:
        device = next(iter(self._house.supervisors.values())).settings
        return sizes_on(Path(source.path), source.name, device, source.options.kv_dtype)

    def _count_steps(self, source: ModelSource) -> None:
        """Wherever it may come to be."""
        for name, supervisor in self._house.supervisors.items():
            if source.device in (None, name):
                self._steps.setdefault(name, {})[source.name] = step_bytes(
                    self._sizes[source.name],
                    supervisor.settings,
                    _memory(supervisor),
                    source.options.speculation,
                )

    def of(self, source: ModelSource) -> list[Supervisor]:
        supervisors = self._house.supervisors
        name = source.device or self._homes.get(source.name)
        if name is None:  # nothing is known of it: where the most memory is
            return [max(supervisors.values(), key=self._capacity)]
        return [named(supervisors, name)]

    def forget(self, model: str) -> None:
        """The model is served no more."""
        self._homes.pop(model, None)
        self._sizes.pop(model, None)
        for steps in self._steps.values():
            steps.pop(model, None)
        self._pressure.forget(model)
        self._asleep = {(device, name) for device, name in self._asleep if name != model}

    # --- what is where --------------------------------------------------------------------------
    def heard(self, device: str, event: Event) -> None:
        """What a worker said of its models."""
        match event:
            case ModelUp(facts):
                self._pressure.begin(facts.name, device)
                command = self._house.supervisors[device].wanted.get(facts.name)
                self._note(device, facts.name, command is not None and command.options.asleep)
            case ModelMoved(name, state):
                self._note(device, name, state in ("host", "cold"))

    def _note(self, device: str, model: str, asleep: bool) -> None:
        if asleep:
            self._asleep.add((device, model))
        else:
            self._asleep.discard((device, model))

    def _awake(self) -> list[ServedModel]:
        """Models that take memory for their weights now, wherever they are."""
        return [
            entry
            for entry in self._house.book.entries()
            if entry.facts is not None
            and entry.state == "ready"
            and (entry.places[0].name, entry.name) not in self._asleep
        ]

    def _current(self) -> dict[str, tuple[str, ...]]:
        """Each model's device; in a move, that to which it goes."""
        return {entry.name: (entry.places[-1].name,) for entry in self._house.book.entries()}

    def _view(self, source: ModelSource, fixed: bool = False) -> PlacedModel:
        device = next(iter(self._house.supervisors.values())).settings
        facts, now = self._known(source.name), self._clock.now()
        return placed(
            source.name,
            facts,
            device,
            self._pressure.rates.rate(source.name, now),
            tpot_target=source.options.tpot_target,
            floor_bytes=source.options.floor_bytes,
            fixed=fixed or source.device is not None,
            pinned=source.pinned,
            busy=self._pressure.busy.rate(source.name, now) / 1e6,
        )

    def _known(self, model: str) -> ModelFacts | None:
        entry = next((e for e in self._house.book.entries() if e.name == model), None)
        if entry is not None and entry.facts:
            return entry.facts
        return self._sizes[model].facts if model in self._sizes else None

    def _devices(self, but: str = "") -> list[PlaceDevice]:
        lacked, now = self._pressure.lacked, self._clock.now()
        return [
            PlaceDevice(
                supervisor.name, self._capacity(supervisor), lacked.rate(supervisor.name, now) > 0
            )
            for supervisor in self._house.supervisors.values()
            if not supervisor.draining and supervisor.name != but and self._capacity(supervisor)
        ]

    def _capacity(self, supervisor: Supervisor) -> int:
        """For weights, keys and values: what steps may take, or took already, is left out."""
        stats = supervisor.last_stats
        taken = stats.scratch_pages * stats.page_bytes if stats else 0
        steps = max(self._steps.get(supervisor.name, {}).values(), default=0)
        return max(0, _memory(supervisor) - max(taken, steps))

    def _up(self) -> list[PlaceDevice]:
        up = {name for name, s in self._house.supervisors.items() if s.up is not None}
        return [device for device in self._devices() if device.name in up]

    # --- looking --------------------------------------------------------------------------------
    async def look(self) -> None:
        """One look: read what is asked of whom, and move what pays."""
        for state in await self._house.stats():
            for model in state.models:
                self._note(state.device, model.name, model.residency in ("host", "cold"))
        claims, idle = self._claims()
        models = [self._view(entry.source, entry.moving) for entry in claims]
        plan = self.placer.look(models, self._up(), self._current(), idle)
        entries = {entry.name: entry for entry in claims}
        todo = [move for move in plan.moves if move.model in entries]
        worst = f"highest pressure {highest(plan.before):.3g} -> {highest(plan.after):.3g}"
        while todo:
            fits = next((m for m in todo if self._has_room(entries[m.model], m.target, idle)), None)
            if fits is None:
                for move in todo:
                    self.placer.moved(move.model)
                    self._say(move.model, f"not moved to {move.target}: no room to load it there")
                return
            todo.remove(fits)
            why = fits.why if fits.source else f"{worst}: its worker is away or drained"
            await self.migrate(entries[fits.model], self._house.supervisors[fits.target], why)

    def _has_room(self, entry: ServedModel, target: str, idle: set[str]) -> bool:
        """Whether its weights fit there beside those that are there now and would not sleep."""
        there = [e for e in self._awake() if target in (p.name for p in e.places)]
        there = [e for e in there if e is not entry and e.name not in idle]
        taken = sum(self._view(e.source).weight_bytes for e in there)
        room = self._capacity(self._house.supervisors[target])
        view = self._view(entry.source)
        return taken + view.weight_bytes + view.least_bytes <= room

    def asked(self, entry: ServedModel) -> None:
        """A request for the model is about to be sent. One that sleeps where others press, or where
        no memory is without work, wakes where that is not so; one that is waited for stays."""
        home = entry.places[0]
        if entry.moving or entry.held or not self._sleeps(entry):
            return
        claims, idle = self._claims()
        view, views = self._view(entry.source), [self._view(e.source) for e in claims]
        best = self.placer.activate(view, views, self._up(), self._current(), idle)
        if best is None or best == home.name:
            return
        self.activations += 1
        why = f"asked for while it slept on {home.name}, where memory is shorter"
        entry.moving, entry.places = True, [self._house.supervisors[best]]
        self._spawn(self._wake_at(entry, home, self._house.supervisors[best], why))

    def _claims(self) -> tuple[list[ServedModel], set[str]]:
        """The models that have memory or want it, and those of them that would sleep for others."""
        awake, at_work = self._awake(), self._at_work()
        claims, idle = [], set()
        for entry in self._house.book.entries():
            home = entry.places[0]
            works = entry.moving or (home.name, entry.name) in at_work
            if entry in awake or (works and not entry.held and entry.state == "ready"):
                claims.append(entry)
                if not (works or entry.source.pinned or _sleepless(home)):
                    idle.add(entry.name)
        return claims, idle

    def _at_work(self) -> set[tuple[str, str]]:
        """The workers and models that have requests."""
        return self._house.dispatch.at_work() | self._house.embeddings.at_work()

    async def _wake_at(
        self, entry: ServedModel, home: Supervisor, target: Supervisor, why: str
    ) -> None:
        began = self._clock.now()
        try:
            await target.load(_awake_command(entry))
        except TenfoldError as error:
            if entry.places == [target]:
                entry.places = [home]
            self._say(entry.name, f"not woken on {target.name}: {error.message}", began)
        else:
            self._homes[entry.name] = target.name
            self._say(entry.name, f"{home.name} -> {target.name}: {why}", began, entry)
            if entry in self._house.book.entries():
                home.unload(entry.name)
        finally:
            entry.moving = False
            self.placer.moved(entry.name)

    def lost(self, device: str) -> None:
        """A worker died: its models are loaded where they fit. It is started again with all of
        them, and serves them until then; those that fit nowhere else stay its own."""
        why = f"the worker of {device} died"
        for entry in self._at(device):
            if self._sleeps(entry):
                continue  # it loses nothing, and is there again soon
            if (target := self._elsewhere(entry)) is not None:
                self._spawn(self.migrate(entry, target, why))
            else:
                self._say(entry.name, f"stays on {device}, {why}: no other device has room")

    def drained(self, device: str) -> None:
        """A worker is to get nothing new: its models go where they fit."""
        for entry in self._at(device):
            if (target := self._elsewhere(entry)) is not None:
                entry.leaving = True  # the source serves on until the target is ready
                self._spawn(self.migrate(entry, target, f"{device} is being drained"))
            else:
                self._say(entry.name, f"stays on {device}, which is drained: no room elsewhere")

    def _at(self, device: str) -> list[ServedModel]:
        """Models of a device that may move, the most wanted first."""
        found = [
            entry
            for entry in self._house.book.entries()
            if entry.places[0].name == device
            and not entry.moving
            and entry.source.device is None
            and entry.state == "ready"
        ]
        return sorted(found, key=lambda entry: -self._view(entry.source).demand)

    def _sleeps(self, entry: ServedModel) -> bool:
        """Whether it sleeps, and nobody wants it to wake."""
        mine = (entry.places[0].name, entry.name)
        return mine in self._asleep and mine not in self._at_work()

    def _elsewhere(self, entry: ServedModel) -> Supervisor | None:
        """Another worker that is up and has room, of the lowest pressure; one that sleeps takes no
        room now."""
        home, view = entry.places[0].name, self._view(entry.source)
        devices = [device for device in self._up() if device.name != home]
        awake = [] if self._sleeps(entry) else [e for e in self._awake() if e is not entry]
        views = [self._view(one.source) for one in awake]
        best = self.placer.activate(view, views, devices, self._current())
        if best is None:
            return None
        entry.places = [entry.places[0], self._house.supervisors[best]]  # room that is now taken
        return self._house.supervisors[best]

    # --- moving ---------------------------------------------------------------------------------
    async def migrate(self, entry: ServedModel, target: Supervisor, why: str) -> bool:
        """Bring a model to another worker while it serves. Returns when new requests go there; what
        runs at the source ends behind that. False: it stays where it is, and the log says why."""
        source = entry.places[0]
        if entry.moving or source is target:
            return False
        began, name = self._clock.now(), entry.name
        entry.moving, entry.places = True, [source, target]
        command = _awake_command(entry)
        command.options.asleep = self._sleeps(entry)
        if name in source.moves.held:
            target.moves.held[name] = source.moves.held[name]
        try:
            await target.load(command)
        except TenfoldError as error:
            target.moves.held.pop(name, None)
            self._say(
                name, f"not moved from {source.name} to {target.name}: {error.message}", began
            )
            entry.moving = entry.leaving = False
            if entry.places == [source, target]:
                entry.places = [source]
            self.placer.moved(name)
            return False
        self.migrations += 1
        entry.places, self._homes[name] = [target], target.name
        self._say(name, f"{source.name} -> {target.name}: {why}", began, entry)
        self.placer.moved(name)
        self._spawn(self._vacate(entry, source))
        return True

    async def _vacate(self, entry: ServedModel, source: Supervisor) -> None:
        """Empty the source of a move, then unload the model there."""
        house, device, name = self._house, source.name, entry.name
        for call in house.dispatch.at(device, name):
            if not call.ran:
                house.dispatch.send_on(call)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._finish_seconds):
                while house.dispatch.at(device, name) or house.embeddings.at(device, name):
                    await self._ended.wait()
        for call in house.dispatch.at(device, name):
            house.dispatch.send_on(call)
        house.embeddings.send_on(source, name)
        entry.moving = entry.leaving = False
        if entry in house.book.entries() and source not in entry.places:
            source.unload(name)

    def call_ended(self) -> None:
        """A request is over, wherever it was."""
        self._ended.set()
        self._ended = asyncio.Event()

    def _say(
        self,
        model: str,
        why: str,
        began: float | None = None,
        moved: ServedModel | None = None,
    ) -> None:
        now = self._clock.now()
        facts = self._known(model)
        page = next(iter(self._house.supervisors.values())).settings.page_bytes
        pages = -(-facts.weight_bytes // page) if facts and began is not None else 0
        seconds = now - began if began is not None else 0.0
        decision = Decision(now, "migrate", model, why, pages, seconds)
        self.decisions.append(decision)
        self._house.residency.note(decision, moved)
        log.info("%s: %s", model, why)


def _sleepless(supervisor: Supervisor) -> bool:
    return supervisor.settings.residency.mode in SLEEPLESS


def _memory(supervisor: Supervisor) -> int:
    return supervisor.up.capacity_bytes if supervisor.up else supervisor.settings.memory_bytes


def _awake_command(entry: ServedModel) -> LoadModel:
    source = entry.source
    return LoadModel(source.name, source.path, replace(source.options, asleep=False))
