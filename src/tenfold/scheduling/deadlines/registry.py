"""The orders by name. Adding one is a file and a line here; none is imported until asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tenfold.core.registry import Registry
from tenfold.scheduling.deadlines.base import Order

orders: Final[Registry[Callable[[], Order]]] = Registry(
    "order of deadlines",
    {
        "edf": "tenfold.scheduling.deadlines.edf:EarliestDeadline",
        "fifo": "tenfold.scheduling.deadlines.fifo:OldestFirst",
        "mh": "tenfold.scheduling.deadlines.mh:MooreHodgson",
    },
)
