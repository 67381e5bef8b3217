"""How much prefill a step may hold beside the decoding rows. Pure arithmetic on predicted times."""

from __future__ import annotations

from collections.abc import Iterable


def step_target(wished: Iterable[float | None], default: float) -> float:
    """Seconds a step may take: the strictest wish. None, and no request at all, is ``default``."""
    return min([default if wish is None else wish for wish in wished], default=default)


def chunk_seconds(decode_seconds: float, *, target: float, share: float) -> float:
    """Seconds that a step with prefill may take in all, its decoding rows included.

    ``decode_seconds``: predicted for the step without prefill. The step stays within ``target``
    unless decoding leaves prefill less than ``share`` of the time: then it is made longer, so that
    prompts never stand still behind a full batch. 0 <= ``share`` < 1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"prefill share {share} is not in [0, 1)")
    return max(target, decode_seconds / (1 - share))
