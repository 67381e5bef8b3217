"""The workloads by name. Adding one is a file and a line here; none is imported until asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tenfold.core.registry import Registry
from tenfold.fleet.workloads.base import Workload

workloads: Final[Registry[Callable[..., Workload]]] = Registry(
    "workload",
    {
        "bursty": "tenfold.fleet.workloads.bursty:Bursty",
        "chat": "tenfold.fleet.workloads.chat:Chat",
        "judge": "tenfold.fleet.workloads.judge:Judge",
        "long-context-qa": "tenfold.fleet.workloads.documents:LongContextQA",
        "plain": "tenfold.fleet.workloads.plain:Plain",
        "trace": "tenfold.fleet.workloads.trace:Replay",
        "tree-of-thoughts": "tenfold.fleet.workloads.trees:TreeOfThoughts",
        "vtc": "tenfold.fleet.workloads.vtc:VTC",
    },
)
