"""When calls are made that wait for nothing: times drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator


def times(rate: float, cv: float, seconds: float, random_: random.Random) -> Iterator[float]:
    """Times until ``seconds``, ``rate`` a second on average, with gaps of a Gamma distribution.

    ``cv``: standard deviation of the gaps over their mean. 1 is a Poisson process, 0 an even pace.
    """
    if rate <= 0:
        return
    at = random_.random() / rate if cv == 0 else _gap(rate, cv, random_)
    while at < seconds:
        yield at
        at += _gap(rate, cv, random_)


def _gap(rate: float, cv: float, random_: random.Random) -> float:
    if cv == 0:
        return 1 / rate
    shape = 1.0 / cv**2
    return random_.gammavariate(shape, 1.0 / (rate * shape))
