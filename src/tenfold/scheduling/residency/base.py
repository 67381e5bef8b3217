"""The seam between a device's memory and the decision which models have their weights in it.

A policy looks at a picture of the device and says what to do, each time with a reason; who carries
it out maps pages, waits and logs. The same policies run over real pages and over counted ones.
Counts are physical pages. Does not know how weights travel, nor whose requests wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Literal, Protocol

from tenfold.core.messages import ResidencyState
from tenfold.core.settings import ResidencySettings


@dataclass(slots=True)
class ModelView:
    """One model of a device at a moment. Times are seconds of the device's clock.

    ``weight_pages``: what its weights take awake. ``kv_pages``: mapped now, of which
    ``cached_pages`` hold nothing but cached prefixes. ``wanted_pages``: what its waiting requests
    would take at least. ``limit_pages``: set by an administrator, for keys and values; ``cap``: as
    ``SetLimit`` last said. ``oldest``:
    arrival of the oldest waiting request, ``deadline``: the earliest by which one's first token is
    due that is not late; ``overdue``: when the first that is late will have waited too long.
    ``last_used``: when it last had a request. ``since``: when its state began. ``held``: it
    sleeps until it is told to wake; ``asked``: it was told to. ``draining``: since when it admits
    nothing new, if it does not.
    ``wake_seconds``: what waking is expected to take.
    """

    name: str
    state: ResidencyState
    weight_pages: int
    kv_pages: int = 0
    cached_pages: int = 0
    wanted_pages: int = 0
    limit_pages: int | None = None
    cap: int | None = None
    floor_pages: int = 0
    running: int = 0
    waiting: int = 0
    oldest: float = inf
    deadline: float = inf
    overdue: float = inf
    last_used: float = 0.0
    since: float = 0.0
    pinned: bool = False
    held: bool = False
    asked: bool = False
    draining: float | None = None
    ttl: float | None = None
    evict_cost: float = 1.0
    wake_seconds: float = 0.0

    @property
    def busy(self) -> bool:
        return self.running + self.waiting > 0

    @property
    def wants(self) -> bool:
        """Whether it sleeps and should not."""
        wanted = self.busy or self.pinned or self.asked
        return bool(wanted) and not self.awake and not self.held

    @property
    def paused(self) -> bool:
        """Whether requests were begun that wait for the weights to come back."""
        return self.running > 0 and not self.awake

    @property
    def awake(self) -> bool:
        """Whether its weights take pages: there, or on their way."""
        return self.state in ("resident", "waking")


@dataclass(slots=True)
class DeviceView:
    """A device at a moment. ``capacity``: pages for weights, keys and values of all its models;
    ``free`` of them are mapped for nobody."""

    now: float
    capacity: int
    free: int
    models: dict[str, ModelView] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class Wake:
    """Map and fill the model's weights. Where pages lack, cached prefixes are given up for it."""

    model: str
    why: str


@dataclass(slots=True, frozen=True)
class Sleep:
    """Give the pages of the model's weights, keys and values back. What runs is preempted; with
    ``keep`` it keeps its keys and values, and goes on when the model is awake again."""

    model: str
    why: str
    to: Literal["host", "cold"] = "host"
    keep: bool = False


@dataclass(slots=True, frozen=True)
class Drain:
    """Admit nothing new to the model (``on``), or do so again."""

    model: str
    on: bool
    why: str


@dataclass(slots=True, frozen=True)
class SetLimit:
    """At most ``pages`` for the model's weights, keys and values; None: as many as there are. Above
    a new limit it is shrunk, within the time that the settings give."""

    model: str
    pages: int | None
    why: str


Action = Wake | Sleep | Drain | SetLimit


class ResidencyPolicy(Protocol):
    """Decides for one device. One thread; pure but for what it remembers of earlier calls."""

    def fits(self, device: DeviceView, model: ModelView) -> str:
        """Whether one more model may be served here, its view with state "cold": the reason why
        not, or nothing."""
        ...

    def decide(self, device: DeviceView) -> list[Action]:
        """What to do now, in this order. Called when a model's requests came or went, when one
        fell asleep or woke, and when ``look_again`` says. Nothing that is done already is asked
        for again."""
        ...

    def look_again(self, device: DeviceView) -> float:
        """When ``decide`` wants to be called even if nothing happens; infinity for never."""
        ...


PolicyFactory = Callable[[ResidencySettings], ResidencyPolicy]
