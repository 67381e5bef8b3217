"""What the tests believe: matching by brute force, and what every physical block should hold."""

from __future__ import annotations

from tenfold.kvcache.integrity import nodes_of
from tenfold.kvcache.radix import RadixTree

Prefix = tuple[str, tuple[int, ...]]


def contents(tree: RadixTree) -> dict[Prefix, list[int]]:
    """Every cached prefix of whole blocks, with its last block's number in each group."""
    size = tree.block_tokens
    found = {}
    for node in nodes_of(tree):
        above = [part.tokens.tolist() for part in node.path()]
        before = tuple(token for tokens in reversed(above[1:]) for token in tokens)
        own = node.tokens.tolist()
        for i in range(len(node.hashes)):
            prefix = before + tuple(own[: (i + 1) * size])
            found[node.namespace, prefix] = [int(ids[i]) for ids in node.blocks]
    return found


def brute_match(tree: RadixTree, tokens: list[int], namespace: str) -> int:
    """Tokens of the longest prefix that every group can go on from, by trying them all."""
    size = tree.block_tokens
    held = contents(tree)
    for blocks in range(max(0, len(tokens) - 1) // size, 0, -1):
        path = [held.get((namespace, tuple(tokens[: (i + 1) * size]))) for i in range(blocks)]
        if any(ids is None for ids in path):
            continue
        if all(
            path[i][group] >= 0  # type: ignore[index]
            for group, window in tree.windows.items()
            for i in range(max(0, blocks * size - window) // size, blocks)
        ):
            return blocks * size
    return 0
