"""The virtual token counter: whoever was served least is served next.

"Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024), Algorithm 2, with weights. It
knows no prefixes: requests of a client run in order of arrival, and its bound,
|W_f - W_g| <= 2 max(w_p L_input, w_q M) for two clients that always have work, is paid for with the
prefix cache. The prompt is billed whole, as published; ``vtc_charge`` = "extend" bills what was not
cached. Does not know sizes of memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from tenfold.scheduling.base import PolicySetup, Waiting
from tenfold.scheduling.queue import SortedQueue


class VTC:
    """The least served client's first request; while that does not fit, nobody else's is tried."""

    blocking = True

    def __init__(self, setup: PolicySetup | None = None) -> None:
        setup = setup or PolicySetup()
        self.counters = setup.accounts.counters
        self._settings = setup.settings
        self._extend = setup.settings.extend_weight * setup.price
        self._output = setup.settings.output_weight * setup.price
        self._queues: dict[str, SortedQueue] = {}

    def add(self, w: Waiting) -> None:
        queue = self._queues.setdefault(w.client, SortedQueue(lambda w: 0))
        queue.add(w)
        self.counters.queue(w.client)

    def remove(self, w: Waiting) -> None:
        queue = self._queues.get(w.client)
        if queue is None or queue.discard(w.id) is None:
            return
        if not len(queue):
            del self._queues[w.client]
        self.counters.unqueue(w.client)

    def candidates(self, now: float) -> Iterator[Waiting]:
        while self._queues:
            client = min(self._queues, key=lambda name: (self.counters.value(name), name))
            w = next(self._queues[client].walk())
            yield w
            if client in self._queues and w.id in self._queues[client]:
                return

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
        return True

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
