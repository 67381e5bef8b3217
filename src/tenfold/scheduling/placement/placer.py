"""Placement over time: when to look, what pays, and what must rest after it moved.

One object for a fleet, driven by a server or by a simulation, each with its own clock. Knows no
worker and no request: models and devices come as values, and what it decides is carried out, and
reported back, by others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from tenfold.core.clock import Clock
from tenfold.core.settings import PlacementSettings
from tenfold.scheduling.placement.base import (
    Board,
    Move,
    Part,
    PlaceDevice,
    PlacedModel,
    Placement,
    PlacementPlan,
    board_of,
    highest,
    no_room,
    parts_of,
)
from tenfold.scheduling.placement.registry import placement_policies
from tenfold.scheduling.placement.static import spread
from tenfold.scheduling.placement.threshold import Threshold

MOST_BUSY = 0.6
"""The share of its time that a device may compute after a model came to it, or as much as the one
that the model leaves: pressure knows memory alone, and a model that waits for its turn is as late
as one that waits for pages."""

FIRST_RATE = 1.0
"""Tokens a second that every model is taken to get before anybody has asked it anything: without
demand all pressures are equal, and the published listing would fill the first device."""


@dataclass(slots=True, frozen=True)
class Homes:
    """Where models belong, and which of them have no room there beside the others: they sleep, and
    wake when others do. ``hopeless``: why, for each model that no device could ever hold."""

    placement: Placement
    asleep: frozenset[str]
    hopeless: dict[str, str]


class Placer:
    """Any policy but "replicate", which places nothing. Raises ConfigError for an unknown one.

    "paper" moves as published: whenever a pressure is lower elsewhere. With the others a model
    leaves only a device that is ``pressed``, and only for one that it does not crowd."""

    def __init__(self, settings: PlacementSettings, clock: Clock) -> None:
        self.settings = settings
        self.policy = placement_policies.get(settings.policy)(settings)
        self.threshold = Threshold(settings.threshold)
        self._published = settings.policy == "paper"
        self._clock = clock
        self._moved: dict[str, float] = {}

    def homes(
        self,
        models: Sequence[PlacedModel],
        devices: Sequence[PlaceDevice],
        current: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Homes:
        """A home for every model before it runs, the most wanted first where not all fit. What has
        one in ``current`` keeps it."""
        asked = any(model.token_rate for model in models)
        models = [m if asked else replace(m, token_rate=FIRST_RATE) for m in models]
        current = current or {}
        models = [replace(m, fixed=m.fixed or m.name in current) for m in models]
        plan = self.policy.place(models, devices, current)
        board = Board(devices)
        placement, hopeless = dict(plan.placement), {}
        for model in models:
            for index, device in enumerate(placement.get(model.name, ())):
                board.put(parts_of([model], devices, {})[index], device)
        for model in sorted(models, key=lambda m: -m.weight_bytes):
            if model.name not in plan.unplaced:
                continue
            alone = Board(devices)
            if spread(alone, parts_of([model], devices, {})):
                hopeless[model.name] = no_room(model, alone)
                continue
            parts = parts_of([model], devices, {})
            for part in parts:  # where the least is, for its size: it waits there for its turn
                open_to = [d for d in alone.capacity if _could(devices, part.weight, d)]
                open_to = [d for d in open_to if not board.sibling(part, d)]
                board.put(part, min(open_to, key=lambda d: board.weight[d] / board.capacity[d]))
            placement[model.name] = tuple(board.at[part] for part in parts)
        asleep = frozenset(plan.unplaced.keys() - hopeless.keys())
        return Homes(placement, asleep, hopeless)

    def look(
        self,
        models: Sequence[PlacedModel],
        devices: Sequence[PlaceDevice],
        current: Mapping[str, tuple[str, ...]],
        idle: Collection[str] = (),
    ) -> PlacementPlan:
        """What should move now. Call it every ``period`` seconds, with the models that are awake
        or asked for; tell ``moved`` of each that did. ``idle``: those of them that would sleep for
        the others. Where not all have room they do not count, which is not published."""
        resting = self._resting()
        if self._published:
            plan, free = self._plan(models, devices, current, resting)
        else:
            plan, free = self._relieved(models, devices, current, resting)
            if idle and (plan.unplaced or highest(plan.after) == inf):
                at_work = [one for one in models if one.name not in idle]
                plan, free = self._relieved(at_work, devices, current, resting)
        if any(move.source is not None for move in plan.moves):
            self.threshold.taken()
        elif not resting and free:  # with models held fast, nothing is offered
            self.threshold.passed_over(plan.offered)
        return plan

    def _relieved(
        self,
        models: Sequence[PlacedModel],
        devices: Sequence[PlaceDevice],
        current: Mapping[str, tuple[str, ...]],
        held: Collection[str],
    ) -> tuple[PlacementPlan, bool]:
        """As ``_plan``; models leave only pressed devices, and go to none that they crowd."""
        now_at = board_of(devices, parts_of(models, devices, current)).pressures()
        full = {name for name, pressure in now_at.items() if pressure == inf}
        devices = [replace(d, pressed=d.pressed or d.name in full) for d in devices]
        calm = {device.name for device in devices if not device.pressed}
        held = {*held, *(m.name for m in models if calm.issuperset(current.get(m.name, ("",))))}
        models, devices, current = _relief(models, devices, current)
        while True:
            plan, free = self._plan(models, devices, current, held)
            crowding = _crowding(plan.moves, models, current, full)
            if not crowding:
                return plan, free
            held |= crowding

    def _plan(
        self,
        models: Sequence[PlacedModel],
        devices: Sequence[PlaceDevice],
        current: Mapping[str, tuple[str, ...]],
        held: Collection[str],
    ) -> tuple[PlacementPlan, bool]:
        """The policy's, with the models that are ``held`` fast, and whether any is not."""
        worst = highest(board_of(devices, parts_of(models, devices, current)).pressures())
        tau = 0.0 if worst == inf else self.threshold.value() * worst
        chosen = [replace(m, fixed=m.fixed or m.name in held) for m in models]
        return self.policy.place(chosen, devices, current, tau), len(held) < len(models)

    def _resting(self) -> set[str]:
        now = self._clock.now()
        return {name for name, at in self._moved.items() if now - at < self.settings.cooldown}

    def moved(self, model: str) -> None:
        """The model moved, or could not: it rests for ``cooldown`` seconds."""
        self._moved[model] = self._clock.now()

    def activate(
        self,
        model: PlacedModel,
        awake: Sequence[PlacedModel],
        devices: Sequence[PlaceDevice],
        current: Mapping[str, tuple[str, ...]],
        idle: Collection[str] = (),
    ) -> str | None:
        """Where a model that sleeps or is nowhere should wake: the device whose pressure is lowest
        with the model on it (as published: before), of those that have room beside what is
        ``awake`` there or wants to be; its home where that is not worse by more than the threshold.
        Where none has, the same beside what is not ``idle``: some of those will sleep for it, which
        is not published. None: no device has room, and memory must be made where it belongs; or it
        moved just now. For models of one part."""
        part = parts_of([model], devices, current)[0]
        if model.fixed or (part.home is not None and model.name in self._resting()):
            return None
        found = self._open_to(part, awake, devices, current)
        if found is None and idle and not self._published:
            at_work = [one for one in awake if one.name not in idle]
            found = self._open_to(part, at_work, devices, current)
        return found

    def _open_to(
        self,
        part: Part,
        awake: Sequence[PlacedModel],
        devices: Sequence[PlaceDevice],
        current: Mapping[str, tuple[str, ...]],
    ) -> str | None:
        board = board_of(devices, parts_of(awake, devices, current))
        open_to = [device for device in board.capacity if board.fits(part, device)]
        if not open_to:
            return None
        pressures = {d: board.pressure(d, None if self._published else part) for d in open_to}
        best = min(open_to, key=lambda d: (pressures[d], board.weight[d]))
        home = part.home
        if home in open_to and home is not None:
            gain = pressures[home] - pressures[best]
            if gain <= self.threshold.value() * pressures[home]:
                return home
        return best


def _relief(
    models: Sequence[PlacedModel],
    devices: Sequence[PlaceDevice],
    current: Mapping[str, tuple[str, ...]],
) -> tuple[Sequence[PlacedModel], Sequence[PlaceDevice], Mapping[str, tuple[str, ...]]]:
    """The problem without devices that lack nothing, though their pressure is no lower than that of
    those that do: nothing is to leave them, and as the highest they would hide all others. Of a
    model in parts what lies elsewhere stays. Where a model is nowhere, all devices are open to it
    and the problem is the whole one."""
    parts = parts_of(models, devices, current)
    pressures = board_of(devices, parts).pressures()
    worst = max((pressures[one.name] for one in devices if one.pressed), default=inf)
    away = {one.name for one in devices if not one.pressed and pressures[one.name] >= worst}
    if not away or any(part.home is None for part in parts):
        return models, devices, current
    kept, homes = [], dict(current)
    for model in models:
        there = current.get(model.name, ())
        here = tuple(device for device in there if device not in away)
        if len(here) == len(there):
            kept.append(model)
        elif here:
            share = len(here) / model.parts
            kept.append(
                replace(
                    model,
                    weight_bytes=round(model.weight_bytes * share),
                    least_bytes=round(model.least_bytes * share),
                    token_rate=model.token_rate * share,
                    busy=model.busy * share,
                    parts=len(here),
                    fixed=True,
                )
            )
            homes[model.name] = here
    return kept, [device for device in devices if device.name not in away], homes


def _crowding(
    moves: Sequence[Move],
    models: Sequence[PlacedModel],
    current: Mapping[str, tuple[str, ...]],
    full: Collection[str],
) -> set[str]:
    """Those that would go to a device which computes too much already, from one that holds them:
    where weights do not fit, a device that computes is better than one that has no room."""
    busy = {model.name: model.busy / model.parts for model in models}
    before: dict[str, float] = defaultdict(float)
    for model in models:
        for device in current.get(model.name, ()):
            before[device] += busy[model.name]
    after = before.copy()
    leaving = [(move.model, move.source, move.target) for move in moves if move.source is not None]
    for name, source, target in leaving:
        after[source] -= busy[name]
        after[target] += busy[name]
    return {
        name
        for name, source, target in leaving
        if source not in full and after[target] > max(MOST_BUSY, before[source], before[target])
    }


def _could(devices: Sequence[PlaceDevice], weight: float, name: str) -> bool:
    return any(device.name == name and weight < device.capacity for device in devices)
