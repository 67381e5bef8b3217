"""Whether there is memory for what a step computes, beside weights, keys and values.

Knows nothing of where that memory lies; ``engine.scratch`` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tenfold.core.settings import DeviceSettings, Speculation

SHARE = 8
"""Steps are made so small that their scratch takes one page in so many of those beside weights."""


class StepMemory(Protocol):
    """Room for the results of a step with so many tokens and rows of logits."""

    def fits(self, tokens: int, rows: int) -> bool:
        """Whether a step may be so large at all."""
        ...

    def reserve(self, tokens: int, rows: int) -> bool:
        """Have memory for such a step. False: there are no free pages."""
        ...


class Boundless:
    """The ``StepMemory`` of steps whose results lie elsewhere, or are not computed."""

    def fits(self, tokens: int, rows: int) -> bool:
        return True

    def reserve(self, tokens: int, rows: int) -> bool:
        return True


def most_pages(
    need: Callable[[int, int], int],
    settings: DeviceSettings,
    speculation: Speculation | None,
    left: int,
) -> int:
    """Pages that a model's steps may take, of ``left`` beside its weights. ``need``: bytes for
    (tokens, rows of logits); ``speculation``: the model's own choice."""
    page, block = settings.page_bytes, settings.block_tokens
    mixed = need(2 * block, block)  # so many decode beside a piece of a prompt
    speculates = (speculation or settings.speculation) != "off"
    rows = settings.max_running * (1 + speculates * settings.draft_tokens)
    most = need(settings.max_step_tokens, min(settings.max_step_tokens, rows))
    return max(-(-mixed // page), min(-(-most // page), left // SHARE))
