"""The virtual token counter: whoever was served least is served next.

"Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024), Algorithm 2, with weights. It
knows no prefixes: requests of a client run in order of arrival, and its bound,
|W_f - W_g| <= 2 max(w_p L_input, w_q M) for two clients that always have work, is paid for with the
prefix cache. The prompt is billed whole, as published; ``vtc_charge`` = "extend" bills what was not
cached. Does not know sizes of memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush
from itertools import islice

from tenfold.scheduling.base import PolicySetup, Waiting
from tenfold.scheduling.queue import SortedQueue


class VTC:
    """The least served client's first request; while that does not fit, nothing else is tried.

    Candidates go on to that client's other requests, for a caller that passes one over."""

    blocking = True

    def __init__(self, setup: PolicySetup | None = None) -> None:
        setup = setup or PolicySetup()
        self.counters = setup.accounts.counters
        self._settings = setup.settings
        self._extend = setup.settings.extend_weight * setup.price
        self._output = setup.settings.output_weight * setup.price
        self._queues: dict[str, SortedQueue] = {}
        self._least: list[tuple[float, str]] = []
        self._refunds = 0

    def add(self, w: Waiting) -> None:
        new = w.client not in self._queues
        queue = self._queues.setdefault(w.client, SortedQueue(lambda w: 0))
        queue.add(w)
        self.counters.queue(w.client)
        if new:
            heappush(self._least, (self.counters.value(w.client), w.client))

    def remove(self, w: Waiting) -> None:
        queue = self._queues.get(w.client)
        if queue is None or queue.discard(w.id) is None:
            return
        if not len(queue):
            del self._queues[w.client]
        self.counters.unqueue(w.client)

    def candidates(self, now: float) -> Iterator[Waiting]:
        while (client := self._least_served()) is not None:
            for w in self._queues[client].walk():
                yield w
                if client not in self._queues or w.id not in self._queues[client]:
                    break
            else:
                return

    def _least_served(self) -> str | None:
        """The client with the smallest counter among those queued here. Counters only grow, but for
        refunds: so what lies in the heap is at most the counter, and is corrected on top."""
        if self._refunds != self.counters.refunds:
            self._refunds = self.counters.refunds
            self._least = [(self.counters.value(client), client) for client in self._queues]
            heapify(self._least)
        while self._least:
            value, client = self._least[0]
            now = self.counters.value(client)
            if client in self._queues and value == now:
                return client
            heappop(self._least)
            if client in self._queues:
                heappush(self._least, (now, client))
        return None

    def admitted(self, w: Waiting, extend_tokens: int) -> None:
        again, w.preempted = w.preempted, False
        if not again:
            self.counters.start(w.client)
        self.remove(w)
        if self._settings.vtc_charge == "extend":
            self.counters.charge(w.client, self._extend * extend_tokens)
        elif not again:
            self.counters.charge(w.client, self._extend * w.prompt_tokens)

    def prefilled(self, client: str, tokens: int) -> None:
        """The prompt was billed when it was admitted."""

    def decoded(self, counts: Mapping[str, int]) -> None:
        for client, tokens in counts.items():
            self.counters.charge(client, self._output * tokens)

    def finished(self, client: str, unused: int = 0) -> None:
        self.counters.stop(client)
        self._refund(client, unused)

    def preempted(self, w: Waiting, unused: int = 0) -> None:
        w.preempted = True
        self.add(w)
        self._refund(w.client, unused if self._settings.vtc_charge == "extend" else 0)

    def shared(self, tokens: Mapping[str, float]) -> None:
        for client, amount in tokens.items():
            self.counters.charge(client, self._extend * amount)

    def may_run(self, client: str) -> bool:
        least = self._least_served()
        return least is not None and self.counters.value(client) <= self.counters.value(least)

    def first(self, most: int) -> list[Waiting]:
        clients = sorted(self._queues, key=lambda name: (self.counters.value(name), name))
        return list(islice((w for name in clients for w in self._queues[name].walk()), most))

    def reason(self, w: Waiting) -> str:
        return f"the counter of {w.client!r} is {self.counters.value(w.client):g}"

    def _refund(self, client: str, tokens: int) -> None:
        if tokens:
            self.counters.charge(client, -self._extend * tokens)

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())
