"""How much scratch memory a pass of a decoder takes, known before it runs.

Counts what ``Decoder.forward`` and the layers keep at one time, from above; a test compares it with
real passes. Knows nothing of where the memory comes from.
"""

from __future__ import annotations

from tenfold.kernels.lines import CACHE_LINE
from tenfold.models.spec import ModelSpec

_TENSORS = 40
"""Results alive at one time, at most."""


class Footprint:
    """Of one model: called with tokens and rows of logits, gives the bytes of a pass at most."""

    def __init__(self, spec: ModelSpec) -> None:
        hidden, heads, kv_heads = spec.hidden, spec.heads, spec.kv_heads
        attention = (2 * heads + 2 * kv_heads) * spec.head_dim + hidden
        if spec.qk_norm:
            attention += (heads + kv_heads) * spec.head_dim
        self._attend = 2 * hidden + len(spec.kv_groups()) + attention
        self._feed = hidden + _mlp(spec)
        # After the last attention only the rows count: gathered first, then fed, then as logits.
        self._row = 3 * hidden + max(self._feed, spec.vocab + 2)
        self._edges = _TENSORS * CACHE_LINE // 4 + (spec.moe.experts if spec.moe else 0)

    def __call__(self, tokens: int, rows: int) -> int:
        widest = max(tokens * self._feed, rows * self._row)
        return 4 * (tokens * self._attend + widest + self._edges)


def _mlp(spec: ModelSpec) -> int:
    """Floats of the widest layer's MLP for one token."""
    hidden, moe = spec.hidden, spec.moe
    dense = 3 * spec.ffn + hidden
    if moe is None:
        return dense
    # Weights, experts and order of the pairs, their results, and one expert's rows put together.
    pairs = moe.top_k * (3 + 3 * moe.ffn + hidden) + hidden + 2 * moe.ffn
    shared = 3 * moe.shared_ffn + hidden + 1 if moe.shared_ffn else 0
    mixture = moe.experts + pairs + shared + hidden
    return max(dense, mixture) if len(spec.moe_layers) < spec.layers else mixture
