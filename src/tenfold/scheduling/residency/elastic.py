"""Elastic memory, as Prism has it: models sleep and wake as requests and memory ask for it, and
keys and values share whatever weights leave (arXiv 2505.04021v3, sections 5.2 and A.4).

A model that sleeps and has requests wakes. For the memory, models without work go to sleep, those
idle for longer than the threshold first. Where every model has work, the one whose requests are due
last stops admitting and, when it is through or its time to shrink is over, makes room. The paper
gives the threshold (45 s, only under pressure) and no rule for the rest: the rest is ours.
"""

from __future__ import annotations

from math import inf

from tenfold.core.settings import ResidencySettings
from tenfold.scheduling.residency.base import (
    Action,
    DeviceView,
    Drain,
    ModelView,
    SetLimit,
    Sleep,
    Wake,
)

WAKES_WORTH = 2.0
"""A model stays awake for so many times what waking it took, at least."""


class Elastic:
    """Implements ``base.ResidencyPolicy``."""

    def __init__(self, settings: ResidencySettings) -> None:
        self.settings = settings

    def fits(self, device: DeviceView, model: ModelView) -> str:
        pinned = sum(one.weight_pages for one in device.models.values() if one.pinned)
        if model.weight_pages + pinned < max(1, device.capacity):
            return ""
        beside = f" beside {pinned} of pinned models" if pinned else ""
        return (
            f"its weights take {model.weight_pages} pages{beside} and the device has "
            f"{device.capacity}"
        )

    def decide(self, device: DeviceView) -> list[Action]:
        room = _Room(device, self.settings)
        for model in room.models:
            if why := self._over(device.now, model):
                room.sleep(model, why)
        for model in sorted(room.models, key=_urgency):
            if model.wants:
                room.wake(model)
        room.relieve()
        room.undrain()
        return room.actions + self._limits_of(device, room)

    def _over(self, now: float, model: ModelView) -> str:
        """Why a model sleeps whatever memory there is."""
        if model.state != "resident" or model.busy or model.pinned or model.asked:
            return ""
        idle = now - model.last_used
        if model.ttl is not None and idle >= model.ttl:
            return f"no request for {idle:.1f} s, its time to live is {model.ttl:g} s"
        if self.settings.evict == "always" and idle >= self.settings.idle_seconds:
            return f"no request for {idle:.1f} s"
        return ""

    def _limits_of(self, device: DeviceView, room: _Room) -> list[Action]:
        """What each awake model may have at most: all but others' weights and floors."""
        awake = [one for one in room.models if room.awake(one)]
        taken = {one.name: one.weight_pages + one.floor_pages for one in awake}
        whole = sum(taken.values())
        found: list[Action] = []
        for one in awake:
            pages = max(one.weight_pages, device.capacity - (whole - taken[one.name]))
            if one.limit_pages is not None:
                pages = min(pages, one.weight_pages + one.limit_pages)
            if one.cap != pages:
                why = f"{len(awake)} models are awake, with {whole} pages of weights and floors"
                found.append(SetLimit(one.name, pages, why))
        return found

    def look_again(self, device: DeviceView) -> float:
        """When a model's time is over, or one that drains must be through."""
        settings, times = self.settings, [inf]
        for one in device.models.values():
            if one.draining is not None:
                times.append(one.draining + settings.shrink_seconds)
            if one.state != "resident" or one.busy or one.pinned:
                continue
            if one.ttl is not None:
                times.append(one.last_used + one.ttl)
            if settings.evict == "always":
                times.append(one.last_used + settings.idle_seconds)
        if any(one.wants for one in device.models.values()):
            ends = [one.since + least_awake(one, settings) for one in device.models.values()]
            times += [end for end in ends if end > device.now]
        return min(times)


def least_awake(model: ModelView, settings: ResidencySettings) -> float:
    """Seconds that a model which just woke is left in peace."""
    return min(settings.min_seconds, WAKES_WORTH * model.wake_seconds)


def _urgency(model: ModelView) -> tuple[float, float]:
    return model.deadline, model.oldest


class _Room:
    """Pages as they will be when the actions so far are done."""

    def __init__(self, device: DeviceView, settings: ResidencySettings) -> None:
        self.device = device
        self.settings = settings
        self.models = list(device.models.values())
        self.actions: list[Action] = []
        self.free = device.free
        self._slept: set[str] = set()
        self._woken: set[str] = set()
        self._drained: set[str] = set()

    def awake(self, model: ModelView) -> bool:
        return model.name in self._woken or (model.awake and model.name not in self._slept)

    def sleep(self, model: ModelView, why: str) -> None:
        self.actions.append(Sleep(model.name, why))
        self._slept.add(model.name)
        self.free += model.weight_pages + model.kv_pages

    def wake(self, model: ModelView) -> None:
        """Wake it if room can be made; else have one that can wait drain."""
        short = self._short(model)
        victims = self._idle_victims(model, short)
        if victims is None:
            victims = self._drained_victims(model, short)
        if victims is None:
            return
        for victim in victims:
            idle = self.device.now - victim.last_used
            done = f"it had no request for {idle:.1f} s" if not victim.busy else "it can wait"
            self.sleep(victim, f"{model.name} has requests and needs its memory; {done}")
        count = f"{model.waiting} requests wait" if model.waiting else "it was asked for"
        self.actions.append(Wake(model.name, count))
        self._woken.add(model.name)
        self.free -= model.weight_pages + self._first_pages(model)

    def _first_pages(self, model: ModelView) -> int:
        return max(1, model.wanted_pages, model.floor_pages)

    def _short(self, model: ModelView) -> int:
        """Pages that the model lacks, once cached prefixes of all others are given up."""
        cached = sum(one.cached_pages for one in self.models if self._stays(one))
        floors = sum(
            max(0, one.floor_pages - one.kv_pages) for one in self.models if self._stays(one)
        )
        need = model.weight_pages + self._first_pages(model)
        return need + floors - self.free - cached

    def _stays(self, model: ModelView) -> bool:
        return model.state == "resident" and model.name not in self._slept

    def _may_sleep(self, one: ModelView, model: ModelView) -> bool:
        awake = self._stays(one) and one is not model and not one.pinned and not one.asked
        return awake and self.device.now - one.since >= least_awake(one, self.settings)

    def _idle_victims(self, model: ModelView, short: int) -> list[ModelView] | None:
        """The least dear of those without work, as few as are needed; None if all do not do."""
        now, threshold = self.device.now, self.settings.idle_seconds
        found = [one for one in self.models if self._may_sleep(one, model) and not one.busy]
        found.sort(key=lambda o: (now - o.last_used < threshold, o.evict_cost, o.last_used))
        return _enough(found, short)

    def _drained_victims(self, model: ModelView, short: int) -> list[ModelView] | None:
        """With those that have work, but none that is due before the model's: they drain, and are
        victims once they are through or out of time."""
        mine = _urgency(model)
        idle = [one for one in self.models if self._may_sleep(one, model) and not one.busy]
        later = [
            one
            for one in self.models
            if self._may_sleep(one, model) and one.busy and _urgency(one) > mine
        ]
        later.sort(key=_urgency, reverse=True)
        chosen = _enough([*idle, *later], short)
        if chosen is None:
            return None
        ready = True
        for one in chosen:
            if not one.busy:
                continue
            self._drained.add(one.name)
            if one.draining is None:
                why = f"{model.name} sleeps and its requests are due before"
                self.actions.append(Drain(one.name, True, why))
                ready = False
            elif one.running and self.device.now < one.draining + self.settings.shrink_seconds:
                ready = False
        return chosen if ready else None

    def relieve(self) -> None:
        """Models that run and lack pages get those of models idle past the threshold."""
        short = sum(one.wanted_pages for one in self.models if self._stays(one)) - self.free
        if short <= 0:
            return
        now, threshold = self.device.now, self.settings.idle_seconds
        idle = [
            one
            for one in self.models
            if self._stays(one) and not one.busy and not one.pinned and not one.asked
            if now - one.last_used >= threshold
        ]
        idle.sort(key=lambda one: (one.evict_cost, one.last_used))
        for one in idle:
            if short <= 0:
                return
            self.sleep(
                one, f"pages are short and it had no request for {now - one.last_used:.1f} s"
            )
            short -= one.weight_pages + one.kv_pages

    def undrain(self) -> None:
        for one in self.models:
            if one.draining is not None and one.name not in self._drained:
                self.actions.append(Drain(one.name, False, "its memory is not needed any more"))


def _enough(found: list[ModelView], short: int) -> list[ModelView] | None:
    """The first few whose pages make up for what is short, none of them in vain."""
    chosen: list[ModelView] = []
    for one in found:
        if short <= 0:
            break
        chosen.append(one)
        short -= one.weight_pages + one.kv_pages - one.cached_pages
    if short > 0:
        return None
    for one in list(chosen):
        gain = one.weight_pages + one.kv_pages - one.cached_pages
        if short + gain <= 0:
            chosen.remove(one)
            short += gain
    return chosen
