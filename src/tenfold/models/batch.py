"""What a model is given for one forward pass: several sequences' new tokens, flattened.

Shape letters: T new tokens of all sequences together, S sequences, B blocks of one sequence (padded
with -1 to the longest), L rows whose logits are wanted. Knows nothing of requests or sampling.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class ForwardBatch:
    """One step's input. All index tensors are int32 on the model's device.

    Sequence s owns tokens ``starts_S1[s]:starts_S1[s+1]``. Its tokens already in the KV cache
    number ``context_S[s]``, so its first new token has position ``context_S[s]``. ``tables[g]`` is
    the block table (S, B) of KV group g: token position p of sequence s lives in block
    ``tables[g][s, p // block_tokens]`` at slot ``p % block_tokens``. Entries of blocks that were
    freed behind a sliding window are -1 and must not be read. ``logit_rows_L`` None wants the
    logits of every token.
    """

    tokens_T: Tensor
    positions_T: Tensor
    starts_S1: Tensor
    context_S: Tensor
    tables: list[Tensor]
    logit_rows_L: Tensor | None
    kv: list[Tensor] = field(default_factory=list)
    """Per KV group: float (blocks, layers of the group, 2, kv heads, block tokens, head dim)."""


@dataclass(slots=True)
class Rank:
    """Which part of a model instance this process holds. A group of one is the ordinary case."""

    index: int = 0
    size: int = 1
    collective: object | None = None
