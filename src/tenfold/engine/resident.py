"""One model of a device: where its weights are, and what its owner asked for.

Knows how policies and reports see it, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from tenfold.core.messages import ModelOptions, ModelStats, ResidencyState, SleepModel
from tenfold.core.settings import ResidencySettings, Rung
from tenfold.engine.instance import Instance
from tenfold.scheduling.residency.base import ModelView


@dataclass(slots=True)
class Resident:
    """``limit_pages``: set by an administrator, for keys and values; ``cap``: as ``SetLimit`` last
    said. ``keep``: the ``keep_alive`` of its latest request that had one. ``held``: it sleeps until
    it is told to wake; ``asked``: it was told to. ``draining``: since when it admits nothing new.
    """

    name: str
    instance: Instance
    state: ResidencyState
    since: float
    last_used: float
    options: ModelOptions
    limit_pages: int | None = None
    cap: int | None = None
    keep: float | None = None
    held: bool = False
    asked: bool = False
    draining: float | None = None
    sleep_asked: SleepModel | None = None
    gone: Callable[[], None] | None = None
    """What to do when it has woken, instead of running: it was unloaded meanwhile."""
    shrink_to: int | None = None
    shrink_due: float = inf
    refused: bool = False
    """The last try to wake it found no room, and that was said."""
    wakes: int = 0
    sleeps: int = 0
    wake_seconds: float = 0.0

    def view(
        self, page_bytes: int, kv_pages: int, ladder: Sequence[Rung], *, queue: bool
    ) -> ModelView:
        """``queue``: whether to look through what waits. Prefixes that no rung takes are not
        counted as cached: nobody could have their pages."""
        instance, options, keep = self.instance, self.options, self.keep
        rung: Rung = "prefixes" if instance.has_work else "idle-prefixes"
        return ModelView(
            self.name,
            self.state,
            instance.weights.pages,
            kv_pages,
            cached_pages=instance.cached_pages() if rung in ladder else 0,
            wanted_pages=-(-instance.wanted_bytes() // page_bytes),
            limit_pages=self.limit_pages,
            cap=self.cap,
            floor_pages=options.floor_bytes // page_bytes,
            running=instance.running,
            waiting=instance.waiting,
            oldest=instance.oldest() if queue else inf,
            deadline=instance.urgency() if queue else inf,
            overdue=instance.overdue() if queue else inf,
            last_used=self.last_used,
            since=self.since,
            pinned=options.pinned or (keep is not None and keep < 0),
            held=self.held,
            asked=self.asked,
            draining=self.draining,
            ttl=keep if keep is not None and keep >= 0 else options.ttl,
            evict_cost=options.evict_cost,
            wake_seconds=self.waking_takes(),
        )

    def waking_takes(self) -> float:
        """Seconds: what it took the last time if it is awake, and else would take now."""
        took = self.wake_seconds if self.state == "resident" else 0.0
        return took or self.instance.weights.seconds()

    def tell(
        self, stats: ModelStats, now: float, page_bytes: int, settings: ResidencySettings
    ) -> None:
        """Fill in what is known here."""
        stats.residency = self.state
        stats.pinned = self.options.pinned
        stats.held = self.held
        stats.limit_pages = self.cap
        stats.floor_pages = self.options.floor_bytes // page_bytes
        busy = self.instance.running or self.instance.waiting
        stats.idle_seconds = 0.0 if busy else now - self.last_used
        stats.sleeps_in = None
        if self.state == "resident" and not busy and (stay := self._stay(settings)) is not None:
            stats.sleeps_in = max(0.0, stay - stats.idle_seconds)
        stats.wakes, stats.sleeps, stats.wake_seconds = self.wakes, self.sleeps, self.wake_seconds

    def _stay(self, settings: ResidencySettings) -> float | None:
        """Seconds without work after which the model sleeps whatever memory there is; None: it does
        not."""
        keep = self.keep
        if settings.mode in ("static", "quota", "swap") or self.options.pinned:
            return None
        if keep is not None:
            return keep if keep >= 0 else None
        times = [] if self.options.ttl is None else [self.options.ttl]
        if settings.mode in ("ttl", "cold"):
            times = times or [settings.keep_alive]
        elif settings.evict == "always":
            times.append(settings.idle_seconds)
        return min(times, default=None)
