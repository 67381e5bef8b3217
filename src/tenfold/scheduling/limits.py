"""Hard limits of clients and of groups: requests and tokens a minute, and requests at once.

They are ceilings, apart from fair sharing and from the bounds of queues: a client meets its limit
on an idle server, too. The rules:

- *A minute* is any 60 seconds: a sliding window, not a bucket that a pause fills up. What counts
  leaves it 60 seconds later (up to a quarter of a second more, never earlier).
- *Requests* count when they are admitted, each choice of ``n`` as one. What ends before it began
  to run, refused elsewhere, cancelled or failed in the queue, is taken back as if it never was.
- *Tokens* are reserved and settled. Admission counts the prompt and reserves the answer: its
  ``max_tokens``, or where a request does not say, ``ASSUMED_OUTPUT`` tokens (a quarter of a limit
  below four times that). Each token made moves from reserved to counted; what is left goes back at
  the end. An answer may pass what was assumed for it, and is counted on.
- *At once* counts what waits and what runs.
- *Groups* count all that is in them; a request needs room everywhere on the way up.

So in any 60 seconds a client gets at most its limit of requests, and of tokens at most its limit
plus what answers without ``max_tokens`` took beyond what was assumed. Lives in the server's
process, takes a clock; does not know models, keys, or what becomes of a refusal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from math import ceil, inf
from types import TracebackType
from typing import NamedTuple

from tenfold.core.clock import Clock, SystemClock
from tenfold.core.errors import RateLimited
from tenfold.core.settings import ClientSettings, GroupSettings

WINDOW = 60.0
SLOT = 0.25
"""Seconds that are counted together, so that a window is at most 241 numbers."""

ASSUMED_OUTPUT = 256

_SLOTS = round(WINDOW / SLOT)


class Room(NamedTuple):
    """How much of a limit is left. ``reset``: seconds until nothing counts any more."""

    limit: int
    remaining: int
    reset: float


class Standing(NamedTuple):
    """Where a client stands, at the tightest of its own limits and its groups'. None: no limit."""

    requests: Room | None = None
    tokens: Room | None = None
    concurrent: Room | None = None


class _Window:
    """A sum over the last 60 seconds."""

    __slots__ = ("_slots", "total")

    def __init__(self) -> None:
        self.total = 0
        self._slots: deque[list[int]] = deque()  # [slot, amount], oldest first

    def add(self, amount: int, now: float) -> None:
        slot = int(now // SLOT)
        if not self._slots or self._slots[-1][0] < slot:
            self.forget(now)
            self._slots.append([slot, 0])
        self._slots[-1][1] += amount
        self.total += amount

    def take_back(self, amount: int, slot: int) -> None:
        """What was added in ``slot`` never was; nothing happens where it is forgotten already."""
        for entry in self._slots:
            if entry[0] == slot:
                entry[1] -= amount
                self.total -= amount
                return

    def forget(self, now: float) -> None:
        """Drop the slots of which every moment is 60 seconds ago."""
        last = int(now // SLOT) - _SLOTS - 1
        while self._slots and self._slots[0][0] <= last:
            self.total -= self._slots.popleft()[1]

    def wait(self, amount: int, now: float) -> float:
        """Seconds until ``amount`` of what counts now is forgotten, or all of it."""
        at, gone = now, 0
        for slot, counted in self._slots:
            if gone >= amount:
                break
            gone += counted
            at = (slot + _SLOTS + 1) * SLOT
        return max(0.0, at - now)


class _Scope:
    """A client or a group: its limits, and what counts against them."""

    __slots__ = ("limits", "name", "open", "requests", "reserved", "tokens")

    def __init__(self, name: str) -> None:
        self.name = name
        self.limits: ClientSettings | GroupSettings
        self.requests = _Window()
        self.tokens = _Window()
        self.reserved = 0
        self.open = 0

    def forget(self, now: float) -> None:
        self.requests.forget(now)
        self.tokens.forget(now)

    def requests_refused(self, count: int, now: float) -> Iterator[RateLimited]:
        limits = self.limits
        if (most := limits.requests_per_minute) is not None:
            excess = self.requests.total + count - most
            if excess > 0:
                used = f"{self.name} has begun {self.requests.total} requests in the last minute"
                wait = None if count > most else self.requests.wait(excess, now)
                yield _refusal("requests_per_minute", used, most, f"this one counts {count}", wait)
        if (most := limits.max_concurrent) is not None and self.open + count > most:
            used = f"{self.name} has {self.open} requests open"
            wait = None if count > most else 1.0
            yield _refusal("max_concurrent", used, most, f"this one counts {count}", wait)

    def tokens_refused(self, tokens: int, now: float) -> Iterator[RateLimited]:
        most = self.limits.tokens_per_minute
        if most is None:
            return
        excess = self.tokens.total + self.reserved + tokens - most
        if excess > 0:
            used = (
                f"{self.name} has used {self.tokens.total} tokens in the last minute and holds "
                f"{self.reserved} for answers that are being made"
            )
            asked = f"this request may take {tokens} (its prompt and its longest answer)"
            wait = None if tokens > most else self.tokens.wait(excess, now)
            yield _refusal("tokens_per_minute", used, most, asked, wait)

    def rooms(self, now: float) -> Standing:
        self.forget(now)
        limits, requests, tokens = self.limits, self.requests, self.tokens
        return Standing(
            _room(limits.requests_per_minute, requests.total, requests.wait(requests.total, now)),
            _room(
                limits.tokens_per_minute,
                tokens.total + self.reserved,
                tokens.wait(tokens.total, now),
            ),
            _room(limits.max_concurrent, self.open, 0.0),
        )


class Grant:
    """What one call was let in with. Made by ``RateLimiter.enter``; leave it, and all is settled.

    The parts are the call's choices, from 0.
    """

    def __init__(self, scopes: tuple[_Scope, ...], parts: int, clock: Clock) -> None:
        self._scopes = scopes
        self._clock = clock
        self._prompt = 0
        self._reserved = [0] * parts
        self._counted = [0] * parts
        self._begun = [False] * parts
        self._live = set(range(parts))
        now = clock.now()
        self._entered = int(now // SLOT)
        self._admitted = self._entered
        for scope in scopes:
            scope.requests.add(parts, now)
            scope.open += parts

    def reserve(self, prompt: int, output: int | None, most: int) -> None:
        """Count the prompt's tokens and reserve the answer's, for each part: ``output`` where the
        request says how many it wants, and never above ``most``.

        Raises RateLimited, with nothing counted, where there is no room for them.
        """
        if not self._scopes:
            return
        now, parts = self._clock.now(), len(self._reserved)
        wanted = min(most, self._assumed() if output is None else output)
        for scope in self._scopes:
            scope.forget(now)
        tokens = parts * (prompt + wanted)
        _raise_longest(e for s in self._scopes for e in s.tokens_refused(tokens, now))
        self._prompt, self._reserved = prompt, [wanted] * parts
        self._admitted = int(now // SLOT)
        for scope in self._scopes:
            scope.tokens.add(parts * prompt, now)
            scope.reserved += parts * wanted

    def _assumed(self) -> int:
        limits = [s.limits.tokens_per_minute for s in self._scopes]
        return min([ASSUMED_OUTPUT, *(most // 4 for most in limits if most is not None)])

    def began(self, part: int) -> None:
        """The part runs: from now on its request and its prompt stay counted."""
        self._begun[part] = True

    def output(self, part: int, made: int) -> None:
        """``made`` tokens of the part are there. One that starts anew counts from 0 again; only
        what is beyond all it ever had is new."""
        fresh = made - self._counted[part]
        if fresh <= 0 or part not in self._live or not self._scopes:
            return
        self._counted[part] = made
        settled = min(fresh, self._reserved[part])
        self._reserved[part] -= settled
        now = self._clock.now()
        for scope in self._scopes:
            scope.tokens.add(fresh, now)
            scope.reserved -= settled

    def end(self, part: int) -> None:
        """The part is over, well or badly. Ending it again changes nothing."""
        if part not in self._live:
            return
        self._live.discard(part)
        for scope in self._scopes:
            scope.open -= 1
            scope.reserved -= self._reserved[part]
            if not self._begun[part]:
                scope.requests.take_back(1, self._entered)
                scope.tokens.take_back(self._prompt, self._admitted)

    def __enter__(self) -> Grant:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for part in list(self._live):
            self.end(part)


class RateLimiter:
    """The limits of one server. One thread."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._scopes: dict[tuple[str, str], _Scope] = {}
        self._paths: dict[str, tuple[_Scope, ...]] = {}

    def set_limits(
        self, clients: Iterable[ClientSettings], groups: Iterable[GroupSettings]
    ) -> None:
        """These limits from now on; what was counted stays, where there was a limit before. The
        tree was checked (``core.tenancy``). Calls that run stay with the groups they began in."""
        clients, named = list(clients), {group.name: group for group in groups}
        before, self._scopes = self._scopes, {}
        for kind, tenants in (("client", clients), ("group", named.values())):
            for one in tenants:
                if _limits_anything(one):
                    key = kind, one.name
                    scope = self._scopes[key] = before.get(key) or _Scope(f"{kind} {one.name!r}")
                    scope.limits = one
        self._paths = {c.name: path for c in clients if (path := self._path(c, named))}

    def _path(self, client: ClientSettings, groups: dict[str, GroupSettings]) -> tuple[_Scope, ...]:
        keys, up = [("client", client.name)], client.group
        while up:
            keys.append(("group", up))
            up = groups[up].group
        return tuple(self._scopes[key] for key in keys if key in self._scopes)

    def enter(self, client: str, requests: int = 1) -> Grant:
        """Let in a call that counts as so many requests; use what it returns in a ``with``.

        Raises RateLimited, with nothing counted, where a limit is reached: of several, the one that
        takes longest to be free again.
        """
        scopes, now = self._paths.get(client, ()), self._clock.now()
        for scope in scopes:
            scope.forget(now)
        _raise_longest(error for s in scopes for error in s.requests_refused(requests, now))
        return Grant(scopes, requests, self._clock)

    def standing(self, client: str) -> Standing | None:
        """Where the client stands now; None where nothing limits it."""
        scopes, now = self._paths.get(client, ()), self._clock.now()
        if not scopes:
            return None
        rooms = [scope.rooms(now) for scope in scopes]
        return Standing(*(_tightest(kind) for kind in zip(*rooms, strict=True)))


def _limits_anything(one: ClientSettings | GroupSettings) -> bool:
    limits = (one.requests_per_minute, one.tokens_per_minute, one.max_concurrent)
    return any(limit is not None for limit in limits)


def _refusal(limit: str, used: str, most: int, asked: str, wait: float | None) -> RateLimited:
    advice = "no waiting helps: ask for less at a time"
    if wait is not None:
        advice = f"try again in about {max(1, ceil(wait))} s"
    message = f"{used}, and {asked}; the limit ({limit}) is {most}; {advice}"
    return RateLimited(message, limit=limit, retry_after=wait)


def _raise_longest(errors: Iterable[RateLimited]) -> None:
    """Raise the one whose wait ends last, if there is any."""
    found = list(errors)
    if found:
        raise max(found, key=lambda e: inf if e.retry_after is None else e.retry_after)


def _room(limit: int | None, used: int, reset: float) -> Room | None:
    return None if limit is None else Room(limit, max(0, limit - used), reset)


def _tightest(rooms: Iterable[Room | None]) -> Room | None:
    return min((room for room in rooms if room is not None), key=_left, default=None)


def _left(room: Room) -> int:
    return room.remaining
