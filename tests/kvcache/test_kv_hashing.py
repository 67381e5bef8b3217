from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tenfold.kvcache.hashing import block_hashes, digest64, extend_hashes

tokens_st = st.lists(st.integers(0, 2**31 - 1), max_size=40)


@given(tokens_st, st.integers(1, 8), st.integers(0, 40))
def test_extending_equals_hashing_at_once(tokens: list[int], block: int, cut: int) -> None:
    hashes = block_hashes(tokens[:cut], block, "n")
    extend_hashes(hashes, tokens, block, "n")
    assert hashes == block_hashes(np.array(tokens, dtype=np.int32), block, "n")
    assert len(hashes) == len(tokens) // block


@given(tokens_st, tokens_st, st.integers(1, 4))
def test_equal_hash_means_equal_prefix(a: list[int], b: list[int], block: int) -> None:
    for i, (x, y) in enumerate(zip(block_hashes(a, block), block_hashes(b, block), strict=False)):
        end = (i + 1) * block
        assert (x == y) == (a[:end] == b[:end])


def test_namespaces_differ_and_values_are_stable() -> None:
    assert block_hashes([1, 2], 1, "a") != block_hashes([1, 2], 1, "b")
    # Fixed for all time and every process: hashes travel between workers and routers.
    assert digest64(b"") == int.from_bytes(bytes.fromhex("e4a6a0577479b2b4"), "little")
