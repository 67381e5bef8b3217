"""Chained hashes of token blocks: the names that cached blocks go by.

Hash i covers the namespace and every token up to the end of block i, so two equal hashes mean (but
never prove: the tree compares tokens) two equal prefixes. The value does not depend on the process,
so it may travel. Does not know which blocks exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
Tokens = Sequence[int] | IntArray
Digest = Callable[[bytes], int]
"""Bytes to a number below 2**64. Tests inject a bad one to force collisions."""


def digest64(data: bytes) -> int:
    """BLAKE2b, 64 bits."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def as_tokens(tokens: Tokens) -> IntArray:
    """The tokens as an int32 array; no copy when they are one."""
    return np.asarray(tokens, dtype=np.int32)


def block_hashes(
    tokens: Tokens, block_tokens: int, namespace: str = "", *, digest: Digest = digest64
) -> list[int]:
    """Hashes of the full blocks of ``tokens``; a partial last block has none."""
    hashes: list[int] = []
    extend_hashes(hashes, tokens, block_tokens, namespace, digest=digest)
    return hashes


def extend_hashes(
    hashes: list[int],
    tokens: Tokens,
    block_tokens: int,
    namespace: str = "",
    *,
    digest: Digest = digest64,
) -> None:
    """Append the hashes of the full blocks that ``hashes`` lacks, in place.

    ``tokens`` is the whole sequence; only tokens past the blocks already hashed are read.
    """
    done = len(hashes)
    full = len(tokens) // block_tokens
    if full <= done:
        return
    fresh = as_tokens(tokens[done * block_tokens : full * block_tokens])
    data = fresh.astype("<i4", copy=False).tobytes()
    size = 4 * block_tokens
    chain = hashes[-1] if hashes else digest(namespace.encode())
    for start in range(0, len(data), size):
        chain = digest(chain.to_bytes(8, "little") + data[start : start + size])
        hashes.append(chain)
