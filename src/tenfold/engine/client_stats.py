"""What a device tells of its clients: who has requests there, and who was served most."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nlargest

from tenfold.core.messages import ClientStats
from tenfold.engine.batcher import Batcher
from tenfold.scheduling.accounts import Accounts

MOST_CLIENTS = 256
"""Clients of which a device's state tells."""


def client_stats(accounts: Accounts, batchers: Iterable[Batcher], now: float) -> list[ClientStats]:
    """The clients that have requests here, then those that were served most; not all."""
    found: dict[str, ClientStats] = {}
    working: set[str] = set()
    for batcher in batchers:
        for seq in batcher.sequences.values():
            client = seq.request.client
            working.add(client)
            if client not in found:
                if len(found) == MOST_CLIENTS:
                    continue
                found[client] = accounts.stats(client)
            mine = found[client]
            if seq.started:
                mine.running += 1
            else:
                mine.waiting += 1
                mine.oldest_wait = max(mine.oldest_wait, now - seq.request.arrival)
    fair = accounts.fair(working)
    for client, mine in found.items():
        mine.fair = fair[client]
    served = accounts.served
    rest = (name for name in served if name not in found)
    for client in nlargest(MOST_CLIENTS - len(found), rest, key=lambda name: served[name].asked):
        found[client] = accounts.stats(client)
    return list(found.values())
