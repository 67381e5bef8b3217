"""What clients ask, and when: calls, and programs made of calls that wait for one another.

A workload is drawn from its seed alone. It does not know who answers: a simulated cluster, a server
or an engine in this process. Times are seconds since it began.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from math import inf
from typing import Literal, Protocol

from tenfold.core.errors import ConfigError
from tenfold.fleet.workloads.arrivals import times
from tenfold.fleet.workloads.prompt import Prompt, Words

Then = Callable[["Call", list[int], float], Iterable["Call"]]
"""Told of an answer (the call, its tokens, the time), gives the calls that had to wait for it."""

Scenario = Literal["none", "requests", "prefix"]
"""How the misbehaving clients differ: not at all, by more requests (S1 of the DLPM paper), or by
longer prefixes (S2)."""


@dataclass(slots=True, eq=False)
class Program:
    """Calls that belong together, such as a tree of thoughts: done with the last of ``calls``.
    ``next``: told when it is over, gives the first calls of the client's next one."""

    name: str
    client: str
    calls: int = 1
    answered: int = 0
    began: float = -1.0
    next: Callable[[float], Iterable[Call]] | None = None

    @property
    def done(self) -> bool:
        return self.answered >= self.calls


@dataclass(slots=True, eq=False)
class Call:
    """One request. ``at``: when it is asked. ``output``: tokens that are generated, exactly.
    ``then``: what follows from the answer. ``model``: which of several; empty: the only one."""

    client: str
    prompt: Prompt
    output: int
    at: float
    program: Program
    then: Then | None = None
    model: str = ""


PAUSE = 1.0
"""Seconds that a client waits after a failure."""


def asked(call: Call) -> None:
    """Book that a call was sent."""
    if call.program.began < 0:
        call.program.began = call.at


def answered(call: Call, tokens: list[int], now: float) -> list[Call]:
    """Book an answer; gives the calls that follow from it."""
    program = call.program
    program.answered += 1
    following = [] if call.then is None else list(call.then(call, tokens, now))
    if program.done and program.next is not None:
        following += program.next(now)
    return _of_the_same(call, following)


def failed(call: Call, now: float) -> list[Call]:
    """A call was refused or lost, and its program ends there; gives what its client does next."""
    after, call.program.next = call.program.next, None
    return [] if after is None else _of_the_same(call, list(after(now + PAUSE)))


def _of_the_same(call: Call, following: list[Call]) -> list[Call]:
    """What follows from a call is asked of its model, unless it names another."""
    for one in following:
        one.model = one.model or call.model
    return following


class Workload(Protocol):
    """Made of settings: a dataclass of plain values, all with a default."""

    def calls(self, seed: int, seconds: float) -> Iterator[Call]:
        """The calls that no other call causes, by time, until ``seconds``.

        Raises ConfigError for settings that mean nothing."""
        ...


@dataclass(slots=True)
class Directed:
    """A workload all of whose calls are for one model."""

    workload: Workload
    model: str

    def calls(self, seed: int, seconds: float) -> Iterator[Call]:
        for call in self.workload.calls(seed, seconds):
            call.model = self.model
            yield call


class Person:
    """One client of a workload while it is drawn: its name and its own randomness."""

    def __init__(self, kind: str, number: int, seed: int, misbehaves: bool) -> None:
        self.name = f"{kind}-{number}"
        self.number = number
        self.misbehaves = misbehaves
        self.random = random.Random(f"{seed}/{self.name}")
        self.words = Words(self.random.getrandbits(63))
        self._programs = 0

    def program(self, calls: int = 1) -> Program:
        """A new program of this client."""
        self._programs += 1
        return Program(f"{self.name}/{self._programs}", self.name, calls)

    def length(self, mean: float, scale: float, spread: float = 0.0) -> int:
        """A length in tokens around ``mean`` (evenly, up to ``spread`` of it either way), times
        ``scale``; at least 1."""
        return max(1, round(mean * scale * (1 + spread * (2 * self.random.random() - 1))))


Start = Callable[[Person, float], list[Call]]
"""Begins a program of a person at a time: its first calls. None: the person lets it be."""


@dataclass(slots=True)
class Clients:
    """The settings that all kinds of clients share.

    ``name``: of each client, before its number. ``rate``: programs a second of each client, in an
    open loop with gaps of this ``cv``; 0: a closed loop, in which each client has ``concurrent``
    programs under way. ``misbehaving``: so many clients, the first ones, misbehave as ``scenario``
    says: with ``factor`` times the requests, or as long prefixes as the kind says. ``scale``
    shortens every length, for machines that are small.
    """

    name: str = ""
    clients: int = 3
    rate: float = 0.0
    cv: float = 1.0
    concurrent: int = 1
    scenario: Scenario = "none"
    misbehaving: int = 1
    factor: float = 4.0
    scale: float = 1.0

    def people(self, seed: int) -> list[Person]:
        """Raises ConfigError for settings that mean nothing."""
        name = self.name
        check_positive(name, clients=self.clients, concurrent=self.concurrent, scale=self.scale)
        check_positive(name, factor=self.factor)
        if self.rate < 0 or self.cv < 0:
            raise ConfigError(f"{name}: rate {self.rate:g} and cv {self.cv:g} must not be below 0")
        bad = 0 if self.scenario == "none" else self.misbehaving
        return [Person(name, number, seed, number < bad) for number in range(self.clients)]

    def pace(self, person: Person) -> float:
        """Programs a second of this client, or how many it has under way."""
        more = self.factor if person.misbehaves and self.scenario == "requests" else 1.0
        return (self.rate or self.concurrent) * more

    def drawn(self, seed: int, seconds: float, start: Start) -> Iterator[Call]:
        """All clients' first calls by time, each client in its loop."""
        streams = [self._stream(person, seconds, start) for person in self.people(seed)]
        return merge(*streams, key=lambda call: call.at)

    def _stream(self, person: Person, seconds: float, start: Start) -> Iterator[Call]:
        pace = self.pace(person)
        if self.rate:
            for at in times(pace, self.cv, seconds, person.random):
                yield from start(person, at)
            return

        def again(now: float) -> Iterable[Call]:
            if now >= seconds:
                return []
            calls = start(person, now)
            for call in calls[:1]:
                call.program.next = again
            return calls

        for _ in range(max(1, round(pace))):
            yield from again(0.0)


def check_positive(kind: str, **values: float) -> None:
    """Raises ConfigError for a setting that is not above 0."""
    for name, value in values.items():
        if not 0 < value < inf:
            raise ConfigError(f"workload {kind}: {name} is {value:g} and must be above 0")
