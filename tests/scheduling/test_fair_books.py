"""The deficits' books, which count rounds, against a tree of numbers to which rounds are given."""

from __future__ import annotations

import random

import pytest

from tenfold.core.settings import Share
from tenfold.scheduling.deficits import Deficits

QUANTUM = 8.0
CLIENTS = [f"c{i}" for i in range(5)]


class Node:
    def __init__(self, name: str, is_group: bool) -> None:
        self.name, self.is_group = name, is_group
        self.parent: Node | None = None
        self.weight = 1.0
        self.q = self.pledged = 0.0
        self.queued = self.running = 0


class PlainDeficits:
    """Every round is carried out, every sum is taken anew."""

    def __init__(self, forget_debt: bool) -> None:
        self.forget_debt = forget_debt
        self.root = Node("", True)
        self.groups = {"": self.root}
        self.leaves: dict[str, Node] = {}
        self.shares: dict[str, Share] = {}

    def set_shares(self, shares: list[Share]) -> None:
        named = {one.name: one for one in shares if one.is_group}
        old = self.groups
        self.groups = {"": self.root} | {n: old.get(n) or Node(n, True) for n in named}
        for name, share in named.items():
            self.groups[name].parent = self.groups[share.group]
            self.groups[name].weight = share.weight
        self.shares = {one.name: one for one in shares if not one.is_group}
        for leaf in self.leaves.values():
            self.place(leaf)

    def place(self, leaf: Node) -> None:
        share = self.shares.get(leaf.name, Share(leaf.name))
        leaf.parent, leaf.weight = self.groups[share.group], share.weight

    def leaf(self, client: str) -> Node:
        if client not in self.leaves:
            self.leaves[client] = Node(client, False)
            self.place(self.leaves[client])
        return self.leaves[client]

    def below(self, node: Node) -> list[Node]:
        return [one for one in self.leaves.values() if one is node or node in self.path(one)]

    def path(self, node: Node) -> list[Node]:
        return [] if node.parent is None else [node, *self.path(node.parent)]

    def credit_of(self, node: Node) -> float:
        return node.q - sum(leaf.pledged for leaf in self.below(node))

    def children(self, node: Node, queued: bool) -> list[Node]:
        found = [n for n in [*self.groups.values(), *self.leaves.values()] if n.parent is node]
        return [n for n in found if not queued or any(leaf.queued for leaf in self.below(n))]

    def round(self, node: Node) -> None:
        for child in self.children(node, queued=False):
            if self.credit_of(child) <= 0:
                child.q += child.weight * QUANTUM

    def refill(self, node: Node | None = None) -> bool:
        node = node or self.root
        waiting, changed = self.children(node, queued=True), False
        while waiting and not any(self.credit_of(one) > 0 for one in waiting):
            self.round(node)
            changed = True
        for one in waiting:
            if one.is_group and self.credit_of(one) > 0:
                changed |= self.refill(one)
        return changed

    def grant(self, client: str) -> None:
        for node in self.path(self.leaf(client)):
            assert node.parent is not None
            late = [n for n in self.children(node.parent, True) if self.credit_of(n) <= 0]
            while late and not any(self.credit_of(one) > 0 for one in late):
                self.round(node.parent)

    def eligible(self, client: str) -> bool:
        return all(self.credit_of(node) > 0 for node in self.path(self.leaf(client)))

    def rest(self, leaf: Node) -> None:
        if self.forget_debt and not leaf.queued and not leaf.running:
            leaf.q = 0.0


def random_tree(rng: random.Random) -> list[Share]:
    names = [f"g{i}" for i in range(rng.randint(0, 4))]
    rng.shuffle(names)
    shares = []
    for i, name in enumerate(names):
        inside = rng.choice(["", *names[:i]])
        shares.append(Share(name, rng.choice([0.5, 1.0, 4.0]), inside, is_group=True))
    for client in CLIENTS:
        if rng.random() < 0.8:
            shares.append(Share(client, rng.choice([0.5, 1.0, 2.0]), rng.choice(["", *names])))
    rng.shuffle(shares)
    return shares


class Both:
    """The same calls to both; what they say must be the same."""

    def __init__(self, seed: int, forget: bool) -> None:
        self.rng = random.Random(seed)
        self.books, self.plain = Deficits(QUANTUM, forget_debt=forget), PlainDeficits(forget)

    def step(self) -> None:
        rng, books, plain = self.rng, self.books, self.plain
        client = rng.choice(CLIENTS)
        leaf = plain.leaf(client)
        books.eligible(client)
        action = rng.randrange(9)
        if action <= 1:
            books.queue(client)
            leaf.queued += 1
        elif action == 2 and leaf.queued:
            books.start(client)
            books.pledge(client, amount := float(rng.randint(0, 60)))
            books.unqueue(client)
            leaf.running += 1
            leaf.pledged += amount
            leaf.queued -= 1
        elif action == 3 and leaf.pledged:
            books.charge(client, amount := min(leaf.pledged, rng.randint(1, 20)), pledged=True)
            leaf.pledged -= amount
            for node in plain.path(leaf):
                node.q -= amount
        elif action == 4:
            books.charge(client, amount := float(rng.choice([2, 2, 6, 40, -4])))
            for node in plain.path(leaf):
                node.q -= amount
        elif action == 5 and leaf.running and (leaf.running > 1 or not leaf.pledged):
            books.stop(client)
            leaf.running -= 1
            plain.rest(leaf)
        elif action == 6 and leaf.pledged:
            books.pledge(client, -leaf.pledged)
            leaf.pledged = 0.0
        elif action == 7:
            assert books.refill() == plain.refill()
        elif rng.random() < 0.3:
            tree = random_tree(rng)
            books.set_shares(tree)
            plain.set_shares(tree)
        elif leaf.queued and plain.eligible(client):
            books.grant(client)
            plain.grant(client)

    def compare(self) -> None:
        for client in CLIENTS:
            assert self.books.eligible(client) == self.plain.eligible(client)
            assert self.books.credit(client) == self.plain.credit_of(self.plain.leaf(client))


@pytest.mark.parametrize("forget", [False, True])
def test_counted_rounds_are_rounds_that_were_given(forget: bool) -> None:
    for seed in range(100):
        both = Both(seed, forget)
        for _ in range(60):
            both.step()
            both.compare()


@pytest.mark.slow
def test_the_books_agree_over_long_lives() -> None:
    for seed in range(1000, 1600):
        both = Both(seed, seed % 2 == 0)
        for _ in range(400):
            both.step()
            both.compare()
