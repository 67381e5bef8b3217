"""Elastic memory, as Prism has it: models sleep and wake as requests and memory ask for it, and
keys and values share whatever weights leave (arXiv 2505.04021v3, sections 5.2 and A.4).

A model that sleeps and has requests wakes. For the memory, models without work go to sleep, those
idle for longer than the threshold first. The paper gives the threshold (45 s, only under pressure)
and no rule for more; the rest is ours. Where every awake model has work, one of them *pauses*: its
weights go, the keys and values of what runs stay, and when it wakes again what ran goes on. Who
pauses, and when:

- for a first token that can still be on time, at the last good moment (``EAGERNESS``), so that one
  change of models serves as many requests as possible: a model with nothing due before it;
- for requests that are late, have no target, or have begun: a model with nothing due at all, once
  it had its turn (``TURN``); and for those that are overdue, any model that had its turn.
"""

from __future__ import annotations

from math import inf

from tenfold.core.settings import ResidencySettings
from tenfold.scheduling.residency.base import (
    Action,
    DeviceView,
    ModelView,
    SetLimit,
    Sleep,
    Wake,
)

WAKES_WORTH = 1.0
"""A model stays awake for so many times what waking it took, at least."""

TURN = 10.0
"""And for so many where nothing that can be on time waits for its memory: changing models then
takes a tenth of the time."""

EAGERNESS = 0.75
"""A model with requests takes another's turn when so much of their time to the first token is
left."""

WAKES_LEFT = 3.0
"""But no later than so many times what waking takes before they are due."""


class Elastic:
    """Implements ``base.ResidencyPolicy``."""

    def __init__(self, settings: ResidencySettings) -> None:
        self.settings = settings
        self._again = inf
        """When a model that wants another's memory may have it."""

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
        self._again = room.again
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
        """When a model's time is over, or one may have the memory that it wants."""
        times = [self._again]
        for one in device.models.values():
            if one.state != "resident" or one.busy or one.pinned:
                continue
            if one.ttl is not None:
                times.append(one.last_used + one.ttl)
            if self.settings.evict == "always":
                times.append(one.last_used + self.settings.idle_seconds)
        return min(times)


def least_awake(model: ModelView, settings: ResidencySettings) -> float:
    """Seconds that a model which just woke is left in peace."""
    return min(settings.min_seconds, WAKES_WORTH * model.wake_seconds)


def turn(model: ModelView) -> float:
    """Seconds of a model's turn, where nothing that can be on time waits for its memory."""
    return TURN * model.wake_seconds


def _urgency(model: ModelView) -> tuple[float, float, float]:
    """Those that are due, by their deadline; then those that sleep for longest."""
    return model.deadline, model.overdue, model.since


class _Room:
    """Pages as they will be when the actions so far are done. ``again``: when ``decide`` should
    look again for the sake of a model that wants memory and may not have it yet."""

    def __init__(self, device: DeviceView, settings: ResidencySettings) -> None:
        self.device = device
        self.settings = settings
        self.models = list(device.models.values())
        self.actions: list[Action] = []
        self.free = device.free
        self.again = inf
        self._slept: set[str] = set()
        self._woken: set[str] = set()

    def awake(self, model: ModelView) -> bool:
        return model.name in self._woken or (model.awake and model.name not in self._slept)

    def sleep(self, model: ModelView, why: str, *, keep: bool = False) -> None:
        """``keep``: the keys and values of what runs stay."""
        self.actions.append(Sleep(model.name, why, keep=keep))
        self._slept.add(model.name)
        self.free += _gain(model, keep=keep) + (0 if keep else model.cached_pages)

    def wake(self, model: ModelView) -> None:
        """Wake it if room can be made now; if it could be later, look again then."""
        short = self._short(model)
        idle, keep = self._idle(model), True
        victims = _enough(idle, short)
        if victims is None:
            busy = self._busy(model)
            victims = _enough([*idle, *busy], short, keep=True)
            if victims is None:
                keep = False
                paused = [o for o in self.models if o.paused and o is not model]
                victims = _enough([*idle, *paused, *busy], short)
            if victims is None or not self._may_pause(model, victims):
                return
        for victim in victims:
            idle_for = self.device.now - victim.last_used
            done = "it can wait" if victim.busy else f"it had no request for {idle_for:.1f} s"
            why = f"{model.name} has requests and needs its memory; {done}"
            self.sleep(victim, why, keep=keep and victim.running > 0)
        count = f"{model.waiting} requests wait" if model.waiting else "it was asked for"
        if model.running:
            count = f"{model.running} requests run"
        self.actions.append(Wake(model.name, count))
        self._woken.add(model.name)
        self.free -= model.weight_pages + self._first_pages(model)

    def _first_pages(self, model: ModelView) -> int:
        return max(1, model.wanted_pages, model.floor_pages)

    def _short(self, model: ModelView) -> int:
        """Pages that the model lacks, once cached prefixes of all others are given up."""
        others = [one for one in self.models if one is not model and one.name not in self._slept]
        cached = sum(one.cached_pages for one in others)
        floors = sum(
            max(0, one.floor_pages - one.kv_pages) for one in others if one.state == "resident"
        )
        need = model.weight_pages + self._first_pages(model)
        return need + floors - self.free - cached

    def _stays(self, model: ModelView) -> bool:
        return model.state == "resident" and model.name not in self._slept

    def _may_sleep(self, one: ModelView, model: ModelView | None, least: float) -> bool:
        """Whether ``one`` has been awake for ``least`` seconds; if that is all that is missing, it
        is looked at again when it has."""
        if not self._stays(one) or one is model or one.pinned or one.asked:
            return False
        if self.device.now >= one.since + least:
            return True
        self.again = min(self.again, one.since + least)
        return False

    def _idle(self, model: ModelView | None = None) -> list[ModelView]:
        """Those without work that may sleep, for ``model``'s sake: the least dear first."""
        settings = self.settings
        found = [
            one
            for one in self.models
            if not one.busy and self._may_sleep(one, model, least_awake(one, settings))
        ]
        now, threshold = self.device.now, settings.idle_seconds
        found.sort(key=lambda o: (now - o.last_used < threshold, o.evict_cost, o.last_used))
        return found

    def _busy(self, model: ModelView) -> list[ModelView]:
        """Those whose work can wait for the model's, what is due last first."""
        overdue = model.overdue <= self.device.now
        busy = []
        for one in self.models:
            if not one.busy:
                continue
            if model.deadline < one.deadline:
                least = least_awake(one, self.settings)
            elif one.deadline == inf or overdue:
                least = turn(one)
            else:
                continue
            if self._may_sleep(one, model, least):
                busy.append(one)
        busy.sort(key=_urgency, reverse=True)
        return busy

    def _may_pause(self, model: ModelView, victims: list[ModelView]) -> bool:
        """Whether the moment has come to take busy models' memory."""
        now = self.device.now
        if model.deadline == inf or not any(one.busy for one in victims):
            return True
        left = EAGERNESS * max(0.0, model.deadline - model.oldest)
        begin = model.deadline - max(left, WAKES_LEFT * model.wake_seconds)
        if begin <= now:
            return True
        self.again = min(self.again, begin)
        return False

    def relieve(self) -> None:
        """Models that run and lack pages get those of models without work, idle for longest first:
        those idle past the threshold, and any where a first token that can be on time waits."""
        stay = [one for one in self.models if self._stays(one)]
        short = sum(one.wanted_pages for one in stay) - self.free
        if short <= 0:
            return
        idle = self._idle()
        if all(one.deadline == inf for one in stay if one.wanted_pages):
            threshold = self.settings.idle_seconds
            idle = [one for one in idle if self.device.now - one.last_used >= threshold]
        for one in _enough(idle, short) or idle:
            idle_for = self.device.now - one.last_used
            self.sleep(one, f"pages are short and it had no request for {idle_for:.1f} s")


def _gain(one: ModelView, *, keep: bool = False) -> int:
    """Pages that its sleep brings beside its cached prefixes, which are given up anyway."""
    weights = one.weight_pages if one.awake else 0
    return weights if keep and one.running else weights + one.kv_pages - one.cached_pages


def _enough(found: list[ModelView], short: int, *, keep: bool = False) -> list[ModelView] | None:
    """The first few whose pages make up for what is short, none of them in vain."""
    chosen: list[ModelView] = []
    for one in found:
        if short <= 0:
            break
        chosen.append(one)
        short -= _gain(one, keep=keep)
    if short > 0:
        return None
    for one in list(chosen):
        gain = _gain(one, keep=keep)
        if short + gain <= 0:
            chosen.remove(one)
            short += gain
    return chosen
