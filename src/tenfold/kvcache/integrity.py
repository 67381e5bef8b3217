"""Recount everything: who holds which block, and whether tree, tables and ledgers agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from tenfold.kvcache.ledger import PageLedger
from tenfold.kvcache.node import Node
from tenfold.kvcache.radix import RadixTree
from tenfold.kvcache.sequence import SequenceKV


def nodes_of(tree: RadixTree) -> Iterator[Node]:
    """Every node, roots included, parents before children."""
    stack = list(tree.roots.values())
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())


def problems_of(
    tree: RadixTree, ledgers: Sequence[PageLedger], sequences: Sequence[SequenceKV]
) -> list[str]:
    """What contradicts itself, in words. O(all blocks)."""
    problems = [f"group {g}: {p}" for g, led in enumerate(ledgers) for p in led.check_integrity()]
    nodes = list(nodes_of(tree))
    for node in nodes:
        problems += _shape_problems(tree, node)
    problems += _lock_problems(tree, nodes, sequences)
    for group, ledger in enumerate(ledgers):
        problems += _holder_problems(group, ledger, nodes, sequences)
        held = sum(int(np.count_nonzero(node.blocks[group] >= 0)) for node in nodes)
        idle = sum(node.idle(group) for node in nodes)
        if (held, idle) != (tree.held[group], tree.idle[group]):
            problems.append(
                f"group {group}: the tree counts {tree.held[group]} held, {tree.idle[group]} idle;"
                f" a recount {held}, {idle}"
            )
    for seq in sequences:
        problems += _table_problems(tree, seq)
    return problems


def _shape_problems(tree: RadixTree, node: Node) -> list[str]:
    size = len(node.hashes)
    where = f"node {node.uid} of {node.namespace!r}"
    lengths = {len(ids) for ids in (*node.blocks, *node.pins.values())}
    problems = []
    if len(node.tokens) != size * tree.block_tokens or lengths - {size}:
        problems.append(f"{where}: tokens, hashes and blocks differ in length")
    if (node.parent is None) != (size == 0):
        problems.append(f"{where}: exactly the roots must be empty")
    for key, child in node.children.items():
        if child.parent is not node or child.hashes[:1] != [key] or child.start != node.end:
            problems.append(f"{where}: its child {child.uid} does not fit under it")
    if node.parent is None and not (node.children or node.lock or node.holds):
        problems.append(f"{where}: an empty root that nobody needs")
    return problems


def _lock_problems(
    tree: RadixTree, nodes: list[Node], sequences: Sequence[SequenceKV]
) -> list[str]:
    locks: Counter[Node] = Counter()
    pins = {
        group: {node: np.zeros(len(node.hashes), int) for node in nodes} for group in tree.windows
    }
    for seq in sequences:
        if seq.node is None:
            continue
        locks.update(seq.node.path())
        for group, counts in pins.items():
            for node, span in seq.node.spans(seq.tables[group].first, seq.kept):
                counts[node][span] += 1
    problems = [
        f"node {node.uid} has lock {node.lock}, but {locks[node]} open sequences pass it"
        for node in nodes
        if node.lock != locks[node]
    ]
    for group, counts in pins.items():
        for node in nodes:
            if not np.array_equal(node.pins[group], counts[node]):
                problems.append(f"node {node.uid}: pins of group {group} differ from the windows")
            if (node.blocks[group][node.pins[group] > 0] < 0).any():
                problems.append(f"node {node.uid}: a pinned block of group {group} is missing")
    return problems


def _holder_problems(
    group: int, ledger: PageLedger, nodes: list[Node], sequences: Sequence[SequenceKV]
) -> list[str]:
    holders: Counter[int] = Counter()
    for node in nodes:
        holders.update(node.blocks[group][node.blocks[group] >= 0].tolist())
    for seq in sequences:
        table = seq.tables[group]
        holders.update(table.view()[max(table.first, seq.kept) :].tolist())
    problems = [
        f"group {group}: block {block} has {count} owners"
        for block, count in holders.items()
        if count > 1 or not 0 <= block < ledger.blocks or not ledger.is_live(block)
    ]
    if len(holders) != ledger.used:
        problems.append(
            f"group {group}: {ledger.used} blocks are live but {len(holders)} have an owner"
        )
    return problems


def _table_problems(tree: RadixTree, seq: SequenceKV) -> list[str]:
    problems = []
    for group, table in enumerate(seq.tables):
        ids = table.view()
        if (ids[: table.first] != -1).any() or (ids[table.first :] < 0).any():
            problems.append(f"group {group}: a table has holes, or entries behind its window")
        if seq.node is None:
            continue
        if seq.node.end != seq.kept:
            problems.append(f"a sequence keeps {seq.kept} blocks of a path of {seq.node.end}")
        first = min(table.first, seq.kept)
        if not np.array_equal(ids[first : seq.kept], tree.gather(seq.node, group, first, seq.kept)):
            problems.append(f"group {group}: a table differs from the tree it locks")
    return problems
