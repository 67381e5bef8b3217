"""Deficit counters: whose turn it is to be admitted, for clients and groups of clients.

DLPM (arXiv 2501.14312, Algorithm 1) keeps a number q per client. Service takes from it, refills
give a quantum Q to every client whose q is not positive, and a client may be admitted while q > 0.
Here clients are the leaves of a tree: a group has a q of its own among its siblings, and a client
may be admitted while q > 0 all the way up. Refills happen among siblings, when none of those that
have work queued is positive; so what one leaves unused goes to its siblings first. Without groups
this is the published form. Does not know requests, prefixes, models or time, except to forget the
idle.

What the paper leaves open, and what is done here:

- *Repeated refills* (a client at -5 Q needs six) are counted, not carried out: rounds are a number
  that siblings share, and a node catches up when it is looked at. Of k rounds at once the k-th is
  the first in which a queued sibling turns positive, so every queued one gets all k of them.
- *Leaving the list.* A client that goes idle keeps what it owes and is repaid round by round, like
  everybody; it is forgotten when it has been idle for a while and owes nothing. ``forget_debt`` is
  the literal reading (q = 0 whenever it comes back), which pays clients for pausing.
- *Chunked prefill.* Admission pledges the prompt's tokens to be computed, and a chunk moves its
  part from pledged to charged. A pledge counts against a client as a charge does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from itertools import count
from math import floor

from tenfold.core.settings import Share

IDLE_SECONDS = 60.0
"""After so long without work a client that owes nothing is forgotten."""


class Account:
    """A client or a group. ``q`` and ``seen`` go together: q as of the parent's round ``seen``.
    ``queued`` and ``running`` (started and not ended) count the requests of every client below.

    Of its children that have something queued, ``positive`` and ``groups`` hold those with credit,
    ``turns`` the others by the round in which they will have some; a child's ``filed`` says which
    entry of its is the valid one (-1: none)."""

    __slots__ = (
        "began",
        "filed",
        "groups",
        "is_group",
        "name",
        "parent",
        "pledged",
        "positive",
        "q",
        "queued",
        "rounds",
        "running",
        "seen",
        "serial",
        "turns",
        "weight",
    )

    def __init__(self, name: str, serial: int, parent: Account | None, is_group: bool) -> None:
        self.name = name
        self.serial = serial
        self.parent = parent
        self.is_group = is_group
        self.weight = 1.0
        self.q = 0.0
        self.pledged = 0.0
        self.began = 0.0
        self.seen: int = parent.rounds if parent is not None else 0
        self.queued = 0
        self.running = 0
        self.filed = -1
        self.rounds: int = 0
        self.positive: dict[Account, None] = {}
        self.groups: dict[Account, None] = {}
        self.turns: list[tuple[int, int, Account]] = []

    @property
    def credit(self) -> float:
        return self.q - self.pledged

    def path(self) -> Iterator[Account]:
        """From here up, without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


class Deficits:
    """The accounts of one device, or of one worker as a router sees it. One thread."""

    def __init__(self, quantum: float, *, forget_debt: bool = False) -> None:
        if not quantum > 0:
            raise ValueError(f"a quantum of {quantum}; it must be above 0")
        self.quantum = quantum
        self.forget_debt = forget_debt
        self._serials = count()
        self._root = Account("", next(self._serials), None, is_group=True)
        self._groups: dict[str, Account] = {"": self._root}
        self._shares: dict[str, Share] = {}
        self._leaves: dict[str, Account] = {}
        self._idle: dict[Account, float] = {}

    # --- the tree -------------------------------------------------------------------------------
    def set_shares(self, shares: Iterable[Share]) -> None:
        """Put this tree in place of the one there is; everybody keeps what he owes and is owed.

        Raises ValueError, with nothing changed, for a weight that is not above 0, a group that is
        not there, or one inside itself."""
        shares = list(shares)
        groups = {one.name: one for one in shares if one.is_group}
        _check(shares, groups)
        for name in groups:
            if name not in self._groups:
                self._groups[name] = Account(name, next(self._serials), self._root, is_group=True)
        for share in sorted(groups.values(), key=lambda one: _depth(one, groups)):
            self._put(self._groups[share.name], share)  # from the top: two may change places
        self._shares = {one.name: one for one in shares if not one.is_group}
        for leaf in self._leaves.values():
            self._put(leaf, self._shares.get(leaf.name, Share(leaf.name)))
        self._groups = {"": self._root} | {name: self._groups[name] for name in groups}

    def _put(self, node: Account, share: Share) -> None:
        """Give the node this weight and place."""
        self._settle(node)
        node.weight = share.weight
        parent = self._groups[share.group]
        if node.parent is not parent:
            self._count(node, -1)
            self._unfile(node)
            node.parent, node.seen = parent, parent.rounds
            self._count(node, +1)
        self._file(node)

    def _count(self, node: Account, sign: int) -> None:
        """Add what the node carries to its groups, or take it away."""
        assert node.parent is not None
        for up in node.parent.path():
            self._settle(up)
            up.queued += sign * node.queued
            up.running += sign * node.running
            up.pledged += sign * node.pledged
            self._file(up)

    def _leaf(self, client: str) -> Account:
        """The client's account; a new client starts at 0 and waits for the next round."""
        found = self._leaves.get(client)
        if found is None:
            share = self._shares.get(client, Share(client))
            found = Account(client, next(self._serials), self._groups[share.group], is_group=False)
            found.weight = share.weight
            self._leaves[client] = found
            self._idle[found] = 0.0  # until it gets work, which it may never: see ``expire``
        return found

    # --- requests come and go -------------------------------------------------------------------
    def queue(self, client: str) -> None:
        """A request of the client waits."""
        leaf = self._leaf(client)
        self._idle.pop(leaf, None)
        node = leaf
        while node.parent is not None:  # ``path``, here and below: many come and go
            node.queued += 1
            if node.queued == 1:
                self._settle(node)
                node.began = node.q
                self._file(node)
            node = node.parent

    def unqueue(self, client: str, now: float = 0.0) -> None:
        """One of them waits no more."""
        node = leaf = self._leaf(client)
        while node.parent is not None:
            node.queued -= 1
            if not node.queued:
                self._file(node)
            node = node.parent
        self._rest(leaf, now)

    def start(self, client: str) -> None:
        """A request of the client runs for the first time."""
        leaf = self._leaf(client)
        self._idle.pop(leaf, None)
        node = leaf
        while node.parent is not None:
            node.running += 1
            node = node.parent

    def stop(self, client: str, now: float = 0.0) -> None:
        """A request that had started has ended."""
        node = leaf = self._leaf(client)
        while node.parent is not None:
            node.running -= 1
            node = node.parent
        self._rest(leaf, now)

    def _rest(self, leaf: Account, now: float) -> None:
        if leaf.queued or leaf.running:
            return
        self._idle[leaf] = now
        if self.forget_debt:
            self._settle(leaf)
            leaf.q = 0.0

    def expire(self, now: float) -> None:
        """Forget clients that have been idle for a while and owe nothing."""
        while self._idle:  # they are in the order in which they became idle
            leaf, since = next(iter(self._idle.items()))
            if now - since < IDLE_SECONDS:
                return
            self._settle(leaf)
            del self._idle[leaf]
            if leaf.q >= 0:
                del self._leaves[leaf.name]
            else:
                self._idle[leaf] = now  # looked at again later

    # --- service --------------------------------------------------------------------------------
    def pledge(self, client: str, amount: float) -> None:
        """Count service as promised; below 0: it will not be given after all."""
        if amount:
            self._move(client, 0.0, amount)

    def charge(self, client: str, amount: float, *, pledged: bool = False) -> None:
        """Take service from the client and its groups (below 0: give back). ``pledged``: it had
        been promised."""
        self._move(client, -amount, -amount if pledged else 0.0)

    def _move(self, client: str, given: float, pledged: float) -> None:
        """Add to the q and the pledges of a client and its groups."""
        node = self._leaves.get(client) or self._leaf(client)
        while (parent := node.parent) is not None:  # ``path``, for what happens at every step
            if node.seen != parent.rounds:
                self._settle(node)
            node.q += given
            node.pledged += pledged
            if node.queued:  # else it is in no books
                self._file(node)
            node = parent

    # --- whose turn -----------------------------------------------------------------------------
    def eligible(self, client: str) -> bool:
        """Whether the client may be admitted now: it and all of its groups have credit."""
        node = self._leaves.get(client) or self._leaf(client)
        while (parent := node.parent) is not None:  # ``path``, for a pass over many
            if node.seen != parent.rounds:
                self._settle(node)
            if node.q <= node.pledged:
                return False
            node = parent
        return True

    def refill(self) -> bool:
        """As many rounds as it takes until a client with something queued is eligible; none where
        one is. True: there were some."""
        return self._refill(self._root)

    def _refill(self, node: Account) -> bool:
        changed = False
        if not node.positive and (turn := self._next_turn(node)) is not None:
            node.rounds, changed = turn, True
            self._catch_up(node)
        for group in list(node.groups):
            changed |= self._refill(group)
        return changed

    def grant(self, client: str) -> None:
        """Rounds for the client's siblings, and for those of its groups, until one of each that has
        work queued and no credit has some. The client has credit left, and gets nothing."""
        for node in self._leaf(client).path():
            parent = node.parent
            assert parent is not None
            if (turn := self._next_turn(parent)) is not None:
                parent.rounds = max(parent.rounds, turn)
                self._catch_up(parent)

    def _next_turn(self, node: Account) -> int | None:
        """The round in which the first of the queued children turns positive."""
        while node.turns:
            turn, _, child = node.turns[0]
            if turn == child.filed and child.parent is node:  # it may have moved to another group
                return turn
            heappop(node.turns)
        return None

    def _catch_up(self, node: Account) -> None:
        """Settle the children whose turn has come."""
        while (turn := self._next_turn(node)) is not None and turn <= node.rounds:
            child = heappop(node.turns)[2]
            self._settle(child)
            self._file(child)

    # --- looking --------------------------------------------------------------------------------
    def credit(self, client: str) -> float:
        """What is left to the client, pledges taken off; at or below 0 it must wait for a round."""
        leaf = self._known(client)
        return 0.0 if leaf is None else leaf.credit

    def rounds(self, client: str) -> int:
        """Refills so far among the client and its siblings."""
        leaf = self._known(client)
        parent = self._root if leaf is None else leaf.parent
        assert parent is not None
        return parent.rounds

    def drift(self, client: str) -> float:
        """Service the client was given since its queue was last empty, less a quantum for each
        round since. It stays within U + Q of 0 (DLPM, Theorem 4.1)."""
        leaf = self._known(client)
        return leaf.began - leaf.q if leaf is not None and leaf.queued else 0.0

    def share(self, client: str) -> float:
        """What a round gives the client: Q times its weight."""
        return self._shares.get(client, Share(client)).weight * self.quantum

    def _known(self, client: str) -> Account | None:
        leaf = self._leaves.get(client)
        if leaf is not None:
            self._settle(leaf)
        return leaf

    def clients(self) -> list[str]:
        """All that are remembered."""
        return list(self._leaves)

    # --- inside ---------------------------------------------------------------------------------
    def _settle(self, node: Account) -> None:
        """Give the node the rounds it has missed: a quantum each until it has credit."""
        parent = node.parent
        assert parent is not None
        missed = parent.rounds - node.seen
        if missed:
            node.seen = parent.rounds
            if node.credit <= 0:
                node.q += min(missed, self._needed(node)) * node.weight * self.quantum

    def _needed(self, node: Account) -> int:
        """Rounds until a node without credit has some."""
        owed, quantum = -node.credit, node.weight * self.quantum
        needed = floor(owed / quantum) + 1
        while needed * quantum <= owed:  # rounding
            needed += 1
        return needed

    def _file(self, node: Account) -> None:
        """Bring the parent's books up to date with a node that is settled."""
        parent = node.parent
        assert parent is not None
        if not node.queued:
            self._unfile(node)
        elif node.q > node.pledged:
            parent.positive[node] = None
            if node.is_group:
                parent.groups[node] = None
            node.filed = -1
        else:
            turn = node.seen + self._needed(node)
            if turn != node.filed:
                self._unfile(node)
                node.filed = turn
                heappush(parent.turns, (turn, node.serial, node))

    def _unfile(self, node: Account) -> None:
        parent = node.parent
        assert parent is not None
        parent.positive.pop(node, None)
        parent.groups.pop(node, None)
        node.filed = -1


def _depth(share: Share, groups: dict[str, Share]) -> int:
    return 1 + _depth(groups[share.group], groups) if share.group else 0


def _check(shares: list[Share], groups: dict[str, Share]) -> None:
    for one in shares:
        if not one.weight > 0:
            raise ValueError(f"the weight of {one.name!r} is {one.weight}; it must be above 0")
        seen = [one.name] if one.is_group else []
        up = one.group
        while up:
            if up in seen:
                raise ValueError(f"group {up!r} is inside itself: {' < '.join([*seen, up])}")
            if up not in groups:
                raise ValueError(f"{one.name!r} is in the group {up!r}, which is not there")
            seen.append(up)
            up = groups[up].group
