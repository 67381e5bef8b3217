"""The reclaim ladder: what is taken back when pages are short, rung by rung, until it is enough.

Knows the order and the arithmetic. What a rung takes and from whom is the caller's; so is the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from tenfold.core.settings import Rung

Take = Callable[[int], int]
"""Give so many pages back, as far as that goes; the pages that came."""

Log = Callable[[Rung, int], None]
"""Told of a rung that gave so many pages."""


def climb(
    rungs: Iterable[Rung],
    takes: Mapping[Rung, Take],
    missing: Callable[[], int],
    log: Log,
) -> bool:
    """Take rung by rung until nothing is ``missing``; False where all of them were not enough.

    A rung that gives nothing is passed. Rungs that ``takes`` lacks do not exist here."""
    for rung in rungs:
        if (short := missing()) <= 0:
            return True
        if rung in takes and (pages := takes[rung](short)):
            log(rung, pages)
    return missing() <= 0


def before(rungs: Sequence[Rung], rung: Rung) -> Sequence[Rung]:
    """The rungs below this one; all of them where it is not in the ladder."""
    return rungs[: rungs.index(rung)] if rung in rungs else rungs
