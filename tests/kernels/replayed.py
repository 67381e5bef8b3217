"""A CUDA graph's stand-in on the CPU: writes down what a capture would, and runs it again.

Records every torch operation and every interpreted Triton launch made inside ``capture``; what a
capturing stream forbids (reading a value back) raises. ``replay`` runs them on the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten

from tenfold.kernels.cuda_graphs import Graphs


class ReplayedGraph:
    """The recorded operations, in order."""

    def __init__(self) -> None:
        self.operations: list[Callable[[], None]] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for operation in self.operations:
            operation()


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: ReplayedGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "_local_scalar_dense" in str(func) or "nonzero" in str(func):
            raise RuntimeError(f"{func} waits for the device, which a capture forbids")
        out = func(*args, **kwargs)

        def again() -> None:
            fresh = func(*args, **kwargs)
            for old, new in zip(tree_flatten(out)[0], tree_flatten(fresh)[0], strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

        if "empty" not in str(func):
            self.graph.operations.append(again)
        return out


@contextmanager
def capture(graph: ReplayedGraph, pool: object) -> Iterator[None]:
    from triton.runtime.interpreter import GridExecutor

    launch = GridExecutor.__call__

    def recorded(self: Any, *args: Any, **kwargs: Any) -> None:
        def again() -> None:
            with _disable_current_modes():
                launch(self, *args, **kwargs)

        again()
        graph.operations.append(again)

    with mock.patch.object(GridExecutor, "__call__", recorded), _Recorder(graph):
        yield


def replayed_graphs() -> Graphs:
    return Graphs(ReplayedGraph, capture, "pool")
