"""The seam between the engine's loop and the order in which requests are served.

A policy orders waiting requests and is told what becomes of them, in tokens. It does not know
whether a request fits in memory, how long a step takes, or what tokens say.

**How a fair policy uses it.** VTC and DLPM (arXiv 2501.14312, Algorithm 1) keep a number per
client. ``candidates`` is a generator, so what ``admitted`` changes between two of its values is
seen at once: DLPM checks each client's deficit when it comes to its request and, where no queued
client has credit left, refills in place and goes on with those it had skipped; VTC picks the least
served client anew after every admission and sets ``blocking``. Extend tokens are charged by
``admitted`` and what was never computed comes back by ``unused``; ``prefilled`` tells of the same
tokens as they are computed, for policies that bill by the chunk (charge one of the two).
``decoded`` charges every step, the prompt's first output token included. A client is idle when it
has nothing queued and as many first admissions as ``finished`` calls. ``candidates`` gets the time,
for ageing and for debts that lapse. Reserving memory for a request's whole output, which the
theorem's constant U needs, is the caller's admission rule; so is the choice of whom to preempt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tenfold.core.settings import ScheduleSettings
from tenfold.scheduling.accounts import Accounts


@dataclass(slots=True, eq=False)
class Waiting:
    """A request as a policy sees it. Identity counts; ``id`` is unique among those queued.

    ``order`` numbers arrivals. Smaller ``priority`` goes first. ``matched``: prompt tokens cached
    now, kept by the policy where it was given ``Matches``, by the caller otherwise. ``hashes``: the
    chained hashes of the prompt's full blocks; two requests share a prefix up to the last place
    where theirs are equal. ``preempted`` is the policy's.
    """

    id: str
    client: str
    prompt_tokens: int
    arrival: float = 0.0
    priority: int = 0
    deadline: float | None = None
    order: int = 0
    matched: int = 0
    hashes: list[int] = field(default_factory=list)
    preempted: bool = False


class Matches(Protocol):
    """Cached prefixes of waiting requests by id, such as ``kvcache.waiting.MatchIndex``."""

    @property
    def block_tokens(self) -> int: ...

    def __contains__(self, key: object) -> bool: ...

    def matched(self, key: str) -> int:
        """Cached tokens now. KeyError for an id that is not followed."""
        ...

    def take_changed(self) -> set[str]:
        """The ids whose value may have changed since the last call."""
        ...


class Policy(Protocol):
    """Orders the queue of one model. One thread; none of the calls blocks.

    A request is queued by ``add`` or ``preempted`` and leaves by ``admitted`` or ``remove``.
    """

    @property
    def blocking(self) -> bool:
        """True: a candidate that does not fit ends the pass. False: the next one is tried."""
        ...

    def add(self, w: Waiting) -> None:
        """Queue a request that has arrived."""
        ...

    def remove(self, w: Waiting) -> None:
        """Take a request out without serving it. Not queued: nothing happens."""
        ...

    def candidates(self, now: float) -> Iterator[Waiting]:
        """One pass: whom to try, best first, each at most once. Requests may leave meanwhile.

        The caller tries each in turn and calls ``admitted`` before it asks for the next. A request
        may be left out of a pass, but not of every pass while others are served for ever because of
        an accident of the implementation: a policy that starves says so.
        """
        ...

    def admitted(self, w: Waiting, extend_tokens: int) -> None:
        """The request runs. ``extend_tokens``: prompt tokens that are neither cached nor paid for
        by an earlier admission of the same request."""
        ...

    def prefilled(self, client: str, tokens: int) -> None:
        """Prompt tokens computed in a step, without what is computed again after a preemption."""
        ...

    def decoded(self, counts: Mapping[str, int]) -> None:
        """Output tokens of one step, by client."""
        ...

    def finished(self, client: str, unused: int = 0) -> None:
        """A request that had been admitted has ended, also one that waits preempted.

        ``unused``: of its last admission's ``extend_tokens``, those never computed."""
        ...

    def shared(self, tokens: Mapping[str, float]) -> None:
        """What cached prefixes cost their users, in prompt tokens by client: those who come later
        pay a part (above 0) and who paid before gets it back (below 0)."""
        ...

    def may_run(self, client: str) -> bool:
        """Whether the client's requests could be candidates now, as far as its share goes."""
        ...

    def first(self, most: int) -> list[Waiting]:
        """The first of the queue, in the order in which they would be tried now."""
        ...

    def reason(self, w: Waiting) -> str:
        """Why a queued request is where it is in the order, in words."""
        ...

    def preempted(self, w: Waiting, unused: int = 0) -> None:
        """A running request gave its memory back. It goes to the front of its priority class, and
        ``unused`` tokens of its admission will be asked for again; the rest is not billed twice."""
        ...

    def __len__(self) -> int:
        """Queued requests."""
        ...


@dataclass(slots=True)
class PolicySetup:
    """What a policy is made with. ``accounts``: the device's, shared by the policies of its models.
    ``price``: what a token of this model costs, of the device's first model 1."""

    matches: Matches | None = None
    settings: ScheduleSettings = field(default_factory=ScheduleSettings)
    accounts: Accounts = field(default_factory=Accounts)
    price: float = 1.0


PolicyFactory = Callable[[PolicySetup], Policy]
"""Makes the policy of one model."""
