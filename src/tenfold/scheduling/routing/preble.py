"""Exploit or explore, by windowed cost: the rules of Preble (arXiv 2407.00023), without its times.

If more of a prompt is cached somewhere than is new, it is exploited: the holder with the least load
gets the request. Else it is explored: the worker gets it where load, what is being answered there
and the cost of what must be evicted for it add up to the least. A worker's load is the cost of what
it was given in the last three minutes. Where exploiting would go to a worker with more than 1.5
times the load of the least loaded one, and the excess is more than it costs to compute the match
anew, the least loaded gets the request, and so a copy of the prefix.

Preble measures costs in seconds by a model of the GPU, learns what evictions cost from hit counts
of each prefix, and copies prefixes whose first tokens come late. Here costs are weighted tokens,
an evicted token costs its worker's hit rate, and copies come from rebalancing alone; so this is
Preble-like. Ties go to the lowest number. Knows no clients.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tenfold.core.settings import RoutingSettings
from tenfold.scheduling.routing.base import Routed
from tenfold.scheduling.routing.router import Flight, PrefixRouter
from tenfold.scheduling.routing.workers import members

Floats = NDArray[np.float64]

WINDOW_SECONDS = 180.0
IMBALANCE = 1.5
OUTPUT_PACE = 0.1
"""How fast the expected length of an answer follows the last ones."""
FIRST_OUTPUT = 64.0
"""The length that an answer is expected to have before any has ended."""
COLUMNS = 16
"""There is room for so many workers more at a time."""


class _Given(NamedTuple):
    """Something a worker was given: what it costs, and the prompt's tokens by what it had."""

    at: float
    worker: int
    cost: float
    new: int = 0
    cached: int = 0


class _Sums:
    """By worker number. ``cost``, ``new`` and ``cached`` add up the window; ``active`` counts
    requests, ``full`` says when the worker last told of an eviction."""

    def __init__(self) -> None:
        self.cost, self.new, self.cached = np.zeros(0), np.zeros(0), np.zeros(0)
        self.active, self.full = np.zeros(0), np.zeros(0)

    def make_room(self) -> None:
        for name, first in (("cost", 0), ("new", 0), ("cached", 0), ("active", 0), ("full", -inf)):
            old: Floats = getattr(self, name)
            setattr(self, name, np.concatenate((old, np.full(COLUMNS, float(first)))))

    def reset(self, worker: int) -> None:
        self.cost[worker] = self.new[worker] = self.cached[worker] = self.active[worker] = 0.0
        self.full[worker] = -inf

    def add(self, given: _Given, sign: int = 1) -> None:
        self.cost[given.worker] += sign * given.cost
        self.new[given.worker] += sign * given.new
        self.cached[given.worker] += sign * given.cached


class PrebleLike(PrefixRouter):
    """Exploration and exploitation over a window of load."""

    def __init__(self, settings: RoutingSettings | None = None) -> None:
        super().__init__(settings)
        self._window: deque[_Given] = deque()
        self._sums = _Sums()
        self._output = FIRST_OUTPUT

    def joined(self, worker: int) -> None:
        if worker >= len(self._sums.cost):
            self._sums.make_room()

    def left(self, worker: int) -> None:
        super().left(worker)
        self._window = deque(given for given in self._window if given.worker != worker)
        self._sums.reset(worker)

    def evicted(self, worker: str, model: str, hashes: list[int]) -> None:
        super().evicted(worker, model, hashes)
        number = self.workers.number(worker)
        if hashes and number is not None:
            self._sums.full[number] = self._now

    # --- choosing -------------------------------------------------------------------------------
    def pick(self, request: Routed, among: int, now: float) -> Flight:
        self._expire(now)
        prompt, map = request.prompt_tokens, self.map(request.model)
        match = map.match(request.hashes, among)
        matched = self._tokens(request, match.blocks)
        everybody, load = self.workers.members(among), self._load()
        if matched > prompt - matched:
            number = self._lightest(load, members(match.holders))
            lightest = self._lightest(load, everybody)
            excess = load[number] - load[lightest]
            again = self.settings.extend_weight * matched
            if load[number] > IMBALANCE * load[lightest] and excess > again:
                number = lightest
        else:
            number = self._lightest(load + self._pushed_out(prompt - matched, now), everybody)
        if not match.holders >> number & 1:
            matched = self._tokens(request, map.match(request.hashes, 1 << number).blocks)
        new = prompt - matched
        self._give(_Given(now, number, self.settings.extend_weight * new, new, matched))
        self._sums.active[number] += 1
        map.expect(number, request.hashes)
        return Flight(request, number)

    def _tokens(self, request: Routed, blocks: int) -> int:
        """Of a prompt that is cached; the last one is always computed."""
        return min(blocks * request.block_tokens, request.prompt_tokens - 1)

    def _lightest(self, load: Floats, among: NDArray[np.intp]) -> int:
        return int(among[load[among].argmin()])

    def _load(self) -> Floats:
        """What every worker was given, and what it is expected to answer still."""
        answers = self.settings.output_weight * self._output
        return self._sums.cost + answers * self._sums.active

    def _pushed_out(self, new: int, now: float) -> Floats:
        """What it costs every worker to let go of so many cached tokens, where it is full."""
        sums = self._sums
        hits = sums.cached / np.maximum(sums.cached + sums.new, 1)
        full = now - sums.full < WINDOW_SECONDS
        return self.settings.extend_weight * new * hits * full

    def _give(self, given: _Given) -> None:
        self._window.append(given)
        self._sums.add(given)

    def _expire(self, now: float) -> None:
        while self._window and now - self._window[0].at >= WINDOW_SECONDS:
            self._sums.add(self._window.popleft(), -1)

    # --- what becomes of them -------------------------------------------------------------------
    def ended(self, flight: Flight, output_tokens: int | None) -> None:
        super().ended(flight, output_tokens)
        self._sums.active[flight.worker] -= 1
        if output_tokens is not None:
            self._output += OUTPUT_PACE * (output_tokens - self._output)
            answer = self.settings.output_weight * output_tokens
            self._give(_Given(self._now, flight.worker, answer))
