"""How much time of the next step prompts may have."""

from __future__ import annotations


def chunk_seconds(decode: float, *, target: float, share: float) -> float:
    """Seconds for prompt chunks beside decoding that is predicted to take ``decode`` seconds.

    What is left of the inter-token target, but at least ``share`` of the whole step, so that
    prompts are not starved by running requests that miss their target without them."""
    return max(target - decode, decode * share / (1.0 - share) if share < 1.0 else target)
