"""Prompts and running answers on one device: how long a prompt's step may be, and who is due.

Answers must go on within their target between tokens (TPOT), prompts want all the rest. Each model
that decodes is due one step so many seconds after its last; between those, prompts run. Where
answers alone fill the time, prompts keep a share; where first tokens are at risk, answers do. Does
not know requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf


@dataclass(slots=True)
class Beat:
    """A model that decodes: its next step is to end by ``due`` and takes ``seconds``. ``every``:
    the seconds between tokens that it is to keep."""

    model: str
    due: float
    seconds: float
    every: float = 0.0


def slack(beats: Iterable[Beat], now: float) -> float:
    """Seconds that something else may take before the beats must begin, one after another in the
    order of ``due``, for none to be late. Below 0 where one is late already; infinity for none."""
    least, before = inf, 0.0
    for beat in sorted(beats, key=lambda one: one.due):
        before += beat.seconds
        least = min(least, beat.due - before - now)
    return least


class Share:
    """Keeps a share of the time for somebody: for prompts while answers are due without a break,
    or for answers while first tokens are at risk."""

    def __init__(self, share: float) -> None:
        """0 <= ``share`` < 1."""
        self._rate = share / (1.0 - share)
        self._saved = 0.0

    def waited(self, seconds: float) -> None:
        """The others ran for so long meanwhile."""
        self._saved += self._rate * seconds

    def ran(self, seconds: float) -> None:
        """It was served for so long. Nothing is owed for more than the share."""
        self._saved = max(0.0, self._saved - seconds)

    def covers(self, seconds: float) -> bool:
        """Whether there is a claim to so much before anything else."""
        return self._saved >= seconds
